"""Resuming with other settings, longer runs, and runs that start from another run's weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from tiny import TINY

from ict_backends import load_backend
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir
from ict_backends.runs.lines import read_lines
from ict_backends.training.step_plan import levels_at, stages_of
from ict_core import load_preset
from ict_core.settings import replace


@pytest.fixture
def run(ict: Ict, tmp_path: Path) -> Path:
    """A finished run of four steps."""
    assert ict("train", f"--out={tmp_path / 'run'}", *TINY, "--steps=4").code == 0
    return tmp_path / "run"


@pytest.mark.parametrize("schedule", ["doubling", "cm", "fixed"])
@pytest.mark.parametrize(("total", "more"), [(2300, 4000), (7, 8), (3, 300)])
def test_a_longer_run_keeps_its_curriculum(schedule: str, total: int, more: int) -> None:
    before = replace(load_preset("digits"), curriculum={"schedule": schedule}, train={"total_steps": total})
    longer = replace(before, curriculum={"steps": total}, train={"total_steps": more})
    levels = [levels_at(longer, step) for step in range(more)]
    assert levels[:total] == [levels_at(before, step) for step in range(total)]
    assert set(levels[total:]) == {levels[total - 1]}
    for config, steps in ((before, total), (longer, more)):
        stages = stages_of(config)
        assert [n for stage in stages for n in [stage.n] * (stage.last - stage.first + 1)] == [
            levels_at(config, step) for step in range(steps)
        ]
    shorter = replace(before, curriculum={"steps": more})
    assert [levels_at(shorter, step) for step in range(total)] == levels_of(schedule, more)[:total]
    assert stages_of(shorter)[-1].last == total - 1


def levels_of(schedule: str, total: int) -> list[int]:
    config = replace(load_preset("digits"), curriculum={"schedule": schedule}, train={"total_steps": total})
    return [levels_at(config, step) for step in range(total)]


def test_a_finished_run_is_made_longer(ict: Ict, run: Path) -> None:
    first = (run / "checkpoints" / "step_00000004" / "state.safetensors").read_bytes()
    longer = ict("train", "--resume", f"--out={run}", "--steps=6", "--device=cpu", "--set=train.keep_checkpoints=0")
    assert longer.code == 0, longer.err
    assert "# from here on, train.total_steps is 6 and no longer 4" in longer.out
    assert (run / "checkpoints" / "step_00000004" / "state.safetensors").read_bytes() == first
    assert load_checkpoint(RunDir(run).latest_checkpoint()).step == 6
    records = read_lines(run / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert {record["n"] for record in records[3:]} == {records[3]["n"]}
    config = RunDir(run).load_config()
    assert (config.train.total_steps, config.curriculum.steps) == (6, 4)
    (change,) = read_lines(run / "changes.jsonl")
    assert change["step"] == 4
    assert change["changed"]["train.total_steps"] == [4, 6]
    assert ict("train", "--resume", f"--out={run}", "--device=cpu").code == 0  # as it is now
    assert len(read_lines(run / "changes.jsonl")) == 1
    assert ict("train", "--resume", f"--out={run}", "--steps=7", "--device=cpu").code == 0
    assert RunDir(run).load_config().curriculum.steps == 4


def test_what_follows_may_have_another_seed_and_rate(ict: Ict, refused: Refused, run: Path, tmp_path: Path) -> None:
    """As after a NaN, which the same seed and rate would meet again."""
    common = ("train", "--resume", f"--out={run}", "--device=cpu")
    refused(2, "has done 4 steps already", *common, "--steps=3")
    refused(2, "train.batch_size is 4 and not 8", *common, "--set=train.batch_size=8")
    changed = ict(*common, "--steps=6", "--seed=7", "--set=train.learning_rate=1e-5", "--on-nonfinite=skip")
    assert changed.code == 0, changed.err
    for words in ("train.seed is 7 and no longer 0", "train.on_nonfinite is skip", "train.learning_rate is 1e-05"):
        assert f"# from here on, {words}" in changed.out
    config = RunDir(run).load_config()
    assert (config.train.seed, config.train.learning_rate, config.train.on_nonfinite) == (7, 1e-5, "skip")
    assert ict("train", f"--out={tmp_path / 'other'}", *TINY, "--steps=4").code == 0
    assert ict("train", "--resume", f"--out={tmp_path / 'other'}", "--device=cpu", "--steps=6").code == 0
    ours, theirs = (load_checkpoint(RunDir(p).latest_checkpoint()).params for p in (run, tmp_path / "other"))
    assert any(not np.array_equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_stops_at_nan_says_how_it_can_go_on(ict: Ict, tmp_path: Path) -> None:
    stopped = ict("train", f"--out={tmp_path / 'run'}", *TINY, "--steps=40", "--set=train.learning_rate=1e30")
    assert stopped.code == 1
    others = "--seed, train.learning_rate, train.clip_norm or --on-nonfinite"
    assert f"--resume goes on from it, also with another {others})" in stopped.err
    hint = "RAdam's first steps are as long as the gradient: train.warmup_steps or train.optimizer=adam may help"
    assert hint in stopped.err


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_first_weights_come_with_what_makes_them_a_function(ict: Ict, tmp_path: Path, backend: str) -> None:
    noise = ["--set=noise.sigma_data=0.7", "--set=noise.sigma_min=0.01", "--set=noise.sigma_max=40"]
    first = [f"--out={tmp_path / 'first'}", *noise, "--set=sample.second_sigma=1.5", "--set=noise.p_mean=-2"]
    assert ict("train", *first, *TINY).code == 0
    init = f"--init={tmp_path / 'first'}"
    common = ("train", init, *TINY, f"--backend={backend}", "--set=train.learning_rate=1e-12", "--steps=1")
    assert ict(*common, f"--out={tmp_path / 'second'}").code == 0
    config = RunDir(tmp_path / "second").load_config()
    assert (config.noise.sigma_data, config.noise.sigma_min, config.noise.sigma_max) == (0.7, 0.01, 40)
    assert config.sample.second_sigma == 1.5
    assert config.noise.p_mean == load_preset("digits").noise.p_mean  # which is of training, and the preset's
    x, sigma = 5 * np.ones((1, 1, 8, 8), np.float32), np.full(1, 5.0)
    engine = load_backend(backend)
    found = [engine.load_model(tmp_path / name, device="cpu").consistency(x, sigma) for name in ("first", "second")]
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    assert ict(*common, f"--out={tmp_path / 'third'}", "--set=noise.sigma_data=0.5").code == 0
    assert RunDir(tmp_path / "third").load_config().noise.sigma_data == 0.5
    assert json.loads((tmp_path / "third" / "data.json").read_text())["count"] == 1797


def write_images(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, np.random.default_rng(seed).integers(0, 256, (80, 8, 8, 1), dtype=np.uint8))


def test_a_relative_path_of_data_means_the_same_from_everywhere(
    ict: Ict, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another folder may hold another set by that name; and a set that has changed is not taken for the run's."""
    write_images(tmp_path / "here" / "x.npz", 0)
    write_images(tmp_path / "there" / "x.npz", 1)
    monkeypatch.chdir(tmp_path / "here")
    assert ict("train", "--data=x.npz", f"--out={tmp_path / 'run'}", *TINY).code == 0
    assert RunDir(tmp_path / "run").load_config().data.source == str(tmp_path / "here" / "x.npz")
    command = ("eval", tmp_path / "run", "--metrics", "sw", "--num", 5, "--device", "cpu")
    first = ict(*command)
    monkeypatch.chdir(tmp_path / "there")
    assert ict(*command).out == first.out
    assert ict("train", "--resume", f"--out={tmp_path / 'run'}", "--device=cpu", "--steps=3").code == 0
    write_images(tmp_path / "here" / "x.npz", 2)
    says = "x.npz holds other images than the run in .* was trained on; say by --data"
    refused(1, says, *command)
    refused(1, says, "search-sigmas", tmp_path / "run", "--metric", "sw", "--num", 5, "--device", "cpu")
    assert ict(*command, "--data", tmp_path / "there" / "x.npz").code == 0
    report = ict("report", tmp_path / "run", "--device", "cpu")
    assert report.code == 0
    assert "without nearest training images: data" in report.err


def test_averages_that_are_mostly_initial_weights_are_said(ict: Ict, tmp_path: Path) -> None:
    """At the end, as long as they are over 5%; not for a run from weights that are trained already."""
    few = ict("train", f"--out={tmp_path / 'few'}", *TINY, "--steps=3", "--set=train.ema_decay=0.99993")
    assert "after 3 steps, 100% of the averaged weights are still the initial ones" in few.err
    assert "train.ema_decay is 0.99993; --weights raw samples the others" in few.err
    some = ict("train", f"--out={tmp_path / 'some'}", *TINY, "--steps=20", "--set=train.ema_decay=0.9")
    assert "after 20 steps, 12% of the averaged weights" in some.err
    assert "train.ema_decay=0.5 would fit" in some.err
    enough = ict("train", f"--out={tmp_path / 'enough'}", *TINY, "--steps=20", "--set=train.ema_decay=0.86")
    assert "averaged weights" not in enough.err
    tuned = ict("train", f"--init={tmp_path / 'few'}", f"--out={tmp_path / 'tuned'}", *TINY)
    assert tuned.code == 0
    assert "averaged weights" not in tuned.err


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(ict: Ict, tmp_path: Path, backend: str) -> None:
    """By --resume once it has its settings; and before that by the same command."""
    run, words = tmp_path / "run", ("train", f"--out={tmp_path / 'run'}", *TINY, f"--backend={backend}")
    run.mkdir()
    (run / "data.json").write_text("{")  # and its other files were not there yet
    (run / ".config.toml.17.tmp").write_text("[tr")
    assert ict(*words).code == 0
    assert not list(run.glob(".*.tmp"))
    weights = RunDir(run).latest_checkpoint() / "state.safetensors"
    expected = weights.read_bytes()
    shutil.rmtree(run / "checkpoints")
    resumed = ict("train", "--resume", f"--out={run}", "--device=cpu", f"--backend={backend}")
    assert resumed.code == 0, resumed.err
    assert "# there is no checkpoint yet: starting from the beginning" in resumed.out
    assert weights.read_bytes() == expected
    assert [record["step"] for record in read_lines(run / "metrics.jsonl")] == [1, 2]


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew(ict: Ict, refused: Refused, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert ict("train", f"--out={run}", *TINY, "--steps=4", "--set=train.checkpoint_every=1").code == 0
    shutil.rmtree(run / "checkpoints")
    refused(1, "has no checkpoints in", "train", "--resume", f"--out={run}", "--device=cpu")


def test_a_run_from_other_weights_has_them_before_it_can_be_resumed(
    ict: Ict, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would go on from weights that are drawn at random."""

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ict_backends.exchange.importing.save_checkpoint", fail)
    assert ict("train", f"--init={run}", f"--out={tmp_path / 'tuned'}", *TINY).code == 1
    assert not (tmp_path / "tuned" / "config.toml").exists()
