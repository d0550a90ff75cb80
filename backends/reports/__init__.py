"""Reports of runs and measurements for a reader: pages, figures, ablations, benchmarks."""
