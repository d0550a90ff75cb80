"""JAX's group normalisation has a gradient that is written out: it is that of its definition, and torch's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import nchw

from ict_backends.jax.layers import group_normalize

TOLERANCE = 1e-12


def definition(x: jax.Array, scale: jax.Array, bias: jax.Array, groups: int, epsilon: float) -> jax.Array:
    """y = (x - mean) / sqrt(var + epsilon) scale + bias, the moments over the pixels and channels of a group."""
    b, h, w, c = x.shape
    parts = x.reshape(b, h, w, groups, c // groups)
    mean, var = (f(parts, axis=(1, 2, 4), keepdims=True) for f in (jnp.mean, jnp.var))
    return ((parts - mean) / jnp.sqrt(var + epsilon)).reshape(x.shape) * scale + bias


def case(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, ...]:
    """Images whose groups have means and spreads of their own, scale, shift, and what the output's gradient is."""
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    x = rng.standard_normal(shape) * rng.uniform(0.1, 10.0, channels) + rng.standard_normal(channels)
    return x, rng.standard_normal(channels), rng.standard_normal(channels), rng.standard_normal(shape)


def of_function(function: object, arrays: tuple[np.ndarray, ...], groups: int, epsilon: float) -> list[np.ndarray]:
    """The value, and the gradients of x, scale and bias."""
    value, pull = jax.vjp(lambda *a: function(*a, groups, epsilon), *map(jnp.asarray, arrays[:3]))
    return [np.asarray(a) for a in (value, *pull(jnp.asarray(arrays[3])))]


def assert_near(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 3, 5, 8), 1), ((2, 4, 4, 8), 2), ((3, 2, 2, 12), 4), ((1, 4, 4, 8), 8)]
)
def test_value_and_gradient_are_those_of_the_definition(shape: tuple[int, ...], groups: int) -> None:
    arrays, epsilon = case(shape), 1e-5
    with jax.enable_x64(True):
        found = of_function(group_normalize, arrays, groups, epsilon)
        expected = of_function(definition, arrays, groups, epsilon)
        assert found[0].dtype == np.float64
        assert_near(found, expected, TOLERANCE)
        # Such a comparison notices an epsilon, and a gradient that leaves the moments out.
        with pytest.raises(AssertionError):
            assert_near(of_function(group_normalize, arrays, groups, 2 * epsilon), expected, TOLERANCE)


def test_it_is_torchs_too() -> None:
    x, scale, bias, g = case((2, 4, 3, 8))
    with jax.enable_x64(True):
        value, of_x, of_scale, of_bias = of_function(group_normalize, (x, scale, bias, g), 4, 1e-6)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x.transpose(0, 3, 1, 2), scale, bias)]
    out = torch.nn.functional.group_norm(tensors[0], 4, tensors[1], tensors[2], eps=1e-6)
    out.backward(torch.tensor(g.transpose(0, 3, 1, 2)))
    found = [nchw(value), nchw(of_x), of_scale, of_bias]
    assert_near(found, [out.detach().numpy(), *(t.grad.numpy() for t in tensors)], TOLERANCE)


def test_under_jit_and_in_float32_it_is_as_near_as_autodiff() -> None:
    arrays = case((2, 4, 4, 8))
    with jax.enable_x64(True):
        exact = of_function(definition, arrays, 2, 1e-6)
    narrow = tuple(a.astype(np.float32) for a in arrays)
    found = of_function(jax.jit(group_normalize, static_argnums=(3, 4)), narrow, 2, 1e-6)
    assert all(a.dtype == np.float32 for a in found)
    assert_near([a.astype(np.float64) for a in found], exact, 1e-5)
