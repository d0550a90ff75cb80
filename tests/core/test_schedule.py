from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
from helpers import log_uniform, rhos, sigma_ranges
from hypothesis import given
from hypothesis import strategies as st

from ict_core import karras_sigmas

counts = st.integers(2, 2000)


@given(n=counts, ends=sigma_ranges, rho=rhos)
def test_n_levels_strictly_rising_between_exact_ends(n: int, ends: tuple[float, float], rho: float) -> None:
    sigmas = karras_sigmas(n, sigma_min=ends[0], sigma_max=ends[1], rho=rho)
    assert type(sigmas) is np.ndarray
    assert sigmas.shape == (n,)
    assert sigmas.dtype == np.float64
    assert np.all(np.diff(sigmas) > 0)
    assert (sigmas[0], sigmas[-1]) == ends


@given(n=counts, ends=sigma_ranges, rho=rhos)
def test_matches_the_formula(n: int, ends: tuple[float, float], rho: float) -> None:
    low, high = (end ** (1 / rho) for end in ends)
    expected = [(low + i / (n - 1) * (high - low)) ** rho for i in range(n)]
    actual = karras_sigmas(n, sigma_min=ends[0], sigma_max=ends[1], rho=rho)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_defaults_are_the_papers() -> None:
    np.testing.assert_array_equal(karras_sigmas(40), karras_sigmas(40, sigma_min=0.002, sigma_max=80.0, rho=7.0))


@given(n=st.integers(3, 200), ends=sigma_ranges, rho=rhos, more=st.floats(1.1, 3.0))
def test_larger_rho_crowds_the_levels_towards_sigma_min(
    n: int, ends: tuple[float, float], rho: float, more: float
) -> None:
    inner = [karras_sigmas(n, sigma_min=ends[0], sigma_max=ends[1], rho=r)[1:-1] for r in (rho, rho * more)]
    assert np.all(inner[1] < inner[0])


@given(n=counts, ends=sigma_ranges)
def test_rho_1_spaces_levels_evenly(n: int, ends: tuple[float, float]) -> None:
    actual = karras_sigmas(n, sigma_min=ends[0], sigma_max=ends[1], rho=1.0)
    np.testing.assert_allclose(actual, np.linspace(*ends, n), rtol=1e-12)


@given(n=st.integers(2, 200), ends=sigma_ranges)
def test_huge_rho_spaces_levels_evenly_in_log(n: int, ends: tuple[float, float]) -> None:
    actual = karras_sigmas(n, sigma_min=ends[0], sigma_max=ends[1], rho=1e9)
    np.testing.assert_allclose(actual, np.geomspace(*ends, n), rtol=1e-6)


@pytest.mark.parametrize("rho", [0.01, 0.001])
def test_tiny_rho_keeps_the_formula(rho: float) -> None:
    """(smin / smax)^(1/rho) is below the smallest float64, so the formula's limit is exact here: smax ramp^rho."""
    n = 11
    expected = 80.0 * (np.arange(1, n) / (n - 1)) ** rho
    np.testing.assert_allclose(karras_sigmas(n, rho=rho)[1:], expected, rtol=1e-12)


@given(intervals=st.integers(1, 640), ends=sigma_ranges, rho=rhos)
def test_doubling_the_intervals_keeps_the_old_levels(intervals: int, ends: tuple[float, float], rho: float) -> None:
    """What the curriculum relies on; it fails where n counts intervals instead of levels."""
    coarse, fine = (
        karras_sigmas(m + 1, sigma_min=ends[0], sigma_max=ends[1], rho=rho) for m in (intervals, 2 * intervals)
    )
    np.testing.assert_allclose(fine[::2], coarse, rtol=1e-12)


def test_smallest_gap_of_1281_levels_is_the_first_and_about_4e_5() -> None:
    gaps = np.diff(karras_sigmas(1281))
    assert gaps.argmin() == 0
    assert 3.5e-5 < gaps[0] < 4.5e-5


def test_two_levels_are_the_ends() -> None:
    np.testing.assert_array_equal(karras_sigmas(2), [0.002, 80.0])


def test_numpy_scalars_are_taken_as_numbers() -> None:
    actual = karras_sigmas(np.int32(9), sigma_min=np.float64(0.002), sigma_max=np.float32(80), rho=np.int64(7))
    assert actual.dtype == np.float64
    np.testing.assert_allclose(actual, karras_sigmas(9), rtol=1e-12)


def test_official_levels(schedules: Mapping[str, np.ndarray]) -> None:
    """cm descends, with a final 0, in float32 (1.6e-6 off); diffusers ascends, from float64."""
    found = set()
    for key, reference in schedules.items():
        name = re.fullmatch(r"sigmas/(cm|diffusers)_N(\d+)(?:_([^_]+)_([^_]+)_([^_]+))?", key)
        if not name:
            continue
        source, n, *law = name.groups()
        settings = dict(zip(("sigma_min", "sigma_max", "rho"), map(float, law), strict=True)) if law[0] else {}
        if source == "cm":
            assert reference[-1] == 0.0
            reference = reference[-2::-1]
        actual = karras_sigmas(int(n), **settings)
        assert actual.shape == reference.shape, key
        rtol = 2e-6 if source == "cm" else 1.2e-7
        np.testing.assert_allclose(actual, reference, rtol=rtol, err_msg=key)
        found.add(source)
    assert found == {"cm", "diffusers"}


NOT_NUMBERS = [None, True, "7", np.array([0.1]), 1j]
NOT_FINITE_AND_POSITIVE = [0, -1.0, float("nan"), float("inf"), -float("inf")]
BAD = [
    *[("n", value, ValueError) for value in (1, 0, -3, np.int64(1))],
    *[("n", value, TypeError) for value in (None, True, "3", 3.0, np.float64(3.0), np.array([3]))],
    *[(name, value, ValueError) for name in ("sigma_min", "sigma_max", "rho") for value in NOT_FINITE_AND_POSITIVE],
    *[(name, value, TypeError) for name in ("sigma_min", "sigma_max", "rho") for value in NOT_NUMBERS],
    ("sigma_max", 0.002, ValueError),
    ("sigma_max", 0.001, ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD, ids=lambda value: getattr(value, "__name__", str(value)))
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    arguments = {"n": 11, name: value}
    with pytest.raises(error, match=rf"^{name} must be"):
        karras_sigmas(**arguments)


@pytest.mark.parametrize("name", ["sigma_max", "rho"])
def test_an_integer_beyond_float64_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        karras_sigmas(11, **{name: 10**400})


@given(sigma_min=log_uniform(1e-3, 1.0), ulps=st.integers(1, 5))
def test_more_levels_than_float64_numbers_are_refused(sigma_min: float, ulps: int) -> None:
    sigma_max = sigma_min
    for _ in range(ulps):
        sigma_max = float(np.nextafter(sigma_max, np.inf))
    with pytest.raises(ValueError, match="^n = "):
        karras_sigmas(ulps + 2, sigma_min=sigma_min, sigma_max=sigma_max)


def test_ends_too_far_apart_for_float64_give_an_error_or_levels_never_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            sigmas = karras_sigmas(11, sigma_min=1e-300, sigma_max=1e300)
        except ValueError:
            return
    assert np.all(np.diff(sigmas) > 0)
