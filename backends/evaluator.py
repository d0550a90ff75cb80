"""Measuring a model while it trains: the curve, and the best checkpoint so far."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cached_property

import numpy as np
from ict_backends.checkpoint import Checkpoint, read_step, write_checkpoint
from ict_backends.errors import CheckpointError, UserError
from ict_backends.evaluation import Gathered, check_counts, compare, gather, images_needed, in_batches
from ict_backends.files import write_atomically
from ict_backends.images import to_uint8
from ict_backends.plan import is_due
from ict_backends.rundir import RunDir
from ict_backends.sampling import Model, sample_images
from tqdm import tqdm

from ict_core import Config


def evaluation_size(config: Config, images: int) -> int:
    """How many samples an evaluation takes.

    Raises:
        DataError: they, or the data's images, are too few for the metric.
    """
    settings, pixels = config.eval, config.data.dim
    needed = images_needed(settings.metric, None, pixels)
    num = settings.num or max(1000, needed)
    check_counts([settings.metric], num, None, pixels, f"eval.num = {num}")
    check_counts([settings.metric], images, None, pixels, f"data {config.data.source}")
    return num


class Evaluator:
    """Measures one-step samples of the averaged weights every so many steps.

    RUN/evals.jsonl gets a line each time, and RUN/best the checkpoint whose value is the smallest so far. What goes
    wrong meanwhile is said and does not stop the training.

    Args:
        images: [n, c, h, w] uint8, what the samples are compared with.
        first: the step that training starts from; what a run that was cut off has left of later steps is dropped.

    Raises:
        DataError: there are too few images or samples for the metric.
        CheckpointError: the lines are damaged.
    """

    def __init__(self, run: RunDir, config: Config, images: np.ndarray, *, first: int) -> None:
        self._run, self._config, self._images = run, config, images
        if not config.eval.every:
            return
        self._num = evaluation_size(config, len(images))
        lines = self._lines()
        kept = [line for line in lines if line["step"] <= first]
        if len(kept) < len(lines):
            self._write(kept)
        if run.best_folder.is_dir() and read_step(run.best_folder) > first:
            shutil.rmtree(run.best_folder)

    def after(self, step: int, model: Callable[[], Model], checkpoint: Callable[[], Checkpoint]) -> None:
        """Measure after so many steps, where it is time to."""
        settings = self._config.eval
        if not settings.every or not is_due(step, settings.every, self._config.train.total_steps):
            return
        try:
            self._record(step, self._measure(model()), checkpoint)
        except (UserError, OSError, MemoryError, np.linalg.LinAlgError) as error:
            tqdm.write(f"Warning: no evaluation after step {step}: {error}")

    def _measure(self, model: Model) -> float:
        settings, classes = self._config.eval, self._config.network.num_classes
        labels = np.arange(self._num) % classes if classes else None
        levels = [self._config.noise.sigma_max]
        samples = to_uint8(sample_images(model, self._num, sigmas=levels, seed=0, labels=labels))
        found = gather(in_batches(samples), [settings.metric], None)
        return compare([settings.metric], found, self._reference)[0].value

    def _record(self, step: int, value: float, checkpoint: Callable[[], Checkpoint]) -> None:
        line = {"step": step, "metric": self._config.eval.metric, "num": self._num, "value": value}
        lines = [known for known in self._lines() if known["step"] < step]
        # Distances between sets depend on their sizes, so that only those of as many samples compare.
        alike = [known["value"] for known in lines if (known["metric"], known["num"]) == (line["metric"], line["num"])]
        if value < min(alike, default=np.inf):
            write_checkpoint(self._run.best_folder, checkpoint())
        self._write([*lines, line])

    @cached_property
    def _reference(self) -> Gathered:
        return gather(in_batches(self._images), [self._config.eval.metric], None)

    def _lines(self) -> list[dict]:
        if not self._run.evals_file.is_file():
            return []
        try:
            lines = [json.loads(line) for line in self._run.evals_file.read_text(encoding="utf-8").splitlines()]
            return [{key: line[key] for key in ("step", "metric", "num", "value")} for line in lines]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self._run.evals_file} cannot be read: {error!r}") from error

    def _write(self, lines: list[dict]) -> None:
        write_atomically(self._run.evals_file, "".join(json.dumps(line) + "\n" for line in lines).encode())
