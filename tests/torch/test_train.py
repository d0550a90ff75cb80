"""The training loop of the torch backend: steps, files, resuming, stopping."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ict_backends import load_backend
from ict_backends.data.dataset import Dataset
from ict_backends.errors import NonFiniteError
from ict_backends.runs import checkpoint_writer
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir, create_run
from ict_backends.torch.state import TrainState
from ict_backends.torch.step import StepResult
from ict_backends.training.step_plan import StepPlan, plan_step
from ict_core import Batch, Config

torch_backend = load_backend("torch")


def train(path: Path, config: Config, data: Dataset, *, resume: bool = False) -> RunDir:
    run = RunDir(path) if resume else create_run(path, config, data)
    torch_backend.train(config, data, run, device="cpu", resume=resume)
    return run


def metrics(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def assert_equal_checkpoints(one: Path, other: Path) -> None:
    a, b = load_checkpoint(one), load_checkpoint(other)
    assert a.step == b.step
    for group in a._fields[1:]:
        left, right = getattr(a, group), getattr(b, group)
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[name], right[name]) for name in left), group


def test_a_run_leaves_what_it_says_and_does_every_step(
    tmp_path: Path, tiny_config: Callable[..., Config], tiny_data: Dataset
) -> None:
    run = train(tmp_path / "run", tiny_config(train={"total_steps": 7, "sample_every": 3}), tiny_data)
    assert [c.name for c in run.checkpoints()] == ["step_00000007"]
    assert load_checkpoint(run.latest_checkpoint()).step == 7
    assert sorted(p.name for p in (run.path / "samples").iterdir()) == [f"step_{s:08d}.png" for s in (3, 6, 7)]
    assert [m["step"] for m in metrics(run)] == [2, 4, 6, 7]
    assert [m["n"] for m in metrics(run)] == [3, 5, 9, 9]


def test_the_same_command_gives_the_same_weights_and_another_seed_others(
    tmp_path: Path, tiny_config: Callable[..., Config], tiny_data: Dataset
) -> None:
    runs = [train(tmp_path / str(i), tiny_config(train={"seed": seed}), tiny_data) for i, seed in enumerate((0, 0, 1))]
    latest = [run.latest_checkpoint() for run in runs]
    assert_equal_checkpoints(latest[0], latest[1])
    with pytest.raises(AssertionError):
        assert_equal_checkpoints(latest[0], latest[2])


@pytest.mark.parametrize("stop", [1, 5, 6])
def test_resuming_is_bit_equal_to_not_having_stopped(
    tmp_path: Path, tiny_config: Callable[..., Config], tiny_data: Dataset, stop: int
) -> None:
    """Stops within and at the ends of stages, and in the middle of an epoch of 10 images in batches of 6."""
    config = tiny_config(train={"checkpoint_every": 1, "keep_checkpoints": 0, "log_every": 1})
    whole = train(tmp_path / "whole", config, tiny_data)
    shutil.copytree(whole.path, tmp_path / "stopped")
    stopped = RunDir(tmp_path / "stopped")
    for folder in stopped.checkpoints()[stop:]:
        shutil.rmtree(folder)
    train(stopped.path, config, tiny_data, resume=True)
    assert_equal_checkpoints(whole.latest_checkpoint(), stopped.latest_checkpoint())
    losses = [[(m["step"], m["n"], m["loss"]) for m in metrics(run)] for run in (whole, stopped)]
    assert losses[0] == losses[1]


def test_resuming_a_finished_run_changes_nothing(
    tmp_path: Path, tiny_config: Callable[..., Config], tiny_data: Dataset
) -> None:
    run = train(tmp_path / "run", tiny_config(), tiny_data)
    before = run.latest_checkpoint().joinpath("state.safetensors").read_bytes()
    train(run.path, tiny_config(), tiny_data, resume=True)
    assert run.latest_checkpoint().joinpath("state.safetensors").read_bytes() == before


def test_a_nonfinite_loss_stops_the_run_and_names_the_place(
    tmp_path: Path, tiny_config: Callable[..., Config], tiny_data: Dataset
) -> None:
    config = tiny_config(train={"learning_rate": 1e30, "checkpoint_every": 1, "log_every": 4, "seed": 3})
    with pytest.raises(NonFiniteError, match=r"step \d+.*seed 3.*last good checkpoint") as caught:
        train(tmp_path / "run", config, tiny_data)
    run = RunDir(tmp_path / "run")
    for folder in run.checkpoints():
        checkpoint = load_checkpoint(folder)
        assert all(np.isfinite(a).all() for group in checkpoint[1:] for a in group.values())
    assert (str(run.checkpoints()[-1]) if run.checkpoints() else "none") in str(caught.value)


def test_the_checkpoint_that_is_being_written_is_waited_for_before_the_last_good_one_is_named(
    tmp_path: Path, tiny_config: Callable[..., Config], tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = checkpoint_writer.save_checkpoint

    def slowly(*arguments: Any, **options: Any) -> Path:
        time.sleep(0.3)
        return original(*arguments, **options)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", slowly)
    config = tiny_config(train={"learning_rate": 1e30, "checkpoint_every": 1, "log_every": 4})
    with pytest.raises(NonFiniteError, match="at step 2 .*last good checkpoint: .*step_00000001"):
        train(tmp_path / "run", config, tiny_data)


def test_a_nan_in_the_middle_of_a_logging_interval_is_traced_to_its_step_and_level(
    tmp_path: Path, tiny_config: Callable[..., Config], tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("ict_backends.torch.train")
    original = module.train_step

    def spoiled(state: TrainState, config: Config, batches: Iterable[Batch], **options: Any) -> StepResult:
        result = original(state, config, batches, **options)
        if state.step == 6:
            result.losses[2] = float("nan")
        return result

    monkeypatch.setattr(module, "train_step", spoiled)
    config = tiny_config(train={"log_every": 4, "checkpoint_every": 4})
    with pytest.raises(NonFiniteError, match=r"loss is nan at step 6 \(N = 5, sigma .* -> .*, seed 0\).*step_00000004"):
        train(tmp_path / "run", config, tiny_data)
    lo = plan_step(config, 5, 10).levels.sigma_lo[2]
    with pytest.raises(NonFiniteError, match=f"sigma {lo:.4g} ->"):
        train(tmp_path / "again", config, tiny_data)


def test_steps_that_are_not_finite_are_skipped_and_counted(
    tmp_path: Path,
    tiny_config: Callable[..., Config],
    tiny_data: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """With an infinite loss in step 5, by the noise level of one image."""
    import ict_backends.training.prefetch as feeding

    original = feeding.plan_step

    def plan_step(config: Config, step: int, count: int) -> StepPlan:
        plan = original(config, step, count)
        if step == 4:
            plan.levels.weight[1] = np.inf
        return plan

    monkeypatch.setattr(feeding, "plan_step", plan_step)
    run = train(tmp_path / "skip", tiny_config(train={"on_nonfinite": "skip", "log_every": 2}), tiny_data)
    lines = metrics(run)
    assert [line.get("skipped", 0) for line in lines] == [0, 0, 1, 0, 0]
    assert all(np.isfinite([line["loss"], line["grad_norm_max"]]).all() for line in lines)
    error = capfd.readouterr().err
    assert "1 steps up to step 6 are skipped" in error
    assert "1 steps were skipped" in error
    with pytest.raises(NonFiniteError, match="loss is inf at step 5"):
        train(tmp_path / "stop", tiny_config(), tiny_data)


def test_a_spike_is_counted_in_its_stretch_of_the_log(
    tmp_path: Path, tiny_config: Callable[..., Config], tiny_data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ict_backends.training.prefetch as feeding

    original = feeding.plan_step

    def plan_step(config: Config, step: int, count: int) -> StepPlan:
        plan = original(config, step, count)
        plan.levels.weight[:] *= 100 if step == 6 else 1
        return plan

    monkeypatch.setattr(feeding, "plan_step", plan_step)
    run = train(tmp_path / "run", tiny_config(train={"log_every": 5}), tiny_data)
    assert [line["spikes"] for line in metrics(run)] == [0, 1]
    assert metrics(run)[1]["loss_max"] > 4 * metrics(run)[0]["loss_max"]


def test_only_the_newest_checkpoints_are_kept(
    tmp_path: Path, tiny_config: Callable[..., Config], tiny_data: Dataset
) -> None:
    config = tiny_config(train={"checkpoint_every": 2, "keep_checkpoints": 3})
    run = train(tmp_path / "run", config, tiny_data)
    assert [c.name for c in run.checkpoints()] == [f"step_{s:08d}" for s in (6, 8, 10)]


def test_training_on_digits_learns(tmp_path: Path) -> None:
    """A few steps of the real preset bring the samples far closer to the digits."""
    from ict_backends.data.dataset import load_data
    from ict_backends.images import to_float
    from ict_backends.measuring.distances import frechet_distance, moments
    from ict_backends.sampling.batches import sample_images
    from ict_core import load_preset
    from ict_core.settings import replace

    data = load_data("digits")
    config = replace(load_preset("digits"), train={"total_steps": 100, "ema_decay": 0.9, "sample_every": 0})
    config = replace(config, curriculum={"s0": 10, "s1": 10})
    run = train(tmp_path / "run", config, data)
    model = torch_backend.load_model(run.path, device="cpu")
    samples = sample_images(model, 500, sigmas=[80.0], seed=0).reshape(500, -1)
    reference = to_float(data.images).reshape(1797, -1)
    untrained = np.zeros_like(samples) + 1e-3 * samples
    real = moments(reference)
    assert frechet_distance(moments(samples), real) < 0.5 * frechet_distance(moments(untrained), real)
