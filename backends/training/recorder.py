"""The files that a training run writes in progress, the same for every backend."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from ict_backends.console import warn
from ict_backends.errors import UserError
from ict_backends.files import write_atomically
from ict_backends.images import save_grid, tile
from ict_backends.protocols import Model, OnRecord, ignore
from ict_backends.runs.checkpoint import Checkpoint, remove_old_checkpoints
from ict_backends.runs.checkpoint_writer import CheckpointWriter
from ict_backends.runs.folder import RunDir
from ict_backends.sampling.batches import preview
from ict_backends.training.evaluator import Evaluator
from ict_backends.training.metrics_log import Progress, ToNumpy
from ict_backends.training.step_plan import StepPlan, is_due
from ict_backends.training.tensorboard import TensorBoard
from ict_backends.training.wandb import WandB
from ict_core import Config


class Recorder:
    """A context around the training loop that writes the log, checkpoints, sample pictures and evaluations.

    Errors here do not end the training, except a loss or gradient that is not finite; the end of the context warns of
    what is missing.

    Args:
        run: the run's folder.
        config: the run's settings.
        images: [n, c, h, w] uint8, the images that evaluations compare samples with.
        first: the step that training starts from.
        to_numpy, peak_memory: as for `Progress`.
        writes: True in the process that shows and writes; the others only take part in calls that every process must
            make.
        stopping: True once training is to stop, which cuts an evaluation short; for a single process, since several
            must stop after the same step.
        on_record: called with each record of the log; what it raises ends the training.
    """

    def __init__(
        self,
        run: RunDir,
        config: Config,
        images: np.ndarray,
        *,
        first: int,
        to_numpy: ToNumpy,
        peak_memory: Callable[[], int | None],
        writes: bool = True,
        stopping: Callable[[], bool] = lambda: False,
        on_record: OnRecord = ignore,
    ) -> None:
        self._run, self._config, self._writes, self._first = run, config, writes, first
        self._evaluator = Evaluator(run, config, images, first=first, stopping=stopping) if writes else None
        self._boards = _boards(run, config, first) if writes else []
        self._writer = CheckpointWriter(run, config)
        self._progress = Progress(
            run,
            config,
            first=first,
            to_numpy=to_numpy,
            peak_memory=peak_memory,
            writes=writes,
            on_record=self._pass_on,
            last_good=self._writer.describe_latest,
        )
        self._on_record = on_record
        self._lost: list[str] = []
        # The files that identify a run; they are written again if its folder vanishes.
        self._identity = {path: path.read_bytes() for path in (run.config_file, run.data_file) if path.is_file()}
        self._contexts = contextlib.ExitStack()

    def __enter__(self) -> Recorder:
        self._contexts.enter_context(self._writer)
        for board in self._boards:
            self._contexts.enter_context(board)
        self._contexts.enter_context(self._progress)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lost:
            warn(f"missing in {self._run.path}: {', '.join(self._lost)}")
        if self._progress.skipped:
            warn(f"{self._progress.skipped} steps were skipped, since a loss or gradient was not finite")
        self._contexts.__exit__(kind, error, trace)

    @property
    def cut_short(self) -> bool:
        """True once an evaluation was cut short, which the resumed run makes up for."""
        return self._evaluator is not None and self._evaluator.cut_short

    def is_writing(self) -> bool:
        """True while a checkpoint is being written."""
        return self._writer.is_busy()

    def catch_up(self, model: Callable[[], Model], checkpoint: Callable[[], Checkpoint]) -> bool:
        """Do what belongs to the step that training goes on from, where a killed process has left it undone.

        Must be called by every process, before the first step.

        Args:
            model, checkpoint: as for `after`.

        Returns:
            True if training must stop, since an evaluation was cut short.
        """
        train = self._config.train
        if self._writes and self._first and self._run.checkpoint_folder(self._first) in self._run.checkpoints()[-1:]:
            remove_old_checkpoints(self._run, self._first, keep=train.keep_checkpoints, keep_every=train.keep_every)
        if self._first:
            self._show(self._first, model, checkpoint, missing=True)
        return self.cut_short

    def after(
        self,
        steps: Sequence[tuple[int, StepPlan, Any]],
        model: Callable[[], Model],
        checkpoint: Callable[[], Checkpoint],
        *,
        stopping: bool = False,
    ) -> bool:
        """Take in the results of successive steps, and write what is due after the last of them.

        Must be called by every process.

        Args:
            steps: the number, counted from 0, the plan and the result of each step.
            model: returns the model that samples are drawn from; called when samples or an evaluation are due.
            checkpoint: returns the whole state; called when a checkpoint or an evaluation is due.
            stopping: no step follows.

        Returns:
            True if no step must follow: for `stopping`, or since an evaluation was cut short.
        """
        for step in steps:
            self._progress.add(*step)
        done, train = steps[-1][0] + 1, self._config.train
        due = stopping or is_due(done, train.checkpoint_every, train.total_steps)
        if due:
            self._save(checkpoint)
        self._show(done, model, checkpoint)
        if self.cut_short and not due:
            self._save(checkpoint)
        return stopping or self.cut_short

    def _pass_on(self, record: dict[str, Any]) -> None:
        for board in self._boards:
            board.add_record(record)
        self._on_record(record)

    def _save(self, checkpoint: Callable[[], Checkpoint]) -> None:
        self._progress.flush()
        state = checkpoint()
        if self._writes:
            self._restore_folder()
            self._writer.save(state)

    def _show(
        self,
        done: int,
        model: Callable[[], Model],
        checkpoint: Callable[[], Checkpoint],
        *,
        missing: bool = False,
    ) -> None:
        """Draw a picture and evaluate, each if it is due; with `missing`, only if it is not there yet."""
        train, every = self._config.train, self._config.eval.every
        if is_due(done, train.sample_every, train.total_steps):
            network = model()
            if self._writes and not (missing and self._run.samples_file(done).is_file()):
                self._draw(done, network)
        if every and is_due(done, every, train.total_steps):
            network, state = model(), checkpoint()
            if self._evaluator and not (missing and self._evaluator.has(done)):
                self._evaluate(self._evaluator, done, network, state)

    def _restore_folder(self) -> None:
        for path, content in self._identity.items():
            if not path.exists():
                warn(f"{path} has vanished and is written again; so are later checkpoints and lines of the log")
                with contextlib.suppress(OSError):  # the checkpoint meets the same error, reports it, and is retried
                    write_atomically(path, content)

    def _draw(self, step: int, model: Model) -> None:
        try:
            images = preview(model)
            save_grid(self._run.samples_file(step), images)
            for board in self._boards:
                board.add_picture(step, tile(images))
        # The libraries raise a RuntimeError for a device that has no memory left.
        except (UserError, OSError, MemoryError, RuntimeError) as error:
            warn(f"no sample picture after step {step}: {error}")
            self._lost.append(self._run.samples_file(step).name)

    def _evaluate(self, evaluator: Evaluator, step: int, model: Model, checkpoint: Checkpoint) -> None:
        value = evaluator.after(step, model, checkpoint)
        if evaluator.cut_short:
            return
        if value is None:
            self._lost.append(f"the evaluation after step {step}")
            return
        for board in self._boards:
            board.add_record({"step": step, f"eval/{self._config.eval.metric}": value})


def _boards(run: RunDir, config: Config, first: int) -> list[TensorBoard | WandB]:
    """What shows the log elsewhere, as the settings ask for it; `first` is the step that training starts from."""
    boards: list[TensorBoard | WandB] = []
    if config.train.tensorboard:
        boards.append(TensorBoard(run.tensorboard_folder, first))
    if config.train.wandb:
        boards.append(WandB(run, config))
    return boards
