"""Peak memory of the metrics at the field's size: python bench/metric_memory.py [--num N] [--dims D] [--metrics ...].

Two sets of made-up features, gathered batch by batch as `ict eval` does it, then compared; for each metric in a process
of its own: the peak resident memory of the whole process, libraries included, and the time.
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
    """In place of a network: float32 features of a 64-dimensional distribution, as Inception's are of low rank."""

    dims: int
    seed: int
    name: str = "made up"
    digest: str = ""
    has_probabilities: bool = True
    mixing: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.mixing = np.random.default_rng(0).standard_normal((64, self.dims)).astype(np.float32)

    def features(self, images: np.ndarray) -> np.ndarray:
        """[b, d] float32."""
        rng = np.random.default_rng((self.seed, int(images[0, 0, 0, 0])))
        core = rng.standard_normal((len(images), 64)).astype(np.float32) @ self.mixing
        return np.maximum(core + 0.1 * rng.standard_normal((len(images), self.dims)).astype(np.float32), 0)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """[b, 1008] float32 that sum to 1."""
        logits = self.features(images)[:, :1008]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def batches(num: int) -> Iterator[np.ndarray]:
    """Stand-ins for images: only their number and their first value are used."""
    for first in range(0, num, BATCH):
        yield np.full((min(BATCH, num - first), 1, 1, 1), first)


def measure(metric: str, num: int, dims: int) -> str:
    """The metric's line of the table; in a process that does nothing else."""
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
    """Print a table."""
    if here:
        click.echo(measure(metrics, num, dims))
        return
    click.echo(f"{num:,} x {dims:,} features of each set\n\n| metric | peak | time | value |\n|---|---|---|---|")
    for metric in metrics.split(","):
        command = [sys.executable, __file__, f"--num={num}", f"--dims={dims}", f"--metrics={metric}", "--here"]
        click.echo(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


if __name__ == "__main__":
    main()
