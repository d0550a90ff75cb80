"""`eval.every`: the curve, the best checkpoint, and that evaluating changes nothing of the training."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Ict, Refused, Result
from tiny import TINY

from ict_backends import load_backend
from ict_backends.protocols import Model
from ict_backends.runs.checkpoint import load_checkpoint, write_checkpoint
from ict_backends.runs.folder import RunDir, step_of
from ict_backends.runs.lines import read_lines
from ict_backends.training.evaluator import Evaluator, evaluation_size
from ict_core import load_preset
from ict_core.settings import replace

KEEP = "--set=train.keep_checkpoints=0"
EVAL = ["--set=eval.every=2", "--set=eval.num=70"]


def command(path: Path, *arguments: str, steps: int = 6) -> list[str]:
    return ["train", f"--out={path}", *TINY, f"--steps={steps}", "--set=train.learning_rate=1e-2", *arguments]


def train(ict: Ict, path: Path, *arguments: str, steps: int = 6) -> Result:
    return ict(*command(path, *arguments, steps=steps))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "evals.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_it_measures_and_keeps_the_best(ict: Ict, tmp_path: Path, backend: str) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    done = train(ict, run, *EVAL, "--set=train.ema_decay=0.5", f"--backend={backend}")
    assert done.code == 0, done.err
    found = lines(run)
    assert [line["step"] for line in found] == [2, 4, 6]
    best = min(found, key=lambda line: line["value"])
    assert load_checkpoint(RunDir(run).checkpoint_of("best")).step == best["step"]
    # It is what `ict eval` makes of those weights.
    for weights, line in (("ema", found[-1]), ("best", best)):
        arguments = ("--num", 70, "--weights", weights, "--json", tmp_path / "x.json", f"--backend={backend}")
        assert ict("eval", run, *arguments, "--device", "cpu").code == 0
        assert json.loads((tmp_path / "x.json").read_text())["pixel-fd"] == pytest.approx(line["value"], rel=1e-3)
    assert train(ict, plain, "--set=train.ema_decay=0.5", f"--backend={backend}").code == 0
    assert not (plain / "evals.jsonl").exists()
    ours, theirs = (load_checkpoint(RunDir(p).latest_checkpoint()) for p in (run, plain))
    assert all(np.array_equal(ours.params[name], theirs.params[name]) for name in theirs.params)


def test_a_resumed_run_has_the_same_curve_and_the_same_best(ict: Ict, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(ict, whole, *EVAL, "--set=eval.metric=sw").code == 0
    assert train(ict, run, *EVAL, "--set=eval.metric=sw", "--set=train.checkpoint_every=2", KEEP).code == 0
    for step in (4, 6):  # as if it had been cut off after its third step
        folder = RunDir(run).checkpoint_folder(step)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    (run / "evals.jsonl").write_text(
        json.dumps(lines(run)[0]) + "\n" + json.dumps({**lines(run)[1], "value": -1}) + "\n"
    )
    for file in ("evals.jsonl", "metrics.jsonl"):  # and while it wrote a line
        with open(run / file, "a") as stream:
            stream.write('{"step": 4, "n')
    resumed = ict("train", "--resume", f"--out={run}", "--device=cpu")
    assert resumed.code == 0
    assert resumed.err.count("is not whole and is left out") >= 2
    assert lines(run) == lines(whole)
    assert [record["step"] for record in read_lines(run / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (
        load_checkpoint(RunDir(run).checkpoint_of("best")).step
        == load_checkpoint(RunDir(whole).checkpoint_of("best")).step
    )


def values_of(run: RunDir) -> dict[int, float]:
    return {line["step"]: line["value"] for line in lines(run.path)}


def test_a_best_checkpoint_that_is_newer_stays_until_another_is_better(
    ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed from an earlier step, a run keeps the best that it had, since the one before it is gone."""
    assert train(ict, tmp_path / "run", *EVAL, KEEP, steps=2).code == 0
    run = RunDir(tmp_path / "run")
    config, whole = run.load_config(), load_checkpoint(run.latest_checkpoint())
    images = np.zeros((80, 1, 8, 8), np.uint8)

    def measured(evaluator: Evaluator, step: int, value: float) -> list[int]:
        """The steps of the best checkpoints after an evaluation that finds a value."""
        monkeypatch.setattr(evaluator, "_measure", lambda model: value)
        assert evaluator.after(step, Any, whole._replace(step=step)) == value
        return [step_of(folder) for folder in run.best_checkpoints()]

    first = Evaluator(run, config, images, first=0)
    assert [measured(first, step, value) for step, value in ((2, 9.0), (4, 5.0), (6, 7.0))] == [[2], [4], [4]]
    again = Evaluator(run, config, images, first=2)
    assert values_of(run) == {2: 9.0, 4: 5.0}
    assert load_checkpoint(run.checkpoint_of("best")).step == 4
    assert measured(again, 3, 6.0) == [4]
    assert values_of(run) == {2: 9.0, 3: 6.0, 4: 5.0}
    assert measured(again, 4, 5.0) == [4]
    assert measured(again, 5, 4.0) == [5]
    third = Evaluator(run, config, images, first=3)
    assert measured(third, 4, 3.0) == [4]  # better than the newer one, which goes with its value
    assert values_of(run) == {2: 9.0, 3: 6.0, 4: 3.0}
    # While one best replaces another, both are there: the earlier one counts.
    write_checkpoint(run.best_folder(6), whole._replace(step=6))
    Evaluator(run, config, images, first=5)
    assert [step_of(folder) for folder in run.best_checkpoints()] == [4]


def test_what_goes_wrong_is_said_and_training_goes_on(
    ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ict_backends.training.evaluator.write_checkpoint", fail)
    done = train(ict, tmp_path / "run", *EVAL)
    assert done.code == 0
    assert "no evaluation after step 2" in done.err
    assert "No space left on device" in done.err
    assert not (tmp_path / "run" / "evals.jsonl").exists()


def test_a_model_whose_samples_are_no_numbers_is_not_the_best(
    ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: Model, num: int, **options: object) -> np.ndarray:
        return np.full((num, *model.config.data.shape), np.nan, dtype=np.float32)

    monkeypatch.setattr("ict_backends.training.evaluator.sample_images", broken)
    done = train(ict, tmp_path / "run", *EVAL)
    assert done.code == 0
    assert "no evaluation after step 2: an image has values that are NaN or infinite" in done.err
    assert not (tmp_path / "run" / "best").exists()


def test_lines_of_other_numbers_of_samples_are_not_compared(ict: Ict, refused: Refused, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(ict, run, *EVAL, KEEP, "--set=train.checkpoint_every=2", steps=4).code == 0
    first = lines(run)
    (run / "evals.jsonl").write_text(
        "".join(json.dumps({**line, "num": 9999, "value": -1}) + "\n" for line in first[:1])
    )
    folder = RunDir(run).checkpoint_folder(4)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert ict("train", "--resume", f"--out={run}", "--device=cpu").code == 0
    assert load_checkpoint(RunDir(run).checkpoint_of("best")).step == 4  # better than none of as many samples
    (run / "evals.jsonl").write_text("{\n" + json.dumps(first[0]) + "\n")
    refused(1, "evals.jsonl cannot be read: line 1 is damaged", "train", "--resume", f"--out={run}", "--device=cpu")


def test_without_a_number_as_many_are_drawn_as_are_needed() -> None:
    config = load_preset("digits")
    assert evaluation_size(config, 1797) == 1000
    assert evaluation_size(replace(load_preset("cifar10"), eval={"every": 1}), 50_000) == 3073


@pytest.mark.parametrize("metric", ["kid", "sw"])
def test_other_metrics(ict: Ict, tmp_path: Path, metric: str) -> None:
    assert train(ict, tmp_path / "run", *EVAL, f"--set=eval.metric={metric}", steps=2).code == 0
    (line,) = lines(tmp_path / "run")
    assert line["metric"] == metric
    assert np.isfinite(line["value"])


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (2, "eval.every must be >= 0", ["--set=eval.every=-1"]),
        (2, "eval.num must be >= 2", ["--set=eval.num=1"]),
        (1, "eval.num = 60 gives 60 images; pixel-fd needs 65", [*EVAL, "--set=eval.num=60", "--dry-run"]),
        (2, 'eval.metric must be "pixel-fd", "kid" or "sw"', ["--set=eval.metric=fid"]),
        (1, "eval.num = 60 gives 60 images; pixel-fd needs 65", [*EVAL, "--set=eval.num=60"]),
    ],
)
def test_wrong_settings_are_refused_in_one_line(
    refused: Refused, tmp_path: Path, code: int, says: str, arguments: list[str]
) -> None:
    refused(code, re.escape(says), *command(tmp_path / "run", *arguments))


def test_a_run_without_evaluations_has_no_best_checkpoint(refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    refused(1, "has no best checkpoint", "sample", digits_run, "--out", tmp_path / "x.png", "--weights", "best")
    assert load_backend("torch").load_model(digits_run, weights="raw", device="cpu")


def test_classes_are_drawn_in_the_proportions_of_the_data(tmp_path: Path, labelled_run: Path) -> None:
    """As the run's folder tells; in turn if an earlier version wrote it."""
    run = RunDir(shutil.copytree(labelled_run, tmp_path / "run"))
    config = replace(run.load_config(), eval={"every": 10, "num": 8, "metric": "sw"})
    model, drawn = load_backend("torch").load_model(run.path, device="cpu"), []

    class Recording:
        def __init__(self) -> None:
            self.config = config

        def sample(
            self, noises: Any, sigmas: Any, labels: np.ndarray, *, clip_steps: bool, guidance: float, solver: str
        ) -> np.ndarray:
            drawn.append(labels.tolist())
            return model.sample(noises, sigmas, labels)

    images = np.zeros((12, 3, 8, 8), np.uint8)
    checkpoint, record = load_checkpoint(run.latest_checkpoint()), json.loads(run.data_file.read_text())
    for counts, expected in (([9, 0, 3], [0, 0, 2, 0, 0, 0, 2, 0]), (None, [0, 1, 2, 0, 1, 2, 0, 1])):
        run.data_file.write_text(json.dumps(record | {"class_counts": counts}))
        assert Evaluator(run, config, images, first=0).after(10, Recording(), checkpoint) is not None
        assert drawn.pop() == expected
