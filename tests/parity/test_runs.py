"""Runs are one thing for both backends: stopped in one, resumed and sampled in the other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from twins import assert_all_close, assert_close, small_config

from ict_backends import load_backend
from ict_backends.data.dataset import Dataset
from ict_backends.errors import CheckpointError
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.jax.dispatch import train_steps
from ict_backends.jax.weights import from_checkpoint as jax_from_checkpoint
from ict_backends.randomness import image_noises
from ict_backends.runs.checkpoint import load_checkpoint, read_digest
from ict_backends.runs.folder import RunDir, create_run
from ict_backends.runs.state import state_text
from ict_backends.sampling.batches import sample_images

BACKENDS = ["torch", "jax"]
OTHER = {"torch": "jax", "jax": "torch"}
CONFIG = small_config(
    network={"dropout": 0.3},
    train={"checkpoint_every": 6, "keep_checkpoints": 0, "log_every": 3, "total_steps": 24, "label_dropout": 0.3},
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (10, 3, 4, 4), dtype=np.uint8), np.arange(10) % 3)


@pytest.fixture(scope="module")
def runs(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """A finished run of each backend, over three stages, with all its checkpoints. Tests must not change it."""
    found = {}
    for backend in BACKENDS:
        found[backend] = create_run(tmp_path_factory.mktemp("runs") / backend, CONFIG, data)
        if backend == "jax":
            train_steps.clear_cache()
        load_backend(backend).train(CONFIG, data, found[backend], device="cpu")
    return found


def stopped(run: RunDir, folder: Path) -> RunDir:
    """A copy of a run as it was after half of its steps."""
    shutil.copytree(run.path, folder)
    copy = RunDir(folder)
    for checkpoint in copy.checkpoints()[2:]:
        shutil.rmtree(checkpoint)
    assert load_checkpoint(copy.latest_checkpoint()).step == 12
    return copy


def test_training_compiles_once_however_many_stages(runs: dict[str, RunDir]) -> None:
    lines = runs["jax"].metrics_file.read_text().splitlines()
    assert {json.loads(line)["n"] for line in lines} == {3, 5, 9}
    assert train_steps._cache_size() == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_resuming_is_bit_equal_to_not_having_stopped(
    runs: dict[str, RunDir], data: Dataset, tmp_path: Path, backend: str
) -> None:
    run = stopped(runs[backend], tmp_path / "run")
    load_backend(backend).train(CONFIG, data, run, device="cpu", resume=True)
    for name in ("state.safetensors", "state.json"):
        assert (run.latest_checkpoint() / name).read_bytes() == (runs[backend].latest_checkpoint() / name).read_bytes()


@pytest.mark.parametrize("first", BACKENDS)
def test_a_run_stopped_in_one_backend_is_resumed_in_the_other(
    runs: dict[str, RunDir], data: Dataset, tmp_path: Path, first: str
) -> None:
    """Steps, stages and images are the same ones; the noise of a step is each backend's own."""
    run, whole = stopped(runs[first], tmp_path / "run"), load_checkpoint(runs[first].latest_checkpoint())
    half = load_checkpoint(run.latest_checkpoint())
    load_backend(OTHER[first]).train(CONFIG, data, run, device="cpu", resume=True)
    resumed = load_checkpoint(run.latest_checkpoint())
    assert resumed.step == whole.step == 24
    lines = [r.metrics_file.read_text().splitlines() for r in (run, runs[first])]
    stages = [[line.split('"loss"')[0] for line in each] for each in lines]
    assert stages[0] == stages[1]
    assert resumed.loss_scale == whole.loss_scale == {}  # of float16 alone
    for group in ("params", "ema", "first_moment", "second_moment"):
        arrays, expected = getattr(resumed, group), getattr(whole, group)
        # Moments are made of the last few steps' noise: of them, it is the names and shapes that are compared.
        assert_all_close(arrays, expected, 0.1 if group in ("params", "ema") else 10.0)
        with pytest.raises(AssertionError, match="relative difference"):
            assert_all_close(arrays, getattr(half, group), 1e-4)


@pytest.mark.parametrize("trained_in", BACKENDS)
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_what_one_backend_trained_both_sample_alike(runs: dict[str, RunDir], trained_in: str, weights: str) -> None:
    models = {b: load_backend(b).load_model(runs[trained_in].path, weights=weights, device="cpu") for b in BACKENDS}
    labels = np.arange(5) % 3
    for sigmas in ([80.0], [80.0, 0.8], [80.0, 5.0, 0.5, 0.002]):
        noises = image_noises(0, range(5), len(sigmas), CONFIG.data.shape)
        ours, theirs = (models[b].sample(noises, sigmas, labels) for b in BACKENDS)
        assert_close(theirs, ours, 1e-5)
        assert ours.dtype == np.float32
        assert np.abs(ours).max() <= 1
        pictures = [sample_images(models[b], 5, sigmas=sigmas, seed=0, labels=labels, batch=3) for b in BACKENDS]
        assert np.abs(pictures[0] - pictures[1]).max() < 1 / 255
        assert_close(pictures[0], ours, 1e-5)


def test_both_clip_and_take_the_free_network_apart(runs: dict[str, RunDir]) -> None:
    models = [load_backend(b).load_model(runs["torch"].path, device="cpu") for b in BACKENDS]
    rng, labels = np.random.default_rng(0), np.array([2, 0, 1])
    x, sigma = rng.standard_normal((3, 3, 4, 4)).astype(np.float32), np.array([0.002, 0.5, 80.0], np.float32)
    ours, theirs = (model.network(x, 0.25 * np.log(sigma), labels) for model in models)
    assert_close(theirs, ours, 1e-5)
    ours, theirs = (model.consistency(30 * x, sigma, labels) for model in models)
    assert_close(theirs, ours, 1e-5)
    np.testing.assert_array_equal(ours[0], 30 * x[0])
    for model in models:
        sample = model.sample(1e4 * x[None], [0.002], labels)
        assert (sample.min(), sample.max()) == (-1.0, 1.0)


def test_a_checkpoint_that_does_not_fit_is_refused_with_both_shapes(runs: dict[str, RunDir], tmp_path: Path) -> None:
    mesh, whole = jax_devices("cpu"), load_checkpoint(runs["torch"].latest_checkpoint())
    assert int(jax_from_checkpoint(CONFIG, whole, mesh, "it").step) == 24
    with pytest.raises(CheckpointError, match="it: second_moment does not fit the network: missing: conv_in.bias"):
        jax_from_checkpoint(CONFIG, whole._replace(second_moment={}), mesh, "it")
    wider = small_config(network={"channels": 16})
    with pytest.raises(CheckpointError, match=r"params does not fit.*conv_in.weight is \[8, 3, 3, 3\] and not \[16, 3"):
        jax_from_checkpoint(wider, whole, mesh, "it")
    run = RunDir(shutil.copytree(runs["torch"].path, tmp_path / "run"))
    run.config_file.write_text(run.config_file.read_text().replace("channels = 8", "channels = 12"))
    with pytest.raises(CheckpointError, match="network.channels is 12 and was 8"):
        run.load_config()
    latest = run.latest_checkpoint()  # from here on as of an earlier version, which did not write the settings
    (latest / "state.json").write_text(state_text(24, read_digest(latest), None))
    for backend in BACKENDS:
        with pytest.raises(CheckpointError, match=r"conv_in.weight is \[8, 3, 3, 3\] and not \[12, 3, 3, 3\]"):
            load_backend(backend).load_model(run.path, device="cpu")
