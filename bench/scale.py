"""The least times of the paper's runs by the roofline, for docs/scale.md: python bench/scale.py.

A device is described by two measured rates, which can be replaced by those that `ict bench` measures on another device.
"""

from __future__ import annotations

import click

from ict_backends.networks.roofline import least_seconds, operations, shares
from ict_core import Config, load_preset
from ict_core.settings import replace

# The presets of the paper's runs, and how many images a device computes at a time.
MICRO_BATCHES = {"cifar10": 128, "cifar10-deep": 128, "imagenet64": 32, "imagenet64-deep": 32, "imagenet64-stable": 32}
DEVICES = (1, 8)
COLUMNS = (
    "roofline, computed",
    "images at a time",
    *(f"ms a step, {n} device{'s' * (n > 1)}" for n in DEVICES),
    "bound by memory",
    *(f"days of the run, {n} device{'s' * (n > 1)}" for n in DEVICES),
)


def row(name: str, precision: str, rates: tuple[float, float]) -> tuple[str, ...]:
    """The cells of a preset's row; `rates` are operations a second and bytes a second."""
    config = replace(load_preset(name), train={"micro_batch": MICRO_BATCHES[name], "precision": precision})
    seconds = [least_seconds(operations(config, n), *rates) for n in DEVICES]
    days = (config.train.total_steps * s / 86_400 for s in seconds)
    return (
        f"`{name}`",
        str(config.train.micro_batch),
        *(f"{1000 * s:,.0f}" for s in seconds),
        f"{memory_share(config, rates):.2f}",
        *(f"{d:.0f}" if d >= 10 else f"{d:.2g}" for d in days),
    )


def memory_share(config: Config, rates: tuple[float, float]) -> float:
    """The share of a step's least time that is bound by memory; `rates` as in `row`."""
    kinds = shares(operations(config), *rates)
    return sum(kind.of_memory for kind in kinds) / sum(kind.seconds for kind in kinds)


@click.command()
@click.option("--product", default=790.0, show_default=True, help="TFLOP/s of a large matrix product.")
@click.option("--memory", default=3.0, show_default=True, help="TB/s, read and written, of a large copy.")
@click.option("--precision", type=click.Choice(["float32", "tf32", "bf16", "fp16"]), default="bf16", show_default=True)
def main(product: float, memory: float, precision: str) -> None:
    """Print the table of least times in Markdown."""
    rates = (1e12 * product, 1e12 * memory)
    rows = [row(name, precision, rates) for name in MICRO_BATCHES]
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows):
        click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
