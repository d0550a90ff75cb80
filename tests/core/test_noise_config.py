"""One object makes the grid, the consistency function and samples, so that their levels cannot disagree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import Library, assert_same, eps, seeds, sigma_datas, sigma_ranges
from hypothesis import given
from hypothesis import strategies as st

from ict_core import ConfigError, NoiseConfig, consistency_output, make_grid, multistep_sample

Ends = tuple[float, float]


@given(ends=sigma_ranges, n=st.integers(2, 60), law=st.sampled_from(["lognormal", "uniform"]))
def test_the_grid_has_its_levels_and_law(ends: Ends, n: int, law: str) -> None:
    noise = NoiseConfig(sigma_min=ends[0], sigma_max=ends[1], rho=5.0, law=law, p_mean=0.1, p_std=2.5, sigma_data=0.7)
    expected = make_grid(
        n,
        sigma_min=ends[0],
        sigma_max=ends[1],
        rho=5.0,
        law=law,
        p_mean=0.1,
        p_std=2.5,
        weighting="edm",
        sigma_data=0.7,
    )
    for found, array in zip(noise.grid(n, weighting="edm"), expected, strict=True):
        assert_same(found, array)
    assert_same(noise.grid(n).weights, 1.0 / np.diff(expected.sigmas))


@given(ends=sigma_ranges, sigma_data=sigma_datas, seed=seeds)
def test_the_function_is_the_identity_at_its_smallest_level(
    lib: Library, dtype: str, ends: Ends, sigma_data: float, seed: int
) -> None:
    noise = NoiseConfig(sigma_min=ends[0], sigma_max=ends[1], sigma_data=sigma_data)
    conditions: list[Any] = []

    def network(x_in: Any, c_noise: Any, condition: Any) -> Any:
        conditions.append(condition)
        return 3.0 * x_in

    f = noise.consistency_function(network, {"text": "anything"})
    x, low = lib.normal(seed, (2, 3), dtype), lib.asarray([ends[0]] * 2, dtype)
    assert_same(f(x, low), x)
    high = lib.asarray([ends[1]] * 2, dtype)
    known = {"sigma_data": sigma_data, "sigma_min": ends[0]}
    assert_same(f(x, high), consistency_output(lambda x_in, *_: 3.0 * x_in, x, high, **known), rtol=4 * eps(dtype))
    assert conditions == [{"text": "anything"}] * 2


@given(ends=sigma_ranges, seed=seeds, clip=st.booleans())
def test_samples_begin_at_its_largest_level(lib: Library, dtype: str, ends: Ends, seed: int, clip: bool) -> None:
    noise = NoiseConfig(sigma_min=ends[0], sigma_max=ends[1])
    noises = [lib.normal(seed + i, (2, 3), dtype, 10.0) for i in range(2)]
    f = noise.consistency_function(lambda x_in, c_noise, condition: 0.3 * x_in)
    assert_same(noise.sample(f, noises[:1]), multistep_sample(f, noises[:1], [ends[1]], sigma_min=ends[0]))
    middle = (ends[0] * ends[1]) ** 0.5
    expected = multistep_sample(f, noises, [ends[1], middle], sigma_min=ends[0], clip=clip)
    assert_same(noise.sample(f, noises, [middle], clip=clip), expected)


def test_refuses_levels_outside_of_it() -> None:
    noise = NoiseConfig(sigma_min=0.01, sigma_max=10.0)
    for later in ([10.0], [0.001]):
        with pytest.raises(ValueError, match="^sigmas must"):
            noise.sample(lambda x, sigma: x, np.zeros((2, 1, 1)), later)
    with pytest.raises(ConfigError, match="must be > noise.sigma_min = 0.01, not 0.01"):
        NoiseConfig(sigma_min=0.01, sigma_max=0.01)
