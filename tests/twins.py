"""The same network and training state in both backends, and the comparisons that tests/parity makes with them.

Loaded as `twins` through pytest's `pythonpath`. A backend that is not installed fails here: nothing is skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from hypothesis import strategies as st
from tiny import smallest

from ict_backends.jax import state as jax_state
from ict_backends.jax import step as jax_step
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.jax.device import replicated
from ict_backends.jax.weights import load_arrays as jax_load_arrays
from ict_backends.jax.weights import to_arrays as jax_to_arrays
from ict_backends.torch import state as torch_state
from ict_backends.torch import step as torch_step
from ict_backends.torch.networks import UNet, make_network
from ict_backends.torch.parallel import Processes
from ict_backends.torch.weights import to_arrays as torch_to_arrays
from ict_backends.training.step_plan import plan_step
from ict_core import NO_CLASS, Batch, Config
from ict_core.settings import build_config, merge

Arrays = Mapping[str, np.ndarray]

SMALL = smallest(
    data={"shape": [3, 4, 4]},
    network={"channel_mult": [2], "attention_resolutions": [4], "num_classes": 3},
    train={"total_steps": 24, "learning_rate": 1e-3, "ema_decay": 0.9, "sample_every": 0},
)


def small_config(**sections: Mapping[str, Any]) -> Config:
    """A conditional network of one level with attention, and three stages of training, with these settings changed."""
    return build_config(merge([SMALL, sections]))


def small_adm_config() -> Config:
    """The same images and training for a conditional ADM with dropout."""
    network = {
        "family": "adm",
        "channels": 32,
        "channel_mult": [1],
        "blocks": 1,
        "attention_resolutions": [4],
        "head_channels": 16,
        "dropout": 0.4,
        "num_classes": 3,
    }
    return build_config({**SMALL, "network": network})


@st.composite
def adm_configs(draw: st.DrawFn) -> Config:
    """Small ADM networks, conditional and not, without dropout."""
    levels = draw(st.integers(1, 2))
    height, width = (
        2 ** (levels - 1) * draw(st.integers(3, 4)) for _ in "hw"
    )  # few pixels of one channel a group make an ill-conditioned norm
    network = {
        "family": "adm",
        "channels": 16,
        "channel_mult": draw(st.lists(st.sampled_from([2, 4]), min_size=levels, max_size=levels)),
        "blocks": 1,
        "attention_resolutions": [height >> i for i in draw(st.sets(st.integers(0, 1), max_size=2)) if height >> i],
        "head_channels": draw(st.sampled_from([16, 32])),
        "dropout": 0.0,
        "normalize_qkv": draw(st.booleans()),
        "scale_shift": draw(st.booleans()),
        "resblock_updown": draw(st.booleans()),
        "embedding_scale": draw(st.sampled_from([1.0, 1000.0])),
        "num_classes": draw(st.sampled_from([0, 3])),
        "min_group_channels": draw(st.sampled_from([1, 4])),
    }
    return build_config({"data": {"shape": [draw(st.sampled_from([1, 3])), height, width]}, "network": network})


@st.composite
def ncsnpp_configs(draw: st.DrawFn) -> Config:
    """Small NCSN++ networks of every kind, conditional and not, without dropout."""
    levels = draw(st.integers(1, 3))
    height, width = (2 ** (levels - 1) * draw(st.integers(1, 3)) for _ in "hw")
    network = {
        "channels": 4 * draw(st.integers(1, 3)),
        "channel_mult": draw(st.lists(st.integers(1, 2), min_size=levels, max_size=levels)),
        "blocks": draw(st.integers(1, 2)) if levels == 1 else 1,  # each has to be compiled
        "attention_resolutions": [height >> i for i in draw(st.sets(st.integers(0, 2), max_size=2)) if height >> i],
        "dropout": 0.0,
        "embedding": draw(st.sampled_from(["fourier", "positional"])),
        "embedding_scale": draw(st.sampled_from([0.02, 1.0, 16.0])),
        "fir_kernel": draw(st.sampled_from([[], [1, 3, 3, 1], [1, 1], [1, 2, 4, 1], [1, 2, 3, 4, 5, 6]])),
        "input_pyramid": draw(st.booleans()),
        "skip_rescale": draw(st.booleans()),
        "num_classes": draw(st.sampled_from([0, 3])),
        "labels_at": draw(st.sampled_from(["embedding", "features"])),
    }
    return build_config({"data": {"shape": [draw(st.sampled_from([1, 3])), height, width]}, "network": network})


configs = st.one_of(ncsnpp_configs(), adm_configs())


class Twins(NamedTuple):
    """The same training state in both backends."""

    torch: torch_state.TrainState
    jax: jax_state.TrainState


def torch_network(config: Config, dtype: str, seed: int = 0) -> UNet:
    """A network with random weights in every parameter: no branch that starts at zero hides a difference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(config).to(getattr(torch, dtype))
        with torch.no_grad():
            for p in network.parameters():
                fan_in = p[0].numel() if p.dim() > 1 else 16
                p.copy_(torch.randn(p.shape, dtype=torch.float64) / fan_in**0.5 + (p.dim() == 1))
    return network


def jax_weights(config: Config, network: UNet, dtype: str) -> tuple[nnx.State, nnx.State]:
    """The weights and constants of a network, for JAX; its shapes are kept for settings of other trainings."""
    widened = [
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, dtype), state)
        for state in jax_state.abstract_network(replace(small_config(), network=config.network, data=config.data))[1:]
    ]
    params, constants = jax_load_arrays(widened, torch_to_arrays(network), jax_devices("cpu"), "twin")
    return params, constants


def twins(config: Config, dtype: str, seed: int = 0) -> Twins:
    """The state before the first step, with random weights."""
    network = torch_network(config, dtype, seed)
    ema, teacher = copy.deepcopy(network), copy.deepcopy(network) if config.teacher.averaged else None
    averages = {name: copy.deepcopy(network) for name in config.train.average_exponents}
    ours = torch_state.make_state(config, 0, network, ema, Processes(torch.device("cpu")), teacher, averages)
    params, constants = jax_weights(config, ours.params.network, dtype)
    optimizer = jax.jit(jax_state.make_optimizer(config).init)(params)
    ema = jax.tree.map(jnp.copy, params)
    scale = jax_state.first_loss_scale(config)
    teacher = jax.tree.map(jnp.copy, params) if config.teacher.averaged else None
    averages = {name: jax.tree.map(jnp.copy, params) for name in config.train.average_exponents}
    step = jnp.zeros((), jnp.int32)
    theirs = jax_state.TrainState(step, params, ema, optimizer, constants, scale, teacher, averages)
    # Where a step leaves it: for arrays that lie elsewhere, the first step would be compiled for itself.
    return Twins(ours, jax.device_put(theirs, replicated(jax_devices("cpu"))))


def numpy_batch(config: Config, step: int, dtype: str) -> dict[str, np.ndarray | None]:
    """A batch of random images and noise, at the levels of a step's plan."""
    plan = plan_step(config, step, 10)
    rng = np.random.default_rng(step)
    b, shape, classes = config.train.batch_size, config.data.shape, config.network.num_classes
    return {
        "x": rng.uniform(-1, 1, (b, *shape)).astype(dtype),
        "z": rng.standard_normal((b, *shape)).astype(dtype),
        **{name: values.astype(dtype) for name, values in plan.levels._asdict().items()},
        "labels": np.where(plan.unlabelled, NO_CLASS, np.arange(b) % classes) if classes else None,
    }


Masks = Sequence[np.ndarray] | None


def torch_batch(arrays: Mapping[str, np.ndarray | None], masks: Masks = None, teacher_masks: Masks = None) -> Batch:
    """The batch in torch; masks are [b, c, h, w], the teacher's the same where none are given."""
    tensors = {name: None if a is None else torch.tensor(a) for name, a in arrays.items()}
    pair = [None if m is None else [torch.tensor(a) for a in m] for m in (masks, teacher_masks or masks)]
    return Batch(**tensors, masks=pair[0], teacher_masks=pair[1])


def jax_batch(arrays: Mapping[str, np.ndarray | None], masks: Masks = None, teacher_masks: Masks = None) -> Batch:
    """The batch in JAX; masks are [b, c, h, w], the teacher's the same where none are given."""
    images = {name: nhwc(a) for name, a in arrays.items() if name in ("x", "z")}
    every = {name: None if a is None else jnp.asarray(a) for name, a in (dict(arrays) | images).items()}
    pair = [None if m is None else [nhwc(a) for a in m] for m in (masks, teacher_masks or masks)]
    return Batch(**every, masks=pair[0], teacher_masks=pair[1])


def nhwc(images: np.ndarray) -> jax.Array:
    """[b, c, h, w] to [b, h, w, c]."""
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def nchw(images: jax.Array) -> np.ndarray:
    """[b, h, w, c] to [b, c, h, w]."""
    return np.asarray(images).transpose(0, 3, 1, 2)


def torch_gradient(
    state: torch_state.TrainState, config: Config, batch: Batch
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """[b] losses, and the gradient of their mean by parameter name."""
    names, params = zip(*state.params.network.named_parameters(), strict=True)
    loss = torch_step.batch_loss(state.params.network, config, batch)
    gradient = torch.autograd.grad(loss.mean, params)
    return loss.per_sample.detach().numpy(), {n: g.contiguous().numpy() for n, g in zip(names, gradient, strict=True)}


def jax_gradient(state: jax_state.TrainState, config: Config, batch: Batch) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """[b] losses, and the gradient of their mean by parameter name."""
    gradient, losses = compiled_gradient(state.params, state.constants, config, batch)
    return np.asarray(losses), jax_to_arrays(gradient)


@partial(jax.jit, static_argnames="config")
def compiled_gradient(params: Any, constants: Any, config: Config, batch: Batch) -> Any:
    """The gradient and the [b] losses. What is compiled stays as it was when it was first called."""

    def loss(params: Any) -> Any:
        return jax_step.batch_loss(jax_state.merge_network(config, params, constants), config, batch)

    return jax.grad(loss, has_aux=True)(params)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Equal shapes and dtypes, and ||a - b|| < tolerance ||b||."""
    assert actual.shape == expected.shape, f"shape: {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, f"dtype: {actual.dtype}, expected {expected.dtype}"
    error = float(np.linalg.norm(actual - expected)) / max(float(np.linalg.norm(expected)), 1e-30)
    assert error < tolerance, f"relative difference: {error:.3g}, allowed {tolerance:g}"


def assert_all_close(actual: Arrays, expected: Arrays, tolerance: float) -> None:
    """Equal names, shapes and dtypes; and no array differs by more than `tolerance` of the norm of all of them.

    Of all, because the gradients of some alone are zero but for rounding, as those of biases before a norm.
    """
    assert actual.keys() == expected.keys(), f"names: {actual.keys() ^ expected.keys()}"
    total = sum(float(np.sum(np.square(v))) for v in expected.values()) ** 0.5
    for name, value in expected.items():
        assert actual[name].shape == value.shape, f"shape of {name}: {actual[name].shape}, expected {value.shape}"
        assert actual[name].dtype == value.dtype, f"dtype of {name}: {actual[name].dtype}, expected {value.dtype}"
        error = float(np.linalg.norm(actual[name] - value)) / max(total, 1e-30)
        assert error < tolerance, f"relative difference of {name}: {error:.3g}, allowed {tolerance:g}"
