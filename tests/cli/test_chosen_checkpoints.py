"""RUN@STEP, and other ways to say which checkpoint of which run, wherever a run is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from tiny import TINY

from ict_backends import load_backend
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir, open_run

DEVICE = "--device=cpu"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps whose checkpoints, and the best of them, are all kept."""
    from ict_cli.main import run as call

    path = tmp_path_factory.mktemp("runs") / "kept"
    keep = ["--set=train.checkpoint_every=1", "--set=train.keep_checkpoints=0", "--set=train.learning_rate=1e-2"]
    with pytest.raises(SystemExit) as stop:
        call(["train", f"--out={path}", *TINY, "--steps=4", *keep, "--set=train.ema_decay=0.5", "--set=eval.every=2"])
    assert stop.value.code == 0
    return path


def test_a_path_says_which_run_and_which_checkpoint(run: Path, tmp_path: Path) -> None:
    second = run / "checkpoints" / "step_00000002"
    for path, chosen in (
        (run, None),
        (run / "config.toml", None),
        (f"{run}@2", second),
        (f"{run}@00002", second),
        (second, second),
        (second / "state.safetensors", second),
        (run / "best" / RunDir(run).best_checkpoints()[0].name, RunDir(run).best_checkpoints()[0]),
    ):
        assert open_run(path) == RunDir(run, chosen)
        assert open_run(path).checkpoint_of("ema") == (chosen or run / "checkpoints" / "step_00000004")
    odd = tmp_path / "odd@2"
    odd.mkdir()
    assert open_run(odd) == RunDir(odd)  # a folder of that name
    assert open_run(tmp_path / "none@2") == RunDir(tmp_path / "none")  # which is then said not to exist


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_each_command_takes_the_chosen_checkpoint(ict: Ict, tmp_path: Path, run: Path, backend: str) -> None:
    model = load_backend(backend).load_model(f"{run}@2", device="cpu")
    x, sigma = np.ones((1, 1, 8, 8), np.float32), np.full(1, 2.0)
    newest = load_backend(backend).load_model(run, device="cpu").consistency(x, sigma)
    assert not np.array_equal(model.consistency(x, sigma), newest)
    drawn = {}
    for what in (f"{run}@2", f"{run}@4", run):
        out = tmp_path / f"{len(drawn)}.npz"
        assert ict("sample", what, "--num", 4, "--out", out, DEVICE, f"--backend={backend}").code == 0
        drawn[str(what)] = np.load(out)["arr_0"].tobytes()
        assert ict("eval", what, "--num", 80, "--no-halves", DEVICE, f"--backend={backend}").code == 0
    assert drawn[f"{run}@2"] != drawn[f"{run}@4"] == drawn[str(run)]


def test_a_run_starts_from_the_chosen_checkpoint(ict: Ict, tmp_path: Path, run: Path) -> None:
    assert ict("train", f"--init={run}@2", f"--out={tmp_path / 'new'}", *TINY).code == 0
    first = load_checkpoint(RunDir(tmp_path / "new").checkpoint_folder(2))  # of two steps at a rate that moves little
    there = load_checkpoint(run / "checkpoints" / "step_00000002").ema
    other = load_checkpoint(run / "checkpoints" / "step_00000004").ema
    off = [sum(float(np.sum((first.ema[n] - old[n]) ** 2)) for n in old) for old in (there, other)]
    assert off[0] < off[1]


def test_what_is_not_there_is_said(refused: Refused, tmp_path: Path, run: Path) -> None:
    sample = ("--out", tmp_path / "x.png", DEVICE)
    refused(1, "has no checkpoint of step 3000; its steps are: 1, 2, 3, 4", "sample", f"{run}@3000", *sample)
    refused(1, "does not exist", "sample", f"{tmp_path / 'none'}@3", *sample)
    worse = next(step for step in (1, 2, 3, 4) if RunDir(run).best_folder(step) not in RunDir(run).best_checkpoints())
    refused(1, "--weights best: .* is another checkpoint", "sample", f"{run}@{worse}", "--weights", "best", *sample)
