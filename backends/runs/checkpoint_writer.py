"""Writing checkpoints while training goes on, and removing old ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType

from ict_backends.console import warn
from ict_backends.errors import CheckpointError, NonFiniteError
from ict_backends.runs.checkpoint import Checkpoint, save_checkpoint
from ict_backends.runs.folder import RunDir
from ict_core import Config

# The wait after a failure, as on a full disk, before the next try: while training goes on, and at its end, where the
# number of tries is limited.
_RETRY_SECONDS = 10.0
_RETRY_SECONDS_AT_END, _LAST_TRIES = 1.0, 3


class CheckpointWriter:
    """A context with a thread that writes one checkpoint after the other.

    Where a checkpoint cannot be written, a warning is logged, and the thread tries again until `save` gets a newer one.
    Leaving the context waits for the last checkpoint.

    Raises:
        CheckpointError: on leaving, where the last checkpoint could not be written in a few more tries.
        NonFiniteError: on leaving or in the next call of `save`, where a weight was not finite.
    """

    def __init__(self, run: RunDir, config: Config) -> None:
        self._run, self._config = run, config
        self._waiting: Checkpoint | None = None
        self._writing = self._closing = self._failing = False
        self._error: CheckpointError | NonFiniteError | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="checkpoints", daemon=True)

    def __enter__(self) -> CheckpointWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if kind is None:
            self._raise_error()

    def save(self, checkpoint: Checkpoint) -> None:
        """Hand over a checkpoint to be written; nothing may change its arrays afterwards.

        If another checkpoint still waits to be written, this call blocks until its turn comes, or until writing fails.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None or self._failing)
            self._raise_error()
            self._waiting = checkpoint
            self._changed.notify_all()

    def describe_latest(self) -> str:
        """Wait until all checkpoints are written, or writing fails; return the newest one's folder, or "none"."""
        with self._changed:
            self._changed.wait_for(lambda: self._failing or not (self._writing or self._waiting is not None))
        return self._run.describe_latest()

    def is_busy(self) -> bool:
        """True while a checkpoint is being written or waits to be; this takes no lock, for handlers of signals."""
        return self._writing or self._waiting is not None

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (checkpoint := self._next()) is not None:
            for _ in self._tries():
                if self._write(checkpoint):
                    break

    def _next(self) -> Checkpoint | None:
        with self._changed:
            self._writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting is not None or self._closing)
            checkpoint, self._waiting = self._waiting, None
            self._writing = checkpoint is not None
            self._changed.notify_all()
            return checkpoint

    def _tries(self) -> Iterator[None]:
        """Yield once, then after each wait until there is a newer checkpoint; at the end only a few times."""
        yield
        at_end = 0
        while self._waiting is None and at_end < _LAST_TRIES:
            with self._changed:
                if self._closing:
                    at_end += 1
                    self._changed.wait(timeout=_RETRY_SECONDS_AT_END)
                else:
                    self._changed.wait_for(lambda: self._waiting or self._closing, timeout=_RETRY_SECONDS)
            if self._waiting is None:
                yield

    def _write(self, checkpoint: Checkpoint) -> bool:
        """Try to write a checkpoint; True if it needs no other try."""
        train = self._config.train
        try:
            save_checkpoint(
                self._run,
                checkpoint,
                keep=train.keep_checkpoints,
                keep_every=train.keep_every,
                config=self._config,
            )
            self._failing, self._error = False, None
            return True
        except NonFiniteError as error:
            self._error = error
            return True
        except (OSError, CheckpointError, MemoryError) as error:
            warn(f"the checkpoint after step {checkpoint.step} is not written: {error}")
            newest = self._run.describe_latest()
            with self._changed:
                self._failing = True
                self._changed.notify_all()
            if self._closing:
                self._error = CheckpointError(
                    f"the checkpoint after step {checkpoint.step} could not be written: {error}; newest: {newest}"
                )
            return False
