"""Growth of memory during training: python bench/memory_growth.py [--backend B] [--steps 10000].

Trains a very small network through the whole loop, with its log, sample pictures and checkpoints, in a folder that is
removed afterwards. At ten points, the resident memory of the process is printed, and the memory of the arrays on a GPU.
The growth is from the second point, when every part has run once, to the last.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import click

from ict_backends import load_backend
from ict_backends.data.dataset import load_data_of
from ict_backends.runs.folder import RunDir, create_run
from ict_backends.training.recorder import Recorder
from ict_core import Config
from ict_core.settings import build_config

MIB = 2**20
POINTS = 10


def make_config(steps: int) -> Config:
    """Settings of a network of some thousand parameters, trained on the digits."""
    tree = {
        "data": {"source": "digits", "shape": [1, 8, 8]},
        "network": {"channels": 4, "channel_mult": [1], "blocks": 1, "attention_resolutions": [], "dropout": 0.1},
        "train": {"total_steps": steps, "batch_size": 4, "ema_decay": 0.9, "log_every": 10},
    }
    often = max(1, steps // 50)
    tree["train"] |= {"sample_every": often, "checkpoint_every": often}
    return build_config(tree)


def resident_bytes() -> int:
    """The resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def watched(after: Callable[..., None], steps: int, in_use: Callable[[], int | None], seen: list[float]) -> object:
    """A `Recorder.after` that also prints the memory at ten of the steps, and adds it to `seen` in MiB."""

    def wrapper(
        recorder: Recorder, results: list[tuple[int, object, object]], *rest: object, **options: object
    ) -> None:
        after(recorder, results, *rest, **options)
        done = results[-1][0] + 1
        if done * POINTS // steps > len(seen):
            held, arrays = resident_bytes(), in_use()
            seen.append(held / MIB)
            beside = "" if arrays is None else f"{arrays / MIB:12.2f} MiB on the device"
            click.echo(f"{done:8d} steps {held / MIB:10.1f} MiB{beside}")

    return wrapper


@click.command()
@click.option("--backend", default="torch", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("--steps", type=click.IntRange(min=POINTS), default=10_000, show_default=True)
def main(backend: str, device: str, steps: int) -> None:
    """Print the memory of training at ten points, and its growth from the second to the last."""
    engine, config, seen = load_backend(backend), make_config(steps), []
    engine.tune_process(device)
    dataset = load_data_of(config.data)
    wrapper = watched(Recorder.after, steps, lambda: engine.memory_in_use(device), seen)
    with tempfile.TemporaryDirectory(prefix="ict-growth-") as folder, mock.patch.object(Recorder, "after", wrapper):
        path = Path(folder) / "run"
        create_run(path, config, dataset)
        engine.train(config, dataset, RunDir(path), device=device)
    click.echo(f"growth from {steps * 2 // POINTS} to {steps} steps: {seen[-1] - seen[1]:+.1f} MiB")


if __name__ == "__main__":
    main()
