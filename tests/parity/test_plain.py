"""What bench/ measures ours against computes the same: network, loss and draw; and the plain steps train."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from twins import assert_close, nchw, nhwc, numpy_batch, small_adm_config, small_config, torch_batch, torch_network

from ict_backends.networks.families import count_parameters
from ict_backends.torch.networks import UNet
from ict_backends.torch.step import batch_loss
from ict_backends.torch.weights import to_arrays
from ict_core import Config, ConfigError, discretization_steps, interval_probabilities, karras_sigmas, load_preset
from ict_core.settings import build_config

BENCH = Path(__file__).resolve().parents[2] / "bench"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLAIN, TORCH, JAX = (load(name) for name in ("plain", "plain_torch", "plain_jax"))
# Two levels with attention at one of them, FIR filters and the pyramid.
WHOLE = {"channel_mult": [1, 2], "attention_resolutions": [4], "num_classes": 0}
CONFIGS = {
    "whole": small_config(data={"shape": [3, 8, 8]}, network=WHOLE),
    "uneven filter": small_config(data={"shape": [1, 8, 8]}, network=WHOLE | {"fir_kernel": [1, 2, 3, 4, 5, 6]}),
    "no filter, positional": small_config(
        data={"shape": [3, 8, 8]},
        network=WHOLE | {"fir_kernel": [], "embedding": "positional", "embedding_scale": 1.0, "skip_rescale": False},
    ),
}


def plain_torch(config: Config, network: UNet) -> Any:
    """The plain network in float64, with the weights of ours."""
    plain = TORCH.Network(config.network, config.data.shape).double()
    plain.load_state_dict({name: torch.tensor(array) for name, array in to_arrays(network).items()})
    return plain


def plain_jax(config: Config, network: UNet) -> Any:
    """The plain network with the weights of ours: each array has the same place, under flax's own name."""
    plain, arrays = JAX.Network(config.network, config.data.shape, nnx.Rngs(0)), to_arrays(network)
    graph, state = nnx.split(plain)

    def filled(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
        last = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(path[-1], path[-1])
        array = arrays.pop(".".join(map(str, (*place(path[:-1]), last))))
        if path[-1] == "kernel":
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        return variable.replace(jnp.asarray(array))

    def place(path: tuple[Any, ...]) -> tuple[Any, ...]:
        """On the way up there is one attention layer, which ours has not in a list."""
        return path[:3] + path[4:] if path[0] == "up" and path[2] == "attention" else path

    flat = nnx.to_flat_state(state)
    weights = nnx.from_flat_state([(path, filled(path, variable)) for path, variable in flat])
    assert not arrays
    return nnx.merge(graph, weights)


def inputs(config: Config) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((3, *config.data.shape)), rng.uniform(-1.5, 1.1, 3)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_plain_torch_network_is_ours(name: str) -> None:
    config = CONFIGS[name]
    network, (x, c_noise) = torch_network(config, "float64"), inputs(config)
    with torch.no_grad():
        expected = network(torch.tensor(x), torch.tensor(c_noise)).numpy()
        actual = plain_torch(config, network)(torch.tensor(x), torch.tensor(c_noise)).numpy()
    # The plain filter is in float32, as are the positional frequencies.
    assert_close(actual, expected, 1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_plain_jax_network_is_ours(name: str) -> None:
    config = CONFIGS[name]
    network, (x, c_noise) = torch_network(config, "float64"), inputs(config)
    with torch.no_grad():
        expected = network(torch.tensor(x), torch.tensor(c_noise)).numpy()
    with jax.enable_x64(True):
        graph, state = nnx.split(plain_jax(config, network))

        def forward(state: Any, x: Any, c_noise: Any) -> Any:
            return nnx.merge(graph, state)(x, c_noise, None, nnx.Rngs(dropout=0))

        actual = nchw(jax.jit(forward)(state, nhwc(x), jnp.asarray(c_noise)))
    assert_close(actual, expected, 1e-6)


def test_the_plain_losses_are_ours() -> None:
    config = CONFIGS["whole"]
    network, arrays = torch_network(config, "float64"), numpy_batch(config, 0, "float64")
    expected = batch_loss(network, config, torch_batch(arrays)).mean.item()
    x, z, lo, hi, weight = (arrays[name] for name in ("x", "z", "sigma_lo", "sigma_hi", "weight"))
    ours = [torch.tensor(a) for a in (x, z, lo, hi, weight)]
    assert math.isclose(
        TORCH.batch_loss(plain_torch(config, network), config, *ours, None, 0).item(), expected, rel_tol=1e-6
    )
    with jax.enable_x64(True):
        arguments = (nhwc(x), nhwc(z), *(jnp.asarray(a) for a in (lo, hi, weight)), None, jax.random.key(0))
        found = float(JAX.batch_loss(plain_jax(config, network), config, *arguments))
    assert math.isclose(found, expected, rel_tol=1e-6)


def test_the_plain_draw_has_our_levels_and_law() -> None:
    config = load_preset("cifar10")
    train, curriculum, noise = config.train, config.curriculum, config.noise
    for step in range(0, train.total_steps, 24_999):
        ours = discretization_steps(step, train.total_steps, s0=curriculum.s0, s1=curriculum.s1)
        assert PLAIN.number_of_levels(config, step) == ours
    sigmas = karras_sigmas(41)
    np.testing.assert_allclose(PLAIN.noise_levels(config, 41), sigmas, rtol=1e-12)
    law = interval_probabilities(sigmas, p_mean=noise.p_mean, p_std=noise.p_std)
    np.testing.assert_allclose(PLAIN.level_probabilities(config, sigmas), law, rtol=1e-10)


def test_the_plain_networks_have_as_many_parameters() -> None:
    config = load_preset("cifar10-tiny")
    network = TORCH.Network(config.network, config.data.shape)
    assert sum(a.numel() for a in network.state_dict().values()) == count_parameters(config)
    state = nnx.eval_shape(lambda: nnx.state(JAX.Network(config.network, config.data.shape, nnx.Rngs(0))))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state)) == count_parameters(config)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_plain_step_learns(backend: str) -> None:
    """One image, with labels and dropout, and so few levels that the loss is no noise."""
    network = {"channels": 8, "channel_mult": [1], "blocks": 1, "num_classes": 3, "dropout": 0.1}
    sections = {"data": {"shape": [1, 4, 4], "flip": True}, "network": network, "curriculum": {"s0": 2, "s1": 2}}
    config = build_config(sections | {"train": {"batch_size": 32, "learning_rate": 3e-3}})
    step = PLAIN.make_step(backend, config, np.full((5, 1, 4, 4), 200, np.uint8), "cpu")
    losses = [step() for _ in range(60)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])


@pytest.mark.parametrize(
    "other",
    [
        {"loss": {"distance": "l2"}},
        {"loss": {"weighting": "one"}},
        {"noise": {"law": "uniform"}},
        {"curriculum": {"schedule": "cm"}},
        {"teacher": {"decay": 0.9}},
        {"teacher": {"share_dropout": False}},
    ],
    ids=str,
)
def test_the_plain_version_has_the_recipe_alone(other: dict[str, dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"the recipe alone, not \w+\.\w+ = "):
        PLAIN.check(small_config(**other))
    PLAIN.check(small_config())


def test_the_plain_version_refuses_adm() -> None:
    with pytest.raises(ConfigError, match="NCSN"):
        PLAIN.make_step("torch", small_adm_config(), np.zeros((1, 3, 4, 4), np.uint8))
