"""Messages and progress bars: library code calls for them, and commands show them.

Nothing is shown before a command has called `show_on_stderr`. A program that imports these packages gets their messages
from the logger "ict_backends", as from any other library.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

_logger = logging.getLogger("ict_backends")


def say(text: str) -> None:
    """Log a message about work that goes well."""
    _logger.info(text)


def warn(text: str) -> None:
    """Log a problem that does not end the work."""
    _logger.warning(text)


class _Stderr(logging.Handler):
    """A handler that writes each message as a line on the error stream, above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        warning = "Warning: " if record.levelno >= logging.WARNING else ""
        tqdm.write(warning + record.getMessage(), file=sys.stderr)


_stderr = _Stderr()


def show_on_stderr() -> None:
    """Show messages and progress bars on the error stream from now on; only commands call this."""
    _logger.addHandler(_stderr)
    _logger.setLevel(logging.INFO)
    _logger.propagate = False


def progress_bar(total: int, *, disable: bool = False, **settings: Any) -> tqdm[Any]:
    """A tqdm bar, shown only where a command has called `show_on_stderr` and the error stream is a terminal.

    Args:
        total: the number of units, >= 0.
        disable: show nothing in any case.
        settings: further arguments of tqdm.
    """
    from tqdm import tqdm

    hidden = disable or _stderr not in _logger.handlers or not sys.stderr.isatty()
    return tqdm(total=total, file=sys.stderr, dynamic_ncols=True, disable=hidden, **settings)
