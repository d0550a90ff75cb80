"""The two backends compute the same: networks, gradients, training steps, checkpoints, samples.

Float64 is what proves it; in float32 the same code can differ by the order of its sums alone.
"""

from __future__ import annotations

import copy
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ict_backends import jax as jax_backend_package  # noqa: F401 - a missing backend fails here, and is not skipped
from ict_backends import load_backend
from ict_backends.checkpoint import load_checkpoint
from ict_backends.data import Dataset
from ict_backends.jax import step as jax_step
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.jax.weights import load_arrays as jax_load_arrays
from ict_backends.jax.weights import to_arrays as jax_to_arrays
from ict_backends.plan import plan_step
from ict_backends.rundir import RunDir, create_run
from ict_backends.sampling import sample_images
from ict_backends.torch import step as torch_step
from ict_backends.torch.weights import to_arrays as torch_to_arrays

from ict_core import Config, ConfigError
from ict_core.config import build_config

EXAMPLES = 3 if os.environ.get("CI") else 2


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """||a - b|| / ||b||."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def worst(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """Of all arrays of a checkpoint's group, over the norm of all: names, shapes and dtypes must be equal."""
    assert a.keys() == b.keys()
    total = sum(float(np.sum(np.square(v))) for v in b.values()) ** 0.5
    assert all(a[k].shape == b[k].shape and a[k].dtype == b[k].dtype for k in b)
    return max(float(np.linalg.norm(a[k] - b[k])) for k in b) / max(total, 1e-30)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Small conditional and unconditional networks of every kind."""
    levels = draw(st.integers(1, 3))
    size = 2 ** (levels - 1) * draw(st.integers(1, 3))
    network = {
        "channels": 4 * draw(st.integers(1, 3)),
        "channel_mult": draw(st.lists(st.integers(1, 2), min_size=levels, max_size=levels)),
        "blocks": draw(st.integers(1, 2)),
        "attention_resolutions": [size >> i for i in draw(st.sets(st.integers(0, 2), max_size=2)) if size >> i],
        "dropout": 0.0,
        "embedding": draw(st.sampled_from(["fourier", "positional"])),
        "embedding_scale": draw(st.sampled_from([0.02, 1.0, 16.0])),
        "fir_kernel": draw(st.sampled_from([[], [1, 3, 3, 1], [1, 1], [1, 2, 4, 1], [1, 2, 3, 4, 5, 6]])),
        "input_pyramid": draw(st.booleans()),
        "skip_rescale": draw(st.booleans()),
        "num_classes": draw(st.sampled_from([0, 3])),
    }
    return build_config({"data": {"shape": [draw(st.sampled_from([1, 3])), size, size]}, "network": network})


SMALL = {
    "data": {"shape": [3, 8, 8]},
    "network": {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [4], "num_classes": 3},
    "curriculum": {"s0": 2, "s1": 8},
    "train": {"total_steps": 24, "batch_size": 4, "learning_rate": 1e-3, "ema_decay": 0.9, "sample_every": 0},
}


class Twins(NamedTuple):
    """The same training state in both backends."""

    torch: torch_step.TrainState
    jax: jax_step.TrainState


def twins(config: Config, dtype: str, seed: int = 0) -> Twins:
    """Random weights in every parameter: no branch that starts at zero hides a difference."""
    state = torch_step.init_state(config, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    state.params.to(getattr(torch, dtype))
    with torch.no_grad():
        for p in state.params.parameters():
            fan_in = p[0].numel() if p.dim() > 1 else 16
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / fan_in**0.5 + (p.dim() == 1))
    state.ema = copy.deepcopy(state.params).requires_grad_(False)
    other = jax_step.init_state(config, jax_devices("cpu"))
    wide = jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, other)
    arrays = torch_to_arrays(state.params)
    params, constants = jax_load_arrays([wide.params, wide.constants], arrays, "twin")
    return Twins(state, wide._replace(params=params, ema=jax.tree.map(jnp.copy, params), constants=constants))


def numpy_batch(config: Config, step: int, dtype: str) -> dict[str, np.ndarray | None]:
    plan = plan_step(config, step, 10)
    rng = np.random.default_rng(step)
    b, shape, classes = config.train.batch_size, config.data.shape, config.network.num_classes
    return {
        "x": rng.uniform(-1, 1, (b, *shape)).astype(dtype),
        "z": rng.standard_normal((b, *shape)).astype(dtype),
        **{name: values.astype(dtype) for name, values in plan.levels._asdict().items()},
        "labels": np.arange(b) % classes if classes else None,
    }


def torch_batch(arrays: dict[str, np.ndarray | None], masks: list[np.ndarray] | None = None) -> torch_step.Batch:
    tensors = {name: None if a is None else torch.tensor(a) for name, a in arrays.items()}
    return torch_step.Batch(**tensors, masks=None if masks is None else [torch.tensor(m) for m in masks])


def jax_batch(arrays: dict[str, np.ndarray | None], masks: list[np.ndarray] | None = None) -> jax_step.Batch:
    images = {name: a.transpose(0, 2, 3, 1) for name, a in arrays.items() if name in ("x", "z")}
    every = {name: None if a is None else jnp.asarray(a) for name, a in (arrays | images).items()}
    return jax_step.Batch(
        **every, masks=None if masks is None else [jnp.asarray(m.transpose(0, 2, 3, 1)) for m in masks]
    )


def torch_gradient(state: torch_step.TrainState, config: Config, batch: torch_step.Batch):
    names, params = zip(*state.params.named_parameters(), strict=True)
    loss = torch_step.batch_loss(state.params, config, batch)
    gradient = torch.autograd.grad(loss.mean, params)
    return loss.per_sample.detach().numpy(), dict(zip(names, (g.contiguous().numpy() for g in gradient), strict=True))


def jax_gradient(state: jax_step.TrainState, config: Config, batch: jax_step.Batch):
    @jax.jit
    def both(params, constants, batch):
        def loss(params):
            return jax_step.batch_loss(nnx.merge(jax_step.network_graph(config), params, constants), config, batch)

        return jax.grad(loss, has_aux=True)(params)

    gradient, losses = both(state.params, state.constants, batch)
    return np.asarray(losses), jax_to_arrays(gradient)


NETWORKS = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@pytest.mark.parametrize(("dtype", "forward", "backward"), [("float64", 1e-10, 1e-10), ("float32", 1e-5, 1e-4)])
@NETWORKS
@given(config=configs(), seed=st.integers(0, 1000))
def test_networks_agree_forward_and_backward(dtype: str, forward: float, backward: float, config: Config, seed) -> None:
    with jax.enable_x64(dtype == "float64"):
        ours, theirs = twins(config, dtype, seed)
        rng = np.random.default_rng(seed)
        x, cotangent = (rng.standard_normal((2, *config.data.shape)).astype(dtype) for _ in range(2))
        c_noise = rng.uniform(-1.5, 1.1, 2).astype(dtype)
        labels = np.array([0, 2]) if config.network.num_classes else None

        tensor = torch.tensor(x, requires_grad=True)
        y = ours.params(tensor, torch.tensor(c_noise), None if labels is None else torch.tensor(labels))
        names, params = zip(*ours.params.named_parameters(), strict=True)
        dx, *gradients = torch.autograd.grad(y, [tensor, *params], torch.tensor(cotangent))

        @jax.jit
        def pull(params, constants, x, cotangent):
            def run(params, x):
                network = nnx.merge(jax_step.network_graph(config), params, constants)
                return network(x, jnp.asarray(c_noise), labels)

            value, back = jax.vjp(run, params, x)
            return value, *back(cotangent)

        def nhwc(a):
            return jnp.asarray(a.transpose(0, 2, 3, 1))

        value, jax_params, jax_dx = pull(theirs.params, theirs.constants, nhwc(x), nhwc(cotangent))
        assert relative(np.asarray(value).transpose(0, 3, 1, 2), y.detach().numpy()) < forward
        assert relative(np.asarray(jax_dx).transpose(0, 3, 1, 2), dx.numpy()) < backward
        expected = {n: g.contiguous().numpy() for n, g in zip(names, gradients, strict=True)}
        assert worst(jax_to_arrays(jax_params), expected) < backward


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-4)])
def test_a_training_step_has_the_same_loss_and_gradient_with_the_same_masks(dtype: str, tolerance: float) -> None:
    config = build_config({**SMALL, "network": {**SMALL["network"], "dropout": 0.4}})
    with jax.enable_x64(dtype == "float64"):
        ours, theirs = twins(config, dtype)
        arrays, rng = numpy_batch(config, 23, dtype), np.random.default_rng(1)
        masks = [rng.random((4, *shape)) >= 0.4 for shape in ours.params.mask_shapes]
        losses, gradient = torch_gradient(ours, config, torch_batch(arrays, masks))
        jax_losses, jax_grad = jax_gradient(theirs, config, jax_batch(arrays, masks))
        assert relative(jax_losses, losses) < tolerance
        assert worst(jax_grad, gradient) < tolerance
        unshared, _ = jax_gradient(theirs, config, jax_batch(arrays, [~m for m in masks]))
        assert relative(unshared, losses) > 1e-2, "other masks must make a difference"


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9)])
def test_twenty_steps_of_radam_across_two_stage_changes_agree(dtype: str, tolerance: float) -> None:
    config = build_config({**SMALL, "network": {**SMALL["network"], "dropout": 0.0}})
    with jax.enable_x64(dtype == "float64"):
        ours, theirs = twins(config, dtype)
        advance = jax.jit(jax_step.train_step, static_argnums=1)
        levels = set()
        for step in range(20):
            arrays = numpy_batch(config, step, dtype)
            levels.add(plan_step(config, step, 10).n)
            losses = torch_step.train_step(ours, config, torch_batch(arrays))
            theirs, jax_losses = advance(theirs, config, jax_batch(arrays))
            assert relative(np.asarray(jax_losses), losses.numpy()) < 100 * tolerance
            if step == 1:  # within the first stage
                compiled = advance._cache_size()
        assert len(levels) >= 3
        assert int(theirs.step) == ours.step == 20
        assert advance._cache_size() == compiled, "a new stage must not compile anything"
        for state, network in ((theirs.params, ours.params), (theirs.ema, ours.ema)):
            assert worst(jax_to_arrays(state, theirs.constants), torch_to_arrays(network)) < tolerance


@pytest.fixture
def data() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (10, 3, 8, 8), dtype=np.uint8), np.arange(10) % 3)


@pytest.mark.parametrize("first", ["jax"])
def test_a_run_stopped_in_one_backend_is_resumed_and_sampled_in_the_other(tmp_path, data: Dataset, first: str) -> None:
    second = {"torch": "jax", "jax": "torch"}[first]
    settings_ = {**SMALL, "train": {**SMALL["train"], "checkpoint_every": 6, "keep_checkpoints": 0, "log_every": 1}}
    config = build_config(settings_)
    run = create_run(tmp_path / "run", config, data)
    load_backend(first).train(config, data, run, device="cpu")
    whole = load_checkpoint(run.latest_checkpoint())
    # Cut back to half of the steps, go on in the other backend.
    for folder in run.checkpoints()[2:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    load_backend(second).train(config, data, RunDir(run.path), device="cpu", resume=True)
    resumed = load_checkpoint(run.latest_checkpoint())
    assert resumed.step == whole.step == 24
    for group in whole._fields[1:]:
        assert getattr(whole, group).keys() == getattr(resumed, group).keys()
    # The noise of the steps is each backend's own, so the weights differ, but not by more than training moved them.
    assert 0 < worst(resumed.params, whole.params) < 0.1
    labels = np.arange(5) % 3
    for sigmas in ([80.0], [80.0, 0.8], [80.0, 5.0, 0.5]):
        pictures = [
            sample_images(
                load_backend(name).load_model(run.path, device="cpu"), 5, sigmas=sigmas, seed=0, labels=labels
            )
            for name in ("torch", "jax")
        ]
        assert pictures[0].dtype == pictures[1].dtype == np.float32
        assert np.abs(pictures[0] - pictures[1]).max() < 1 / 255


def test_a_batch_that_the_devices_cannot_share_is_refused() -> None:
    from ict_backends.errors import UsageError
    from ict_backends.jax.device import check_batch_size

    mesh = jax_devices("cpu")
    check_batch_size(mesh, mesh.size * 3)
    with pytest.raises(UsageError, match="train.batch_size = 7 must be divisible by the number of devices, 2"):
        check_batch_size(type("Mesh", (), {"size": 2})(), 7)


@pytest.mark.parametrize("name", ["warp", "tpu", "cpu:99", "cuda"])
def test_platforms_that_are_not_there_are_refused(name: str) -> None:
    from ict_backends.errors import UsageError

    with pytest.raises(UsageError, match=f"--device {name} is not available"):
        jax_devices(name)


def test_the_checkers_can_fail() -> None:
    one = np.ones((2, 3))
    assert relative(one + 1e-3, one) > 1e-4
    for other in (one.T, one.astype(np.float32)):
        with pytest.raises(AssertionError):
            relative(other, one)
    with pytest.raises(AssertionError):
        worst({"a": one}, {"b": one})
    with pytest.raises(ConfigError):
        build_config({"network": {"channels": 3}})
