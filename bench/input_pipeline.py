"""The cost of reading each step's images: python bench/input_pipeline.py --data SOURCE [--preset P] [--hold H].

In one process, stretches of training steps alternate between the images of the data set, as `ict train` feeds them, and
one constant batch that is on the device already. The ratio of the median times is the cost of real data.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import click
import numpy as np
import torch

from ict_backends.data.dataset import Dataset, load_data
from ict_backends.torch.batch import make_batch, to_device
from ict_backends.torch.device import tune_process
from ict_backends.torch.parallel import Processes, joined
from ict_backends.torch.state import TrainState, init_state
from ict_backends.torch.step import StepResult, train_step
from ict_backends.torch.train import _feed
from ict_backends.training.step_plan import plan_step
from ict_core import Batch, Config
from ict_core.settings import build_config, merge, preset_tree


def constant_batches(config: Config, device: torch.device) -> Iterator[Batch]:
    """Batches that follow the plans of the steps, but always have the same images."""
    images = torch.zeros(config.train.batch_size, *config.data.shape, dtype=torch.uint8, device=device)
    for step in range(config.train.total_steps):
        yield make_batch(config, to_device(plan_step(config, step, len(images)), device), images, None)


def real_batches(config: Config, dataset: Dataset, processes: Processes) -> Iterator[Batch]:
    """The batches that `ict train` takes."""
    for _, batches in _feed(config, dataset, 0, processes, parts=1):
        yield from batches


def stretch(state: TrainState, config: Config, batches: Iterator[Batch], steps: int) -> float:
    """Seconds per step of a stretch, including the wait for the last step."""
    start = time.perf_counter()
    result: StepResult | None = None
    for _ in range(steps):
        result = train_step(state, config, [next(batches)])
    assert result is not None
    assert np.isfinite(float(result.losses.sum()))
    return (time.perf_counter() - start) / steps


@click.command()
@click.option("--data", default="digits", show_default=True)
@click.option("--preset", default="digits", show_default=True)
@click.option("--batch-size", type=int, help="Of the preset, if it is not given.")
@click.option("--hold", type=click.Choice(["device", "host"]), default="host", show_default=True)
@click.option("--steps", default=10, show_default=True, help="In each stretch.")
@click.option("--stretches", default=7, show_default=True, help="Of each kind.")
def main(data: str, preset: str, batch_size: int | None, hold: str, steps: int, stretches: int) -> None:
    """Print both times and their ratio."""
    dataset = load_data(data)
    changes = {"data": {"shape": list(dataset.shape), "hold": hold}}
    if batch_size:
        changes["train"] = {"batch_size": batch_size}
    config = build_config(merge([preset_tree(preset), changes]))
    tune_process("auto")
    with joined("auto") as processes:
        state = init_state(config, processes)
        kinds = {
            "real": real_batches(config, dataset, processes),
            "constant": constant_batches(config, processes.device),
        }
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for i in range(stretches + 1):
            for name, batches in kinds.items() if i % 2 else reversed(kinds.items()):
                seconds = stretch(state, config, batches, steps)
                if i:  # the first ones warm up
                    times[name].append(seconds)
    middle = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        rate, (low, high) = config.train.batch_size / middle[name], (1e3 * min(values), 1e3 * max(values))
        click.echo(f"{name:9} {1e3 * middle[name]:.1f} ms a step ({low:.1f} to {high:.1f}), {rate:.1f} images/s")
    ratio = middle["real"] / middle["constant"]
    click.echo(f"ratio     {ratio:.3f} ({len(dataset.images):,} images, held on the {hold})")


if __name__ == "__main__":
    main()
