"""Being told to stop: by Ctrl-C, or by the SIGTERM that machines send before they go."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ict_backends.errors import UserError

# What Python has for a signal before ours.
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(UserError):
    """Training was told to stop and has kept its state; the command line exits with 128 + the signal's number."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number

    @classmethod
    def after(cls, step: int, run: Path, number: int | None) -> StoppedError:
        """The error of a run that was told to stop, itself or (no number) another of its processes."""
        number = number or signal.SIGTERM
        name = signal.Signals(number).name
        return cls(f"stopped by {name} after step {step}; go on with: ict train --out {run} --resume", number)


class Interruption:
    """A context in which the first Ctrl-C or SIGTERM is only noted, and a second Ctrl-C ends the process at once.

    Attributes:
        number: of the signal; None as long as none has come.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, _Handler] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread have handlers
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            # Not an exception: that would wait for the checkpoint that is being written.
            os.write(sys.stderr.fileno(), b"\nInterrupted.\n")
            os._exit(128 + signal.SIGINT)
        if self.number is None:
            self.number = number
            name = signal.Signals(number).name
            again = "; again to leave at once" if number == signal.SIGINT else ""
            os.write(sys.stderr.fileno(), f"\n{name}: finishing this step and writing a checkpoint{again}\n".encode())
