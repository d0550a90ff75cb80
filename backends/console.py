"""Messages and progress bars: library code calls for them, and commands show them.

Nothing is shown before a command has called `show_on_stderr`. A program that imports these packages gets their messages
from the logger "ict_backends", as from any other library.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from tqdm import tqdm

_logger = logging.getLogger("ict_backends")


def say(text: str) -> None:
    """Log a message about work that goes well."""
    _logger.info(text)


def warn(text: str) -> None:
    """Log a problem that does not end the work."""
    _logger.warning(text)


class _Lasting:
    """A stream that loses what it cannot write: a terminal that is closed, or a pipe without a reader, ends no run."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self._stream is not None:
                self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:  # fileno and encoding, for the width of the bar and its characters
        return getattr(self._stream, name)


class _Stderr(logging.Handler):
    """A handler that writes each message as a line on the error stream, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        warning = "Warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(warning + record.getMessage(), file=_Lasting(sys.stderr))


_stderr = _Stderr()


def show_on_stderr() -> None:
    """Show messages and progress bars on the error stream from now on; only commands call this."""
    _logger.addHandler(_stderr)
    _logger.setLevel(logging.INFO)
    _logger.propagate = False


def shows_bars() -> bool:
    """True where a command has called `show_on_stderr` and the error stream is a terminal: bars would fill a file."""
    return _stderr in _logger.handlers and _Lasting(sys.stderr).isatty()


def progress_bar(total: int, *, disable: bool = False, **settings: Any) -> tqdm[Any]:
    """A tqdm bar, hidden unless `shows_bars`.

    Args:
        total: the number of units, >= 0.
        disable: show nothing in any case.
        settings: further arguments of tqdm.
    """
    from tqdm import tqdm

    hidden = disable or not shows_bars()
    bar: tqdm[Any] = tqdm(total=total, file=_Lasting(sys.stderr), dynamic_ncols=True, disable=hidden, **settings)
    return bar
