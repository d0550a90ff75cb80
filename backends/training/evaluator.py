"""Measuring a model while it trains: the curve, and the best checkpoint so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from ict_backends.console import warn
from ict_backends.errors import UserError
from ict_backends.files import write_atomically
from ict_backends.images import to_uint8
from ict_backends.measuring.evaluation import check_counts, compare, gather, images_needed, in_batches
from ict_backends.measuring.metrics import Gathered
from ict_backends.protocols import Model
from ict_backends.runs.checkpoint import Checkpoint, remove_checkpoint, write_checkpoint
from ict_backends.runs.folder import RunDir, class_counts, step_of
from ict_backends.runs.lines import is_evaluation, read_lines
from ict_backends.sampling.batches import proportional_labels, sample_images, usual_solver
from ict_core import Config


class _CutShortError(Exception):
    """Raised within an evaluation when training is to stop."""


def evaluation_size(config: Config, images: int) -> int:
    """The number of samples of an evaluation.

    Args:
        config: the settings; `eval.num` = 0 takes 1000 samples, or more if the metric needs more.
        images: number of the data's images.

    Raises:
        DataError: the samples, or the data's images, are too few for the metric.
    """
    settings, pixels = config.eval, config.data.dim
    needed = images_needed(settings.metric, None, pixels)
    num = settings.num or max(1000, needed)
    check_counts([settings.metric], num, None, pixels, f"eval.num = {num}")
    check_counts([settings.metric], images, None, pixels, f"data {config.data.source}")
    return num


def read_evaluations(run: RunDir) -> list[dict[str, Any]]:
    """The evaluations of a run, each with `step`, `metric`, `num` and `value`. Raises CheckpointError if damaged."""
    lines = read_lines(run.evals_file, is_evaluation)
    return [{key: line[key] for key in ("step", "metric", "num", "value")} for line in lines]


class Evaluator:
    """Measures samples of the averaged weights during training.

    Each evaluation adds a line to RUN/evals.jsonl; RUN/best holds the checkpoint with the smallest value so far. An
    evaluation that fails leads to a warning and does not stop the training.

    Args:
        run: the run's folder.
        config: the run's settings.
        images: [n, c, h, w] uint8, the images that samples are compared with.
        first: the step that training starts from; results of later steps, left by an interrupted run, are dropped,
            except the best one where no earlier best checkpoint is left.
        stopping: True once training is to stop, which cuts an evaluation short.

    Attributes:
        cut_short: True once an evaluation was cut short; a resumed run has to do it again.

    Raises:
        DataError: there are too few images or samples for the metric.
        CheckpointError: the lines are damaged.
    """

    def __init__(
        self,
        run: RunDir,
        config: Config,
        images: np.ndarray,
        *,
        first: int,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._run, self._config, self._images, self._stopping = run, config, images, stopping
        self.cut_short = False
        if not config.eval.every:
            return
        self._num = evaluation_size(config, len(images))
        lines = self._lines()
        steps = [step_of(best) for best in run.best_checkpoints()]
        self._later = {max(steps)} if steps and min(steps) > first else set()
        kept = [line for line in lines if line["step"] <= first or line["step"] in self._later]
        if len(kept) < len(lines):
            self._write(kept)
        for best in run.best_checkpoints():
            if step_of(best) > first and step_of(best) not in self._later:
                remove_checkpoint(best)

    def after(self, step: int, model: Model, checkpoint: Checkpoint) -> float | None:
        """Measure the model after `step` steps, and keep its checkpoint if it is the best so far.

        Returns the value, or None: with a warning if the evaluation failed, or if it was cut short.
        """
        try:
            self._check_stopping()
            value = self._measure(model)
            self._record(step, value, checkpoint)
            return value
        except _CutShortError:
            self.cut_short = True
            return None
        # A failure here must not end the training. The libraries raise a RuntimeError for a device without memory.
        except (UserError, OSError, MemoryError, RuntimeError, np.linalg.LinAlgError) as error:
            warn(f"no evaluation after step {step}: {error}")
            return None

    def has(self, step: int) -> bool:
        """True if the model was measured after `step` steps, by the metric of the settings."""
        return any((line["step"], line["metric"]) == (step, self._config.eval.metric) for line in self._lines())

    def _check_stopping(self, done: int = 0) -> None:
        if self._stopping():
            raise _CutShortError

    def _measure(self, model: Model) -> float:
        settings, counts = self._config.eval, class_counts(self._run, self._config)
        if counts is None:
            counts = np.ones(self._config.network.num_classes)
        labels = proportional_labels(counts, self._num) if len(counts) else None
        solver, sigmas = usual_solver(self._config)
        drawn = sample_images(
            model, self._num, sigmas=sigmas, seed=0, labels=labels, solver=solver, on_batch=self._check_stopping
        )
        samples = to_uint8(drawn)
        gathered = gather(in_batches(samples), [settings.metric], None)
        return compare([settings.metric], gathered, self._reference)[0].value

    def _record(self, step: int, value: float, checkpoint: Checkpoint) -> None:
        line = {"step": step, "metric": self._config.eval.metric, "num": self._num, "value": value}
        lines = [known for known in self._lines() if known["step"] < step or known["step"] in self._later - {step}]
        # Distances between sets depend on their sizes: only values of the same number of samples are comparable.
        alike = [known["value"] for known in lines if (known["metric"], known["num"]) == (line["metric"], line["num"])]
        if value < min(alike, default=np.inf):
            write_checkpoint(self._run.best_folder(step), checkpoint, config=self._config)
            for old in self._run.best_checkpoints():
                if step_of(old) != step:
                    remove_checkpoint(old)
            lines, self._later = [known for known in lines if known["step"] < step], set()
        self._write(sorted([*lines, line], key=lambda known: known["step"]))

    @cached_property
    def _reference(self) -> Gathered:
        return gather(in_batches(self._images), [self._config.eval.metric], None, on_batch=self._check_stopping)

    def _lines(self) -> list[dict[str, Any]]:
        return read_evaluations(self._run)

    def _write(self, lines: list[dict]) -> None:
        write_atomically(self._run.evals_file, "".join(json.dumps(line) + "\n" for line in lines).encode())
