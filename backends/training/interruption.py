"""Stopping on request: by Ctrl-C, by the SIGTERM before a machine shuts down, or by the SIGHUP of a closed terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from ict_backends.errors import UserError

# The type of what `signal.signal` returns, the handler before ours.
_Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(UserError):
    """Training was told to stop and has saved its state; the command line exits with 128 + the signal's number.

    That is what the user wanted, and no error: the line on the error stream does not say so.
    """

    prefix = ""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number

    @classmethod
    def after(cls, step: int, run: Path, number: int | None) -> StoppedError:
        """The error of a run that has stopped.

        Args:
            step: number of steps done.
            run: the run's folder.
            number: the signal's number; None if the signal reached another process of the run.
        """
        number = number or signal.SIGTERM
        name = signal.Signals(number).name
        return cls(f"Stopped by {name} after step {step}; go on with: ict train --out {run} --resume", number)


class Interruption:
    """A context in which the first Ctrl-C, SIGTERM or SIGHUP is only noted; a second Ctrl-C ends the process at once.

    Where something is being written then, the second Ctrl-C waits for it, and a third one does not. SIGHUP stays
    ignored where it is, as under nohup.

    Attributes:
        number: number of the first signal; None until one arrives.
        is_writing: True while something is being written that a second Ctrl-C must not cut off; to be set.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.is_writing: Callable[[], bool] = lambda: False
        self._waits = False
        self._before: dict[int, _Handler] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            hangups = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []  # Windows has none
            heeded = [number for number in hangups if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in (*_SIGNALS, *heeded)}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            if self.is_writing() and not self._waits:
                self._waits = True
                _tell("\nWriting the checkpoint; again to leave without it\n")
                while self.is_writing():  # by another thread; a third Ctrl-C comes in here
                    time.sleep(0.02)
            # No exception is raised: the loop might be waiting for a device, or for another process.
            _tell("\nInterrupted.\n")
            os._exit(128 + signal.SIGINT)
        if self.number is None:
            self.number = number
            name = signal.Signals(number).name
            again = "; again to leave at once" if number == signal.SIGINT else ""
            _tell(f"\n{name}: finishing this step and writing a checkpoint{again}\n")


def _tell(text: str) -> None:
    """Write to the error stream at once, if it is still there: a closed terminal must not end the run."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.write(sys.stderr.fileno(), text.encode())
