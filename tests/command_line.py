"""What tests of the command line share: the result of a command, and what every refusal is like.

Loaded as `command_line` through pytest's `pythonpath`; tests/cli/conftest.py has the fixtures `ict` and `refused`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Result(NamedTuple):
    """The exit code of a command, and what it printed."""

    code: int
    out: str
    err: str


# The fixture `ict`: ict("train", "--steps", 2) runs a command.
Ict = Callable[..., Result]
# The fixture `refused`: refused(2, "unknown key", "train", "--set=train.sed=3") runs one that must fail.
Refused = Callable[..., Result]


def assert_refusal(error: str, *patterns: str) -> None:
    """The error stream is one line, "Error: ...", that matches every pattern, and no traceback."""
    assert error.startswith("Error: "), error
    assert error.endswith("\n"), error
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    for pattern in patterns:
        assert re.search(pattern, error), (pattern, error)


def contents(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, by path: the bytes of files, None for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}
