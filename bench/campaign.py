"""What the campaigns of kills, signals and damages share: commands in processes, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

# A study of two variants, for `ict ablate`.
STUDY = """title = "Two losses"
preset = "digits"
reference = "a"
[variants.a]
[variants.b]
loss = { distance = "l2" }
"""
# What records say of time and machine, which no two runs have alike.
_TIMES = ("images_per_second", "peak_memory_bytes", "seconds", "date", "commit", "machine", "platform")


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """Start an `ict` command in a folder, with a session of its own and one thread; its output is kept as one text."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ict_cli", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def end_well(child: subprocess.Popen[str]) -> None:
    """Wait for a process, and end with what it printed if it failed."""
    output = child.communicate()[0]
    if child.returncode:
        raise click.ClickException(f"{child.args!r} failed with {child.returncode}:\n{output}")


def processes_of(here: Path) -> list[str]:
    """The command lines of processes that work in a folder, a moment after the one that was asked to end."""
    time.sleep(0.5)
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if str(here) in words:
            found.append(words.strip())
    return found


def contents(folder: Path) -> dict[str, object]:
    """All files of a folder by name: bytes, or records without times and without the folder's name.

    What was printed, dates, and a study's table, which tells the minutes beside what results.json has, are left out.
    """
    return {
        str(path.relative_to(folder)): _content(path, folder)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in (".log", ".md") and path.name != "history.jsonl"
    }


def _content(path: Path, folder: Path) -> object:
    """The records of a file; its bytes where they are none, as those of a damaged one."""
    try:
        if path.suffix == ".jsonl":
            return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        if path.suffix == ".json" and path.name not in ("state.json", "data.json"):  # a run's, which have no times
            return _timeless(json.loads(path.read_text().replace(str(folder), "")))
    except (ValueError, RecursionError):
        pass
    return path.read_bytes()


def _timeless(record: object) -> object:
    """A record without what says how long something took."""
    if isinstance(record, dict):
        return {name: _timeless(value) for name, value in record.items() if name not in _TIMES}
    return [_timeless(value) for value in record] if isinstance(record, list) else record
