"""`ict train` beside another process that uses the same folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_line import Ict, Refused
from tiny import TINY

HOLD = """
import sys, time
from pathlib import Path
from ict_backends.runs.lock import in_use

with in_use(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold() -> Iterator[Callable[[Path], None]]:
    """Let another process use a folder until the test ends."""
    with ExitStack() as processes:

        def start(path: Path) -> None:
            process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
            processes.enter_context(process)
            processes.callback(process.kill)
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"

        yield start


def test_a_run_that_is_still_training_is_not_resumed(
    refused: Refused, tmp_path: Path, digits_run: Path, hold: Callable[[Path], None]
) -> None:
    run = shutil.copytree(digits_run, tmp_path / "run")
    hold(run)
    refused(2, "run is in use by process", "train", "--resume", f"--out={run}", "--device=cpu")


def test_a_folder_that_another_training_is_about_to_fill_is_refused(
    refused: Refused, tmp_path: Path, hold: Callable[[Path], None]
) -> None:
    """It is taken before the data are read."""
    hold(tmp_path / "run")
    refused(2, "run is in use by process", "train", f"--out={tmp_path / 'run'}", *TINY)
    refused(2, "run is in use by process", "train", f"--out={tmp_path / 'run'}", "--data=nowhere", *TINY)


def test_by_default_each_training_takes_a_folder_of_its_own(
    ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Callable[[Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    hold(Path("runs/digits-torch-001"))
    assert ict("train", *TINY).code == 0
    assert (tmp_path / "runs" / "digits-torch-002" / "config.toml").is_file()
    assert [file.name for file in (tmp_path / "runs" / "digits-torch-001").iterdir()] == [".lock"]


def test_a_training_that_is_refused_leaves_no_folder(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(1, "nowhere does not exist", "train", "--data=nowhere", *TINY)
    refused(1, "nowhere does not exist", "train", "--data=nowhere", "--out=a/b/c", *TINY)


def test_a_finished_run_is_not_in_use(ict: Ict, tmp_path: Path) -> None:
    assert ict("train", f"--out={tmp_path / 'run'}", *TINY).code == 0
    assert not (tmp_path / "run" / ".lock").exists()
