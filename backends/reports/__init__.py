"""Reports on runs and measurements for a reader: pages, figures, ablations, benchmarks."""
