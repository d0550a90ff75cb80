"""Logging to Weights & Biases, with a module of its calls in the place of the package."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from command_line import Ict, Refused
from tiny import TINY

from ict_backends.runs.folder import RunDir

OPTIONS = [*TINY, "--wandb", "--set=eval.every=2", "--set=train.sample_every=2"]


class FakeWandb(ModuleType):
    """What is used of wandb: `init`, `Image`, `errors.Error`; a run's `id`, `log` and `finish`."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.ended: list[int] = []
        self.errors, self.refuse = ModuleType("wandb.errors"), ""
        self.errors.Error = type("Error", (Exception,), {})  # type: ignore[attr-defined]

    def init(self, **arguments: Any) -> FakeRun:
        if self.refuse:
            raise self.errors.Error(self.refuse)
        self.begun.append(arguments)
        return FakeRun(self, arguments["id"] or f"id{len(self.begun)}")

    @staticmethod
    def Image(data: np.ndarray) -> tuple[str, tuple[int, ...]]:  # noqa: N802
        assert data.dtype == np.uint8
        return "picture", data.shape


class FakeRun:
    def __init__(self, module: FakeWandb, name: str) -> None:
        self._module, self.id = module, name

    def log(self, data: dict[str, Any], step: int) -> None:
        assert not self._module.logged or step >= self._module.logged[-1][0], "wandb drops earlier steps"
        self._module.logged.append((step, data))

    def finish(self, exit_code: int) -> None:
        self._module.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_it_gets_scalars_and_pictures(ict: Ict, tmp_path: Path, wandb: FakeWandb) -> None:
    run = RunDir(tmp_path / "run")
    assert ict("train", *OPTIONS, "--out", run.path).code == 0
    (begun,) = wandb.begun
    assert {key: value for key, value in begun.items() if key != "config"} == {
        "project": "ict", "name": "run", "dir": str(run.path), "id": None, "resume": "allow",
    }  # fmt: skip
    assert begun["config"] == run.load_config().flat()
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    for line in lines:
        logged = next(data for step, data in wandb.logged if step == line["step"] and "train/loss" in data)
        bands = {f"train/loss_bands/{k}": v for k, v in line.pop("loss_bands").items() if v is not None}
        assert logged == {f"train/{k}": v for k, v in line.items() if k != "step"} | bands
    assert ("samples", ("picture", (8 * 36, 8 * 36, 1))) in [item for _, data in wandb.logged for item in data.items()]
    evaluation = json.loads(run.evals_file.read_text())
    assert (2, {"eval/pixel-fd": evaluation["value"]}) in wandb.logged
    assert wandb.ended == [0]


def test_a_resumed_run_goes_on_with_the_same_one(
    ict: Ict, tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert ict("train", *OPTIONS, "--out", tmp_path / "run").code == 0
    monkeypatch.setenv("WANDB_RUN_ID", "another")  # that of a job, perhaps
    assert ict("train", "--resume", "--steps=4", "--device=cpu", "--out", tmp_path / "run").code == 0
    assert [(begun["id"], begun["project"]) for begun in wandb.begun] == [(None, "mine"), ("id1", "mine")]
    assert (tmp_path / "run" / "wandb-id.txt").read_text() == "id1\n"
    assert [step for step, data in wandb.logged if "train/loss" in data] == [1, 2, 3, 4]


def test_an_error_ends_its_run_with_1(ict: Ict, tmp_path: Path, wandb: FakeWandb) -> None:
    assert ict("train", *TINY, "--wandb", "--set=train.learning_rate=1e30", "--out", tmp_path / "run").code == 1
    assert wandb.ended == [1]


def test_what_wandb_refuses_is_said_in_a_line(ict: Ict, tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.refuse = "api_key not configured (no-tty).\ncall wandb.login"
    result = ict("train", *OPTIONS, "--out", tmp_path / "run")
    assert result.code == 1
    said = "Error: train.wandb = true: api_key not configured (no-tty). call wandb.login (WANDB_MODE=offline needs no"
    assert said in result.err
    wandb.refuse = ""
    assert ict("train", "--resume", "--device=cpu", "--out", tmp_path / "run").code == 0


def test_wandb_that_is_not_installed_is_refused(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    refused(2, r"pip install 'ict\[wandb\]'", "train", *TINY, "--wandb", "--out", tmp_path / "run")
