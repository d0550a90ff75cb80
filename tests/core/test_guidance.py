"""Classifier-free guidance against its formula, in every array library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers import Array, Library, assert_same, batch_shapes, eps, seeds, to_numpy
from hypothesis import given
from hypothesis import strategies as st

from ict_core import consistency_output, guided, multistep_sample

scales = st.floats(0.0, 20.0)


def half(x: Array, sigma: Array) -> Array:
    return 0.5 * x


def eighth(x: Array, sigma: Array) -> Array:
    return 0.125 * x


def never(x: Array, sigma: Array) -> Array:
    raise AssertionError("this function is not needed")


@given(shape=batch_shapes, seed=seeds, scale=scales)
def test_it_matches_the_formula(lib: Library, dtype: str, shape: tuple[int, ...], seed: int, scale: float) -> None:
    x, sigma = lib.normal(seed, shape, dtype), lib.asarray(np.full(shape[0], 80.0), dtype)
    expected = 0.125 * to_numpy(x) + scale * (0.5 - 0.125) * to_numpy(x)
    found = guided(half, eighth, scale)(x, sigma)
    assert_same(found, lib.asarray(expected, dtype), rtol=8 * eps(dtype))


@given(shape=batch_shapes, seed=seeds)
def test_it_is_affine_in_the_scale(lib: Library, shape: tuple[int, ...], seed: int) -> None:
    x, sigma = lib.normal(seed, shape, "float64"), lib.asarray(np.full(shape[0], 80.0), "float64")
    one, three, five = (guided(half, eighth, scale)(x, sigma) for scale in (1.0, 3.0, 5.0))
    assert_same(one + five, 2.0 * three, rtol=1e-14)


def test_a_scale_of_1_is_no_guidance_and_0_is_no_class(lib: Library, dtype: str) -> None:
    """The same bits, in one evaluation."""
    z = [lib.normal(seed, (3, 2), dtype) for seed in range(2)]
    for scale, functions, expected in ((1, (half, never), half), (0.0, (never, eighth), eighth)):
        found = multistep_sample(guided(*functions, scale), z, [80.0, 1.0])
        assert_same(found, multistep_sample(expected, z, [80.0, 1.0]))


def test_to_guide_the_consistency_function_is_to_guide_its_network(lib: Library) -> None:
    x, sigma = lib.normal(0, (3, 4), "float64"), lib.asarray([0.01, 1.0, 80.0], "float64")

    def f(network: Any) -> Any:
        return lambda x, sigma: consistency_output(network, x, sigma, None)

    def both(x_in: Array, c_noise: Array, labels: None) -> Array:
        return 0.125 * x_in + 3.0 * (0.5 * x_in - 0.125 * x_in)

    expected = f(both)(x, sigma)
    found = guided(f(lambda x, c, y: 0.5 * x), f(lambda x, c, y: 0.125 * x), 3.0)(x, sigma)
    assert_same(found, expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("scale", "error", "says"),
    [
        (-0.5, ValueError, "scale must be >= 0, not -0.5"),
        (math.nan, ValueError, "scale must be finite, not nan"),
        (math.inf, ValueError, "scale must be finite, not inf"),
        ("2", TypeError, "scale must be a number, not str"),
    ],
)
def test_other_scales_are_refused(scale: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^{says}$"):
        guided(half, eighth, scale)
