"""A run's folder is used by one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ict_backends.errors import UsageError
from ict_backends.runs.lock import LOCK_FILE, in_use

HOLD = """
import sys, time
from pathlib import Path
from ict_backends.runs.lock import in_use

with in_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
TAKE_TURNS = """
import sys
from pathlib import Path
from ict_backends.errors import UsageError
from ict_backends.runs.lock import in_use

run, alone = Path(sys.argv[1]), 0
for _ in range(300):
    try:
        with in_use(run):
            (run / "mine").mkdir()
            (run / "mine").rmdir()
            alone += 1
    except UsageError:
        pass
print(alone)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses tmp_path/run."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_another_process_is_named_and_its_death_frees_the_folder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(UsageError, match=rf"run is in use by process {holder.pid} on \S+: wait"),
        in_use(tmp_path / "run"),
    ):
        pass
    assert str(holder.pid) in (tmp_path / "run" / LOCK_FILE).read_text()  # as it was
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with in_use(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK_FILE).read_text().startswith(f"process {os.getpid()} on ")
    assert (tmp_path / "run").is_dir()  # which was there before
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_folders_that_stay_empty_are_removed_with_those_above_that_were_made(tmp_path: Path) -> None:
    with pytest.raises(KeyError), in_use(tmp_path / "runs" / "a"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with in_use(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a" / "x").touch()
    assert [file.name for file in (tmp_path / "runs" / "a").iterdir()] == ["x"]
    with pytest.raises(FileExistsError), in_use(tmp_path / "runs" / "a", fresh=True):
        pass


def test_many_at_once_are_one_after_the_other(tmp_path: Path) -> None:
    """Each is refused or alone: the file of one that ends is not taken for that of the next."""
    both = [
        subprocess.Popen([sys.executable, "-c", TAKE_TURNS, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    counts = [int(process.communicate()[0]) for process in both]  # a FileExistsError would be a traceback
    assert max(counts) > 0  # one of them may find the folder in use each time
