"""Power-function averages of the weights: alike in both backends, and as their profiles say, however a run goes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from twins import assert_all_close, assert_close, jax_batch, numpy_batch, small_config, torch_batch, twins

from ict_backends import load_backend
from ict_backends.data.dataset import Dataset
from ict_backends.errors import CheckpointError
from ict_backends.jax import step as jax_step
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.jax.dispatch import train_steps
from ict_backends.jax.weights import from_checkpoint as jax_from_checkpoint
from ict_backends.jax.weights import to_checkpoint as jax_to_checkpoint
from ict_backends.randomness import image_noises
from ict_backends.runs.checkpoint import Checkpoint, load_checkpoint
from ict_backends.runs.folder import RunDir, create_run
from ict_backends.torch import step as torch_step
from ict_backends.torch.parallel import Processes
from ict_backends.torch.weights import from_checkpoint as torch_from_checkpoint
from ict_backends.torch.weights import to_checkpoint as torch_to_checkpoint
from ict_backends.training.step_plan import average_decays
from ict_core import Config, power_profile

BACKENDS = ["torch", "jax"]
OTHER = {"torch": "jax", "jax": "torch"}
LENGTHS = {"ema_sigma_rel": [0.2, 0.05]}
STEPS = 8
advance = jax.jit(jax_step.train_step, static_argnums=1)
Arrays = Mapping[str, np.ndarray]


def walk(backend: str, config: Config, dtype: str, spoilt: tuple[int, ...] = ()) -> list[Checkpoint]:
    """The checkpoint after each step; the images of the steps `spoilt` have a NaN."""
    ours, theirs = twins(config, dtype)
    found = []
    for step in range(STEPS):
        arrays, decays = numpy_batch(config, step, dtype), average_decays(config, step)
        if step in spoilt:
            assert arrays["x"] is not None
            arrays["x"][0, 0, 0, 0] = np.nan
        if backend == "torch":
            torch_step.train_step(ours, config, [torch_batch(arrays)], average_decays=decays)
            found.append(torch_to_checkpoint(ours))
        else:
            rates = {name: 1.0 - decay for name, decay in decays.items()}
            theirs, _ = advance(theirs, config, jax_batch(arrays), average_rates=rates)
            found.append(jax_to_checkpoint(config, theirs, jax_devices("cpu")))
    return found


def by_profile(every: list[Checkpoint], gamma: float) -> Arrays:
    """The weights after each step, by the shares that the profile gives them."""
    profile = power_profile(len(every), gamma)
    return {
        name: sum(share * after.params[name].astype(np.float64) for share, after in zip(profile, every, strict=True))
        for name in every[0].params
    }


def test_the_same_steps_lead_to_the_same_averages() -> None:
    config = small_config(train=LENGTHS)
    with jax.enable_x64(True):
        ours, theirs = (walk(backend, config, "float64")[-1] for backend in BACKENDS)
    assert list(ours.averages) == ["0.2", "0.05"]
    for name in ours.averages:
        assert_all_close(theirs.averages[name], ours.averages[name], 1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_averages_are_the_weights_of_each_step_by_their_profile(backend: str) -> None:
    """Those before the first step, which are random, have no part in them."""
    config = small_config(train=LENGTHS)
    with jax.enable_x64(True):
        every = walk(backend, config, "float64")
    for name, gamma in config.train.average_exponents.items():
        for n in (1, 2, STEPS):
            assert_all_close(every[n - 1].averages[name], by_profile(every[:n], gamma), 1e-12)
        assert all(np.array_equal(every[0].averages[name][k], v) for k, v in every[0].params.items())
    with pytest.raises(AssertionError, match="relative difference"):
        assert_all_close(every[-1].averages["0.2"], every[-1].averages["0.05"], 1e-7)


@pytest.mark.parametrize("settings", [{"on_nonfinite": "skip"}, {"precision": "fp16"}], ids=["skip", "fp16"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_is_skipped_counts_with_the_weights_as_they_are(backend: str, settings: dict[str, Any]) -> None:
    config = small_config(train=LENGTHS | settings)
    every = walk(backend, config, "float32", spoilt=(0, 5))
    assert all(np.array_equal(every[5].params[k], v) for k, v in every[4].params.items())
    for name, gamma in config.train.average_exponents.items():
        expected = {k: v.astype(np.float32) for k, v in by_profile(every, gamma).items()}
        assert_all_close(every[-1].averages[name], expected, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_else_changes(backend: str) -> None:
    """The weights and all else of a run are bit-equal with averages and without."""
    with jax.enable_x64(True):
        plain, averaged = (walk(backend, small_config(train=train), "float64")[-1] for train in ({}, LENGTHS))
    assert plain.averages == {}
    for group in ("params", "ema", "first_moment", "second_moment"):
        assert all(np.array_equal(getattr(averaged, group)[k], v) for k, v in getattr(plain, group).items())


CONFIG = small_config(
    network={"dropout": 0.3},
    train=LENGTHS | {"checkpoint_every": 6, "keep_checkpoints": 0, "log_every": 3, "total_steps": 24, "micro_batch": 2},
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (10, 3, 4, 4), dtype=np.uint8), np.arange(10) % 3)


@pytest.fixture(scope="module")
def runs(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """A finished run of each backend with all its checkpoints. Tests must not change it."""
    found = {}
    for backend in BACKENDS:
        found[backend] = create_run(tmp_path_factory.mktemp("runs") / backend, CONFIG, data)
        train_steps.clear_cache()
        load_backend(backend).train(CONFIG, data, found[backend], device="cpu")
    return found


def resumed(run: RunDir, folder: Path, backend: str, data: Dataset) -> RunDir:
    """A copy of a run whose second half is done again."""
    copy = RunDir(shutil.copytree(run.path, folder))
    for checkpoint in copy.checkpoints()[2:]:
        shutil.rmtree(checkpoint)
    load_backend(backend).train(CONFIG, data, copy, device="cpu", resume=True)
    return copy


@pytest.mark.parametrize("backend", BACKENDS)
def test_resuming_is_bit_equal_and_compiles_once(
    runs: dict[str, RunDir], data: Dataset, tmp_path: Path, backend: str
) -> None:
    run = resumed(runs[backend], tmp_path / "run", backend, data)
    files = [r.latest_checkpoint() / "state.safetensors" for r in (run, runs[backend])]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("first", BACKENDS)
def test_a_run_goes_on_in_the_other_backend(runs: dict[str, RunDir], data: Dataset, tmp_path: Path, first: str) -> None:
    run = resumed(runs[first], tmp_path / "run", OTHER[first], data)
    found, expected = (load_checkpoint(r.latest_checkpoint()) for r in (run, runs[first]))
    half = load_checkpoint(run.checkpoints()[1])
    assert found.averages.keys() == expected.averages.keys() == {"0.05", "0.2"}
    for name, arrays in expected.averages.items():
        assert_all_close(found.averages[name], arrays, 0.1)
        with pytest.raises(AssertionError, match="relative difference"):
            assert_all_close(found.averages[name], half.averages[name], 1e-4)


@pytest.mark.parametrize("trained_in", BACKENDS)
def test_both_backends_sample_from_an_average(runs: dict[str, RunDir], trained_in: str) -> None:
    path, noises = runs[trained_in].path, image_noises(0, range(5), 1, CONFIG.data.shape)
    models = [[load_backend(b).load_model(path, weights=w, device="cpu") for b in BACKENDS] for w in ("0.05", "0.2")]
    drawn = [[model.sample(noises, [80.0], np.arange(5) % 3) for model in both] for both in models]
    for ours, theirs in drawn:
        assert_close(theirs, ours, 1e-5)
    assert not np.array_equal(drawn[0][0], drawn[1][0])


def test_a_checkpoint_without_the_averages_is_refused_but_before_the_first_step(runs: dict[str, RunDir]) -> None:
    """A run that starts from other weights begins with averages equal to them."""
    mesh, cpu = jax_devices("cpu"), Processes(torch.device("cpu"))
    without = load_checkpoint(runs["torch"].latest_checkpoint())._replace(averages={})
    for load in (
        lambda c: torch_from_checkpoint(CONFIG, c, cpu, "it"),
        lambda c: jax_from_checkpoint(CONFIG, c, mesh, "it"),
    ):
        with pytest.raises(CheckpointError, match="it has no average of the length 0.2, which train.ema_sigma_rel"):
            load(without)
        assert sorted(load(without._replace(step=0)).averages) == ["0.05", "0.2"]
