"""Heun's method for the probability-flow ODE, against exact solutions."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from helpers import Library, assert_same, seeds, to_numpy
from hypothesis import given
from hypothesis import strategies as st

from ict_core import NoiseConfig, heun_sample, heun_sigmas, karras_sigmas

SD = 0.5


def denoiser(lib: Library, end: float, calls: list[float] | None = None) -> Any:
    """The mean of a Gaussian point at level `end`, given it at a higher level: data N(0, 0.5^2)."""

    def mean(x: Any, sigma: Any) -> Any:
        level = float(to_numpy(sigma)[0])
        if calls is not None:
            calls.append(level)
        clean = SD**2 / (SD**2 + level**2)
        return x * (clean + (1 - clean) * end / level)

    return mean


def exact(end: float, start: float) -> float:
    """What the ODE multiplies a point by from level `start` to `end`."""
    return math.sqrt((SD**2 + end**2) / (SD**2 + start**2))


@pytest.mark.parametrize("end", [0.0, 0.002, 0.1])
def test_a_gaussian_is_solved_to_second_order(lib: Library, end: float) -> None:
    z, errors = lib.normal(0, (3, 4), "float64"), []
    for steps in (16, 32, 64, 128):
        sigmas = heun_sigmas(steps, sigma_min=max(end, 0.002))
        found = heun_sample(denoiser(lib, end), z, sigmas, sigma_end=end)
        expected = 80.0 * exact(end, 80.0) * to_numpy(z)
        errors.append(np.abs(to_numpy(found) - expected).max())
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] < 1e-3
    assert np.all(orders > 1.7)
    assert np.all(orders < 2.5)


def test_eighteen_steps_take_thirty_five_evaluations_at_the_levels_of_edm(lib: Library) -> None:
    calls: list[float] = []
    heun_sample(denoiser(lib, 0.0, calls), lib.normal(0, (1, 2), "float64"), heun_sigmas())
    levels = karras_sigmas(19)[:0:-1]
    assert len(calls) == 35
    np.testing.assert_allclose(calls, [levels[0], *np.repeat(levels[1:], 2)])


def test_a_denoiser_of_another_shape_is_refused_and_no_steps_are() -> None:
    """What NumPy would broadcast."""
    with pytest.raises(ValueError, match=r"the denoiser's result must have the shape of noise, \(2, 3\), not \(1, 3\)"):
        heun_sample(lambda x, sigma: x[:1], np.ones((2, 3)), [80.0, 1.0])
    with pytest.raises(ValueError, match="^steps must be >= 1, not 0"):
        heun_sigmas(0)


@given(seed=seeds, steps=st.integers(1, 6))
def test_one_object_solves_to_its_smallest_level(lib: Library, seed: int, steps: int) -> None:
    noise = NoiseConfig(sigma_min=0.1, sigma_max=20.0, rho=3.0)
    z = lib.normal(seed, (2, 3), "float64")
    sigmas = heun_sigmas(steps, sigma_min=0.1, sigma_max=20.0, rho=3.0)
    assert len(sigmas) == steps
    assert sigmas[0] == 20.0
    expected = heun_sample(denoiser(lib, 0.1), z, sigmas, sigma_end=0.1)
    assert_same(noise.solve(denoiser(lib, 0.1), z, steps), expected)
    clipped = noise.solve(denoiser(lib, 0.1), z * 10.0, steps, clip=True)
    assert np.abs(to_numpy(clipped)).max() <= 1.0


def test_one_step_returns_the_denoisers_mean(lib: Library, dtype: str) -> None:
    z = lib.normal(0, (2, 3), dtype)
    assert_same(heun_sample(lambda x, sigma: 0.5 * x, z, [4.0]), 0.5 * (4.0 * z))


@pytest.mark.parametrize(
    ("sigmas", "end", "message"),
    [
        ([], 0.0, "sigmas must hold at least one level"),
        ([1.0, 2.0], 0.0, "sigmas must fall"),
        ([1.0, 0.1], 0.1, "sigmas must lie above sigma_end = 0.1"),
        ([1.0, 0.01], 0.1, "sigmas must lie in [0.1, inf]; 0.01 does not"),
        ([1.0], -1.0, "sigma_end must be >= 0, not -1.0"),
    ],
)
def test_bad_arguments_are_named(sigmas: list[float], end: float, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        heun_sample(lambda x, sigma: x, np.ones((1, 2)), sigmas, sigma_end=end)
