"""What `train.precision` does to a step: how far its gradient is from float64's, the same in both backends, and how a
run in float16 keeps its loss's factor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import (
    Arrays,
    assert_all_close,
    jax_batch,
    jax_gradient,
    numpy_batch,
    small_adm_config,
    small_config,
    torch_batch,
    torch_gradient,
    twins,
)

import ict_backends.training.prefetch as feeding
from ict_backends import load_backend
from ict_backends.data.dataset import Dataset
from ict_backends.errors import NonFiniteError
from ict_backends.jax import dispatch as jax_dispatch
from ict_backends.jax import layers as jax_layers
from ict_backends.jax import step as jax_step
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.jax.weights import from_checkpoint as jax_from_checkpoint
from ict_backends.jax.weights import to_checkpoint as jax_to_checkpoint
from ict_backends.runs.checkpoint import Checkpoint, load_checkpoint
from ict_backends.runs.folder import RunDir, create_run
from ict_backends.torch import layers as torch_layers
from ict_backends.torch import step as torch_step
from ict_backends.torch.parallel import Processes
from ict_backends.torch.weights import from_checkpoint as torch_from_checkpoint
from ict_backends.torch.weights import to_checkpoint as torch_to_checkpoint
from ict_backends.training.step_plan import StepPlan
from ict_core import Config, LossScale
from ict_core.loss_scale import FIRST_FACTOR
from ict_core.settings import replace

BACKENDS = ["torch", "jax"]
OTHER = {"torch": "jax", "jax": "torch"}
MESH, CPU = jax_devices("cpu"), Processes(torch.device("cpu"))
# Two levels with FIR filters, the pyramid and attention in the middle; and a network of the other family.
FAMILIES = {
    "ncsnpp": small_config(network={"channel_mult": [1, 2], "attention_resolutions": [], "num_classes": 0}),
    "adm": replace(small_adm_config(), network={"dropout": 0.0}),
}
# The gradient's distance from float64's, relative to its norm. Measured: up to 3e-6, 3e-3 and 2e-2.
BOUNDS = {"float32": 1e-5, "fp16": 1e-2, "bf16": 5e-2}
STEP = 22  # of the last stage, where the teacher is a network at nearly all levels

advance = jax.jit(jax_step.train_step, static_argnums=1)


def distance(found: Arrays, expected: Arrays) -> float:
    """||a - b|| / ||b|| over all arrays."""
    assert found.keys() == expected.keys()
    off = sum(float(np.sum((found[name].astype(np.float64) - expected[name]) ** 2)) for name in expected)
    return (off / sum(float(np.sum(expected[name].astype(np.float64) ** 2)) for name in expected)) ** 0.5


def exact_gradient(config: Config) -> Arrays:
    """That of one batch in float64, in which the backends agree to 1e-10."""
    arrays = numpy_batch(config, STEP, "float64")
    with jax.enable_x64(True):
        ours = twins(config, "float64", seed=1).torch
    return torch_gradient(ours, config, torch_batch(arrays))[1]


def gradients(config: Config) -> dict[str, Arrays]:
    """Those of the same batch, in both backends. Losses and gradients are float32, as the weights are."""
    both, arrays = twins(config, "float32", seed=1), numpy_batch(config, STEP, "float32")
    found = {
        "torch": torch_gradient(both.torch, config, torch_batch(arrays)),
        "jax": jax_gradient(both.jax, config, jax_batch(arrays)),
    }
    for losses, gradient in found.values():
        assert losses.dtype == np.float32
        assert {array.dtype for array in gradient.values()} == {np.dtype(np.float32)}
    return {backend: gradient for backend, (_, gradient) in found.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_precision_is_as_far_from_float64_as_it_should_be_in_both_backends(family: str) -> None:
    """And the backends are no farther from each other than from float64: the precisions mean the same."""
    exact, off = exact_gradient(FAMILIES[family]), {}
    for precision, bound in BOUNDS.items():
        found = gradients(replace(FAMILIES[family], train={"precision": precision}))
        off[precision] = {backend: distance(found[backend], exact) for backend in BACKENDS}
        between = distance(found["torch"], found["jax"])
        figures = ", ".join(f"{backend} {value:.1e}" for backend, value in off[precision].items())
        print(f"{family}, {precision}: {figures} from float64; {between:.1e} from each other")
        assert max(off[precision].values()) < bound
        assert between < 2 * max(off[precision].values())
    for backend in BACKENDS:  # each option acts: 24, 11 and 8 bits
        assert 20 * off["float32"][backend] < off["fp16"][backend]
        assert 2 * off["fp16"][backend] < off["bf16"][backend]


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_in_float16_holds_queries_whose_products_it_cannot(backend: str) -> None:
    """Products of 160,000, beyond float16's 65,504, for scores of 20,000."""
    q, k = np.full((1, 1, 4, 64), 50.0), np.array([50.0, 30.0, -50.0])[:, None] * np.ones((1, 1, 3, 64))
    q[:, :, 1:3] *= -1.0
    v = np.random.default_rng(0).standard_normal((1, 1, 3, 64))
    narrow = [a.astype(np.float16) for a in (q, k, v)]
    if backend == "torch":
        found = torch_layers.dot_product_attention(*map(torch.tensor, narrow)).numpy()
    else:
        found = np.asarray(jax_layers.dot_product_attention(*map(jnp.asarray, narrow)))
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, narrow[2][:, :, [0, 2, 2, 0]])  # each query's nearest key takes all


class Trainee:
    """A training state of one of the backends, behind what the tests do with it."""

    def __init__(self, backend: str, config: Config) -> None:
        self.backend, self.config = backend, config
        self.state: Any = getattr(twins(config, "float32", seed=1), backend)

    def step(self, arrays: dict[str, Any]) -> Any:
        if self.backend == "torch":
            return torch_step.train_step(self.state, self.config, [torch_batch(arrays)])
        self.state, result = advance(self.state, self.config, jax_batch(arrays))
        return result

    def set_factor(self, factor: float) -> None:
        make = torch.tensor if self.backend == "torch" else jnp.asarray
        scale = LossScale(make(np.float32(factor)), make(np.int32(0)))
        self.state = self.state._replace(loss_scale=scale) if self.backend == "jax" else self.state
        if self.backend == "torch":
            self.state.loss_scale = scale

    def saved(self) -> Checkpoint:
        if self.backend == "torch":
            return torch_to_checkpoint(self.state)
        return jax_to_checkpoint(self.config, self.state, MESH)

    def restore(self, checkpoint: Checkpoint) -> None:
        if self.backend == "torch":
            self.state = torch_from_checkpoint(self.config, checkpoint, CPU, "it")
        else:
            self.state = jax_from_checkpoint(self.config, checkpoint, MESH, "it")


def assert_equal(found: Checkpoint, expected: Checkpoint, *groups: str) -> None:
    for group in groups or found._fields[1:]:
        a, b = getattr(found, group), getattr(expected, group)
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype, (group, name)
            np.testing.assert_array_equal(a[name], b[name], f"{group}/{name}")


FP16 = small_config(network={"attention_resolutions": [], "num_classes": 0}, train={"precision": "fp16"})
WEIGHTS = ("params", "ema", "first_moment", "second_moment")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_whose_gradient_overflows_leaves_the_weights_and_halves_the_factor(backend: str) -> None:
    """It is counted as a step; training goes on, as from a checkpoint of it, at the smaller factor."""
    trainee = Trainee(backend, FP16)
    trainee.set_factor(2.0**4)
    for step in range(7):
        assert np.isfinite(float(trainee.step(numpy_batch(FP16, step, "float32")).grad_norm))
    before = trainee.saved()
    assert {a.dtype for group in WEIGHTS for a in getattr(before, group).values()} == {np.dtype("float32")}
    assert before.loss_scale["factor"] == 2.0**4
    assert before.loss_scale["good_steps"] == 7
    trainee.set_factor(2.0**24)
    result = trainee.step(numpy_batch(FP16, 7, "float32"))
    assert np.isfinite(np.asarray(result.losses)).all()
    assert not np.isfinite(float(result.grad_norm))
    after = trainee.saved()
    assert_equal(after, before, *WEIGHTS)
    assert after.step == 8
    assert after.loss_scale["factor"] == 2.0**23
    assert after.loss_scale["good_steps"] == 0

    trainee.set_factor(2.0**4)
    trainee.step(numpy_batch(FP16, 8, "float32"))
    on = trainee.saved()
    with pytest.raises(AssertionError):
        assert_equal(on, before, "params")
    trainee.restore(after)
    trainee.set_factor(2.0**4)
    trainee.step(numpy_batch(FP16, 8, "float32"))
    assert_equal(trainee.saved(), on)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_gradients_are_kept_by_the_factor(backend: str) -> None:
    """With losses of a ten-millionth, whose gradients float16 cannot hold; the first moment is a tenth of them."""
    arrays = numpy_batch(FP16, STEP, "float32")
    arrays["weight"] = arrays["weight"] * np.float32(1e-7)
    off, exact = {}, Trainee("torch", replace(FP16, train={"precision": "float32"}))
    exact.step(arrays)
    for factor in (1.0, 2.0**16):
        trainee = Trainee(backend, FP16)
        trainee.set_factor(factor)
        trainee.step(arrays)
        off[factor] = distance(trainee.saved().first_moment, exact.saved().first_moment)
    assert off[2.0**16] < BOUNDS["fp16"]
    assert off[1.0] > 10 * BOUNDS["fp16"]


@pytest.mark.parametrize("first", BACKENDS)
def test_a_checkpoint_carries_the_factor_to_the_other_backend(first: str) -> None:
    ours, theirs = Trainee(first, FP16), Trainee(OTHER[first], FP16)
    ours.set_factor(2.0**5)
    for step in range(3):
        ours.step(numpy_batch(FP16, step, "float32"))
    whole = ours.saved()
    theirs.restore(whole)
    assert_equal(theirs.saved(), whole)
    assert whole.loss_scale["good_steps"] == 3
    arrays = numpy_batch(FP16, 3, "float32")
    ours.step(arrays)
    theirs.step(arrays)
    assert_equal(theirs.saved(), ours.saved(), "loss_scale")
    assert_all_close(theirs.saved().params, ours.saved().params, 1e-3)


RUN = small_config(
    network={"dropout": 0.3, "attention_resolutions": []},
    train={"precision": "fp16", "checkpoint_every": 6, "keep_checkpoints": 0, "log_every": 6, "total_steps": 18},
)


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (10, 3, 4, 4), dtype=np.uint8), np.arange(10) % 3)


def change_plans(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, np.ndarray], None]) -> None:
    """Let a function of a step and its [b] weights, which it may write into, change what a run does."""
    original = feeding.plan_step

    def plan_step(config: Config, step: int, count: int) -> StepPlan:
        plan = original(config, step, count)
        change(step, plan.levels.weight)
        return plan

    monkeypatch.setattr(feeding, "plan_step", plan_step)


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The factor doubles after two steps, and losses are large: it rises until gradients overflow, and falls."""

    def enlarge(step: int, weights: np.ndarray) -> None:
        weights *= 100

    change_plans(monkeypatch, enlarge)
    monkeypatch.setattr("ict_core.loss_scale._PATIENCE", 2)
    jax_dispatch.train_steps.clear_cache()
    yield
    jax_dispatch.train_steps.clear_cache()


def trained(backend: str, config: Config, data: Dataset, path: Path) -> RunDir:
    run = create_run(path, config, data)
    load_backend(backend).train(config, data, run, device="cpu")
    return run


def records(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def test_resuming_a_run_in_float16_is_bit_equal_to_not_having_stopped(
    restless: None, data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Steps whose gradient overflows do not stop it: the log counts them, and the end tells of them."""
    for backend in BACKENDS:
        whole = trained(backend, RUN, data, tmp_path / backend / "whole")
        log = records(whole)
        skipped = sum(record.get("skipped", 0) for record in log)
        assert skipped > 0
        assert all(np.isfinite(record.get("loss", 0.0)) for record in log)
        assert all(np.isfinite(record.get("grad_norm_max", 0.0)) for record in log)
        error = capfd.readouterr().err
        assert f"{skipped} steps were skipped" in error
        assert "steps up to" not in error
        factors = [float(load_checkpoint(folder).loss_scale["factor"]) for folder in whole.checkpoints()]
        assert factors[1] != FIRST_FACTOR
        stopped = RunDir(shutil.copytree(whole.path, tmp_path / backend / "stopped"))
        shutil.rmtree(stopped.latest_checkpoint())
        other = RunDir(shutil.copytree(stopped.path, tmp_path / backend / "other"))
        load_backend(backend).train(RUN, data, stopped, device="cpu", resume=True)
        for name in ("state.safetensors", "state.json"):
            assert (stopped.latest_checkpoint() / name).read_bytes() == (whole.latest_checkpoint() / name).read_bytes()
        load_backend(OTHER[backend]).train(RUN, data, other, device="cpu", resume=True)
        last = load_checkpoint(other.latest_checkpoint())
        assert last.step == RUN.train.total_steps
        assert last.loss_scale.keys() == {"factor", "good_steps"}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_other_runs_have_no_factor(precision: str) -> None:
    config = replace(FP16, train={"precision": precision})
    for backend in BACKENDS:
        assert Trainee(backend, config).saved().loss_scale == {}


def spoil(step: int, weights: np.ndarray) -> None:
    """Make a loss of step 5 infinite."""
    if step == 4:
        weights[1] = np.inf


def test_a_loss_that_is_not_finite_stops_a_run_in_float16(
    monkeypatch: pytest.MonkeyPatch, data: Dataset, tmp_path: Path
) -> None:
    change_plans(monkeypatch, spoil)
    with pytest.raises(NonFiniteError, match="loss is inf at step 5"):
        trained("torch", RUN, data, tmp_path / "stop")


def test_and_is_skipped_there_on_request(
    monkeypatch: pytest.MonkeyPatch, data: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change_plans(monkeypatch, spoil)
    run = trained("torch", replace(RUN, train={"on_nonfinite": "skip"}), data, tmp_path / "skip")
    assert records(run)[0]["skipped"] == 1
    assert load_checkpoint(run.latest_checkpoint()).step == 18
    assert "steps up to step 6 are skipped" in capfd.readouterr().err
