"""The networks of the two backends are one function: values and gradients, for drawn settings and weights."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_profile import COMPILED
from twins import assert_all_close, assert_close, configs, jax_weights, nchw, nhwc, small_config, torch_network

from ict_backends.jax.state import merge_network
from ict_backends.jax.weights import to_arrays as jax_to_arrays
from ict_backends.torch.networks import UNet
from ict_core import NO_CLASS, Config

# dtype -> tolerance of values, of gradients. Float64 is what proves it: in float32 the same code differs by the
# order of its sums alone.
TOLERANCES = {"float64": (1e-10, 1e-10), "float32": (1e-5, 1e-4)}


class Result(NamedTuple):
    """F of some images, and what the pullback of a cotangent gives: the gradients of input and weights."""

    output: np.ndarray
    input_gradient: np.ndarray
    gradients: dict[str, np.ndarray]


class Inputs(NamedTuple):
    """What a network is given, and a cotangent for its output; [b, c, h, w]."""

    x: np.ndarray
    c_noise: np.ndarray
    labels: np.ndarray | None
    cotangent: np.ndarray


def draw_inputs(config: Config, dtype: str, seed: int, batch: int) -> Inputs:
    rng = np.random.default_rng(seed)
    x, cotangent = (rng.standard_normal((batch, *config.data.shape)).astype(dtype) for _ in range(2))
    labels = rng.integers(NO_CLASS, config.network.num_classes, batch) if config.network.num_classes else None
    return Inputs(x, rng.uniform(-1.5, 1.1, batch).astype(dtype), labels, cotangent)


def run_torch(network: UNet, inputs: Inputs) -> Result:
    x = torch.tensor(inputs.x, requires_grad=True)
    labels = None if inputs.labels is None else torch.tensor(inputs.labels)
    output = network(x, torch.tensor(inputs.c_noise), labels)
    names, params = zip(*network.named_parameters(), strict=True)
    dx, *gradients = torch.autograd.grad(output, [x, *params], torch.tensor(inputs.cotangent))
    by_name = {n: g.contiguous().numpy() for n, g in zip(names, gradients, strict=True)}
    return Result(output.detach().numpy(), dx.numpy(), by_name)


def run_jax(weights: tuple[Any, Any], config: Config, inputs: Inputs) -> Result:
    @jax.jit
    def pull(params: Any, constants: Any, x: Any, c_noise: Any, labels: Any, cotangent: Any) -> Any:
        def forward(params: Any, x: Any) -> Any:
            return merge_network(config, params, constants)(x, c_noise, labels)

        value, back = jax.vjp(forward, params, x)
        return value, *back(cotangent)

    labels = None if inputs.labels is None else jnp.asarray(inputs.labels)
    value, gradients, dx = pull(*weights, nhwc(inputs.x), jnp.asarray(inputs.c_noise), labels, nhwc(inputs.cotangent))
    return Result(nchw(value), nchw(dx), jax_to_arrays(gradients))


def assert_networks_agree(actual: Result, expected: Result, dtype: str) -> None:
    forward, backward = TOLERANCES[dtype]
    assert_close(actual.output, expected.output, forward)
    assert_close(actual.input_gradient, expected.input_gradient, backward)
    assert_all_close(actual.gradients, expected.gradients, backward)


@settings(COMPILED)
@given(config=configs, seed=st.integers(0, 1000), batch=st.integers(1, 3))
def test_networks_agree_forward_and_backward(config: Config, seed: int, batch: int) -> None:
    # Each has to be compiled anew: float32, which proves less, of every fourth one.
    for dtype in TOLERANCES if seed % 4 == 0 else ["float64"]:
        with jax.enable_x64(dtype == "float64"):
            network, inputs = torch_network(config, dtype, seed), draw_inputs(config, dtype, seed, batch)
            found = run_jax(jax_weights(config, network, dtype), config, inputs)
            assert_networks_agree(found, run_torch(network, inputs), dtype)


@pytest.fixture(scope="module")
def results() -> tuple[Result, Result]:
    """JAX's and torch's, equal as they should be."""
    config = small_config(data={"shape": [3, 8, 8]}, network={"channel_mult": [1, 2]})
    network, inputs = torch_network(config, "float32"), draw_inputs(config, "float32", 0, 2)
    return run_jax(jax_weights(config, network, "float32"), config, inputs), run_torch(network, inputs)


def spoil(result: Result, name: str) -> Result:
    output, gradients = result.output.copy(), dict(result.gradients)
    weight = "conv_out.weight"
    match name:
        case "value":
            output[0, 1, 2, 3] += 1e-3 * np.linalg.norm(output)
        case "value of a gradient":
            gradients[weight] = gradients[weight] * 1.01
        case "dtype":
            output = output.astype(np.float64)
        case "dtype of a gradient":
            gradients[weight] = gradients[weight].astype(np.float64)
        case "shape":
            output = output[..., None]
        case "batch":
            output = output[:1]
        case "transposed axes":
            output = output.transpose(0, 1, 3, 2)
        case "transposed axes of a gradient":
            gradients[weight] = gradients[weight].transpose(0, 1, 3, 2)
        case "a gradient left out":
            del gradients[weight]
        case "not a number":
            output[0, 0, 0, 0] = np.nan
    return result._replace(output=output, gradients=gradients)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("value", "relative difference"),
        ("value of a gradient", "relative difference of conv_out.weight"),
        ("dtype", "dtype"),
        ("dtype of a gradient", "dtype of conv_out.weight"),
        ("shape", "shape"),
        ("batch", "shape"),
        ("transposed axes", "relative difference"),
        ("transposed axes of a gradient", "relative difference of conv_out.weight"),
        ("a gradient left out", "names"),
        ("not a number", "relative difference"),
    ],
)
def test_the_comparison_of_networks_can_fail(results: tuple[Result, Result], fault: str, message: str) -> None:
    actual, expected = results
    assert_networks_agree(actual, expected, "float32")
    with pytest.raises(AssertionError, match=message):
        assert_networks_agree(spoil(actual, fault), expected, "float32")
