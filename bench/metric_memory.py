"""Peak memory of the metrics at the published size: python bench/metric_memory.py [--num N] [--dims D] [--metrics ...].

Two sets of made-up features are gathered batch by batch, as in `ict eval`, and then compared. Each metric runs in a
process of its own, whose peak resident memory, libraries included, and time are printed.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import click
import numpy as np

from ict_backends.measuring.evaluation import compare, gather

GIB = 2**30
BATCH = 256


@dataclass
class Features:
    """A stand-in for a feature network: float32 features, of a distribution of low rank (64) like Inception's."""

    dims: int
    seed: int
    name: str = "made up"
    digest: str = ""
    has_probabilities: bool = True
    mixing: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.mixing = np.random.default_rng(0).standard_normal((64, self.dims)).astype(np.float32)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Made-up features, [b, d] float32, of b images."""
        rng = np.random.default_rng((self.seed, int(images[0, 0, 0, 0])))
        core = rng.standard_normal((len(images), 64)).astype(np.float32) @ self.mixing
        return np.maximum(core + 0.1 * rng.standard_normal((len(images), self.dims)).astype(np.float32), 0)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Made-up class probabilities of b images, [b, 1008] float32; each row sums to 1."""
        logits = self.features(images)[:, :1008]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def batches(num: int) -> Iterator[np.ndarray]:
    """Stand-ins for batches of images, of which only the number and the first value are used."""
    for first in range(0, num, BATCH):
        yield np.full((min(BATCH, num - first), 1, 1, 1), first)


def measure(metric: str, num: int, dims: int) -> str:
    """Measure a metric, in a process that does nothing else, and return its line of the table."""
    start = time.perf_counter()
    reference, samples = (gather(batches(num), [metric], Features(dims, seed)) for seed in (0, 1))
    found = compare([metric], samples, reference)[0]
    seconds = time.perf_counter() - start
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    return f"| {metric} | {peak:.2f} GiB | {seconds:.0f} s | {found} |"


@click.command()
@click.option("--num", default=50_000, show_default=True, help="Images of each set.")
@click.option("--dims", default=2048, show_default=True, help="Features of an image.")
@click.option("--metrics", default="fid,kid,is,pr", show_default=True)
@click.option("--here", hidden=True, is_flag=True)
def main(num: int, dims: int, metrics: str, here: bool) -> None:
    """Print a table of peak memory and time for each metric."""
    if here:
        click.echo(measure(metrics, num, dims))
        return
    click.echo(f"{num:,} x {dims:,} features of each set\n\n| metric | peak | time | value |\n|---|---|---|---|")
    for metric in metrics.split(","):
        command = [sys.executable, __file__, f"--num={num}", f"--dims={dims}", f"--metrics={metric}", "--here"]
        click.echo(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
