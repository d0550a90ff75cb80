"""What this software writes: beside somebody's images, where it is never read as one of them, and into output files."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from ict_backends.images import PICTURE_MARK

# The bytes at the beginning of a PNG that hold its mark.
HEAD = 96
# The names in a folder that tell what it is, each in any of these sets: a run, also before it has settings; samples;
# an ablation.
_MARKS: tuple[set[str], ...] = (
    {"config.toml", "checkpoints"},
    {"config.toml", "data.json"},
    {"config.toml", "metrics.jsonl"},
    {".lock"},
    {".ict-sample.json"},
    {"results.json", "table.md"},
)
# What begins the style of a page about a run, near the beginning of the file.
PAGE_MARK = ": report</title><style>\n:root { color-scheme: light dark; --line:"
_PAGE_HEAD = 2**13
# The fields that tell the records of figures: of `ict eval --json`, of `ict bench --out` and of `ict runs --json`.
_RECORDS: tuple[set[str], ...] = (
    {"num", "reference", "sigmas"},
    {"backend", "preset", "machine"},
    {"folder", "listed", "runs"},
)
_LARGEST_RECORD = 2**20
_SHEET = re.compile(r"contact-sheet(-[0-9]+)?\.png")


def is_our_folder(inside: Collection[str]) -> bool:
    """True for a folder that a command made, by the names of all that is in it, hidden files included."""
    return any(marks <= set(inside) for marks in _MARKS)


def our_folders(files: Iterable[str]) -> set[str]:
    """The folders a/b that commands made, among those that files a/b/c lie in; the top is not one of them."""
    inside: dict[str, set[str]] = {}
    for name in files:
        parts = name.split("/")
        for i in range(1, len(parts)):
            inside.setdefault("/".join(parts[:i]), set()).add(parts[i])
    return {folder for folder, names in inside.items() if is_our_folder(names)}


def is_our_sheet(name: str) -> bool:
    """True for the name a/b/c of a file that `ict data` gives a contact sheet in the folder that it is called in."""
    return _SHEET.fullmatch(name) is not None


def is_our_picture(head: bytes) -> bool:
    """True for the first `HEAD` bytes of a PNG that shows several images, or an edited one."""
    return PICTURE_MARK in head


def is_our_output(file: Path) -> bool:
    """True for a file that a command wrote and may replace: a picture, a page about a run, or a record of figures.

    Raises:
        OSError: the file cannot be read.
    """
    if not file.is_file():
        return False
    with open(file, "rb") as stream:
        head = stream.read(_PAGE_HEAD)
        if head.startswith(b"{"):
            return _is_our_record(head + stream.read(_LARGEST_RECORD))
    return is_our_picture(head[:HEAD]) or PAGE_MARK.encode() in head


def _is_our_record(content: bytes) -> bool:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return any(fields <= record.keys() for fields in _RECORDS)
