"""What is shown on an error stream that goes away: a closed terminal or a reader that has ended must not end a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import TINY

from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir


@pytest.mark.parametrize("how", ["its reader ends", "it is closed", "it is full"])
def test_training_outlives_its_error_stream(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-m", "ict_cli", "train", f"--out={tmp_path / 'run'}", *TINY, "--steps=20"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if how == "its reader ends":
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            assert process.stderr.readline().startswith(b"step 1/20")
            process.stderr.close()
    elif how == "it is closed":
        shell = ["sh", "-c", '"$@" 2>&-', "sh", *command]
        process = subprocess.Popen(shell, env=environment, stdout=subprocess.DEVNULL)
    else:
        with open("/dev/full", "wb") as full:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=full)
    assert process.wait(timeout=120) == 0
    assert load_checkpoint(RunDir(tmp_path / "run").latest_checkpoint()).step == 20
