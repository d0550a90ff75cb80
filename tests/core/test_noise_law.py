from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from helpers import LIBRARIES, NUMPY, TORCH, Library, assert_same, eps, levels, log_uniform, to_numpy
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr  # scikit-learn, which the tests install, brings SciPy

from ict_core import interval_probabilities, karras_sigmas

# With the ranges of `levels` these laws always have mass between the ends.
means = st.floats(-3.0, 2.0)
stds = st.floats(0.5, 4.0)


def normal_mass(sigmas: np.ndarray, p_mean: float, p_std: float) -> np.ndarray:
    """P(s_i < s <= s_{i+1}) by SciPy's normal CDF, taken in the tail where 1 - CDF keeps its digits."""
    t = (np.log(sigmas) - p_mean) / p_std
    sign = np.where(t[:-1] > 0, -1.0, 1.0)
    return np.abs(ndtr(sign * t[1:]) - ndtr(sign * t[:-1]))


@given(sigmas=levels(), p_mean=means, p_std=stds)
def test_is_a_law_on_the_intervals(lib: Library, dtype: str, sigmas: np.ndarray, p_mean: float, p_std: float) -> None:
    """Kind, shape and dtype of the levels; non-negative; sum 1; the telescoping differences of a normal CDF."""
    given_levels = lib.asarray(sigmas, dtype)
    actual = interval_probabilities(given_levels, p_mean=p_mean, p_std=p_std)
    mass = normal_mass(to_numpy(given_levels), p_mean, p_std)
    # the CDFs agree to about one rounding; their difference, an interval's mass, absolutely so
    assert_same(actual, lib.asarray(mass / mass.sum(), dtype), rtol=4 * eps(dtype), atol=1e-14)
    assert np.all(to_numpy(actual) >= 0)
    assert abs(to_numpy(actual).sum() - 1) < len(sigmas) * eps(dtype)


@given(sigmas=levels(st.integers(3, 60)), p_mean=means, p_std=stds)
def test_joining_intervals_adds_their_probabilities(sigmas: np.ndarray, p_mean: float, p_std: float) -> None:
    kept = np.unique([*range(0, len(sigmas), 2), len(sigmas) - 1])
    fine = interval_probabilities(sigmas, p_mean=p_mean, p_std=p_std)
    coarse = interval_probabilities(sigmas[kept], p_mean=p_mean, p_std=p_std)
    np.testing.assert_allclose(np.add.reduceat(fine, kept[:-1]), coarse, rtol=1e-9, atol=1e-14)


@given(sigmas=levels(), p_mean=means, p_std=stds, unit=log_uniform(1e-3, 1e3))
def test_does_not_depend_on_the_unit_of_sigma(sigmas: np.ndarray, p_mean: float, p_std: float, unit: float) -> None:
    actual = interval_probabilities(unit * sigmas, p_mean=p_mean + np.log(unit), p_std=p_std)
    expected = interval_probabilities(sigmas, p_mean=p_mean, p_std=p_std)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", [-1, 1])
@given(p_mean=means, p_std=stds, start=st.floats(6.0, 30.0))
def test_tails_keep_their_relative_precision(side: int, p_mean: float, p_std: float, start: float) -> None:
    """Where erf is 1 to the last digit, a plain difference of erf has no mass at all."""
    t = np.sort(side * np.linspace(start, start + 1.0, 6))
    actual = interval_probabilities(np.exp(p_mean + p_std * t), p_mean=p_mean, p_std=p_std)
    mass = np.abs(np.diff(ndtr(-np.abs(t))))
    np.testing.assert_allclose(actual, mass / mass.sum(), rtol=1e-8)


@pytest.mark.parametrize("n", [41, 161, 1281])
def test_default_median_is_exp_minus_1_1(n: int) -> None:
    """A law centred on e^{+1.1} = 3.0 has its median far above e^{-1.1} = 0.33; cutting at the ends moves it 0.6%."""
    sigmas = karras_sigmas(n)
    cdf = np.append(0.0, np.cumsum(interval_probabilities(sigmas)))
    assert np.interp(0.5, cdf, np.log(sigmas)) == pytest.approx(-1.1, abs=0.01)


def test_default_law_is_lognormal_with_mean_minus_1_1_and_std_2() -> None:
    """The truncated law's CDF at each level; both parameters are the paper's."""
    sigmas = karras_sigmas(1281)
    cdf = ndtr((np.log(sigmas) + 1.1) / 2.0)
    expected = (cdf[1:] - cdf[0]) / (cdf[-1] - cdf[0])
    np.testing.assert_allclose(np.cumsum(interval_probabilities(sigmas)), expected, rtol=1e-12)


@given(n=st.sampled_from([11, 21, 41, 81, 161, 321, 641, 1281]))
def test_most_draws_are_at_small_levels(n: int) -> None:
    sigmas = karras_sigmas(n)
    probabilities = interval_probabilities(sigmas)
    assert probabilities[sigmas[1:] <= 1.0].sum() > 0.5
    assert probabilities[sigmas[:-1] >= 10.0].sum() < 0.1


def test_official_law(schedules: Mapping[str, np.ndarray]) -> None:
    """The reference rounds to float32, which is why it is compared absolutely: 7e-8, by its README."""
    found = set()
    for key, reference in schedules.items():
        name = re.fullmatch(r"lognormal/N(\d+)_mean([-\d.]+)_std([\d.]+)/(normalised(?:_from_float64)?)", key)
        if not name:
            continue
        law = (float(name[2]), float(name[3]))
        # the paper's own law is left to the defaults, so that these are pinned too
        arguments = {} if law == (-1.1, 2.0) else {"p_mean": law[0], "p_std": law[1]}
        actual = interval_probabilities(karras_sigmas(int(name[1])), **arguments)
        assert actual.shape == reference.shape, key
        np.testing.assert_allclose(actual, reference, rtol=0, atol=1e-7, err_msg=key)
        found.add((law, name[4]))
    assert {((-1.1, 2.0), "normalised"), ((-1.1, 2.0), "normalised_from_float64")} <= found


def test_bfloat16_levels() -> None:
    sigmas = TORCH.asarray([0.01, 0.1, 1.0, 10.0], "bfloat16")
    mass = normal_mass(to_numpy(sigmas), -1.1, 2.0)
    assert_same(interval_probabilities(sigmas), TORCH.asarray(mass / mass.sum(), "bfloat16"), rtol=eps("bfloat16"))


def test_levels_with_a_gradient_are_read() -> None:
    sigmas = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64, requires_grad=True)
    expected = interval_probabilities(np.array([0.01, 0.1, 1.0, 10.0]))
    assert_same(interval_probabilities(sigmas), TORCH.asarray(expected, "float64"), rtol=1e-12)


@pytest.mark.parametrize("lib", LIBRARIES, ids=lambda library: library.name)
def test_namespace_can_be_given(lib: Library) -> None:
    sigmas = lib.asarray([0.01, 0.1, 1.0], "float32")
    assert_same(interval_probabilities(sigmas, xp=lib.xp), interval_probabilities(sigmas))


@given(sigmas=levels(), p_mean=st.floats(-2.0, 1.0))
def test_the_uniform_law_gives_all_intervals_one_probability(
    lib: Library, dtype: str, sigmas: np.ndarray, p_mean: float
) -> None:
    count = len(sigmas) - 1
    found = interval_probabilities(lib.asarray(sigmas, dtype), law="uniform", p_mean=p_mean)
    assert_same(found, lib.asarray(np.full(count, 1 / count), dtype), rtol=4 * eps(dtype))


@pytest.mark.parametrize("law", ["normal", "", None])
def test_an_unknown_law_is_named(law: object) -> None:
    with pytest.raises(ValueError, match="^law must be one of lognormal, uniform, not"):
        interval_probabilities(np.array([0.1, 1.0]), law=law)


GOOD = [0.1, 1.0, 10.0]
BAD_LEVELS = {
    "one level": [1.0],
    "none": [],
    "matrix": [GOOD, GOOD],
    "scalar": 1.0,
    "zero": [0.0, 1.0],
    "negative": [-1.0, 1.0],
    "equal": [1.0, 1.0, 2.0],
    "falling": [2.0, 1.0],
    "one step down": [1.0, 3.0, 2.0],
    "nan first": [np.nan, 1.0],
    "nan inside": [1.0, np.nan, 2.0],
    "nan last": [1.0, np.nan],
    "infinite": [1.0, np.inf],
    "twice infinite": [1.0, np.inf, np.inf],
}


@pytest.mark.parametrize("values", BAD_LEVELS.values(), ids=BAD_LEVELS)
def test_bad_levels_are_named(lib: Library, dtype: str, values: object) -> None:
    with pytest.raises(ValueError, match="^sigmas must be"):
        interval_probabilities(lib.asarray(values, dtype))


@pytest.mark.parametrize(
    "sigmas", [GOOD, 1.0, None, "1, 2", np.array([1, 2, 3]), torch.tensor([1, 2]), np.array([1, 2j])], ids=repr
)
def test_levels_that_are_no_floating_array_are_named(sigmas: object) -> None:
    with pytest.raises(TypeError, match="^sigmas must be an array"):
        interval_probabilities(sigmas)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *[("p_mean", value, ValueError) for value in (np.nan, np.inf, -np.inf)],
        *[("p_std", value, ValueError) for value in (0.0, -1.0, np.nan, np.inf)],
        *[(name, value, TypeError) for name in ("p_mean", "p_std") for value in (None, True, "1", np.array([1.0]))],
    ],
)
def test_bad_parameters_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        interval_probabilities(NUMPY.asarray(GOOD, "float64"), **{name: value})


@pytest.mark.parametrize("p_mean", [-500.0, 500.0])
def test_a_law_without_mass_between_the_ends_is_refused(lib: Library, dtype: str, p_mean: float) -> None:
    with pytest.raises(ValueError, match=f"^p_mean = {p_mean}, p_std = 2.0 put no mass"):
        interval_probabilities(lib.asarray(GOOD, dtype), p_mean=p_mean)
