"""Power-function averages, and other lengths that are made of them afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ict_core import mixing_weights, power_decay, power_exponent, power_profile

FIXTURE = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "tuning_open.npz"
lengths = st.floats(0.01, 0.25)


@pytest.fixture(scope="module")
def official() -> Mapping[str, np.ndarray]:
    if not FIXTURE.is_file():
        pytest.skip(f"no {FIXTURE}")
    return np.load(FIXTURE)


@pytest.mark.parametrize("sigma_rel", ["0.01", "0.05", "0.1"])
def test_official_exponents_and_decays(official: Mapping[str, np.ndarray], sigma_rel: str) -> None:
    gamma = power_exponent(float(sigma_rel))
    assert gamma == pytest.approx(float(official[f"power_ema/sigma_rel{sigma_rel}/gamma"]), rel=1e-12)
    decays = [power_decay(step, gamma) for step in range(1, 201)]
    np.testing.assert_allclose(decays, official[f"power_ema/sigma_rel{sigma_rel}/beta_steps_1_to_200"], rtol=1e-12)


@given(sigma_rel=lengths)
def test_the_profile_has_the_length_that_is_asked_for(sigma_rel: float) -> None:
    steps = 20_000
    profile, at = power_profile(steps, power_exponent(sigma_rel)), (np.arange(steps) + 0.5) / steps
    mean = profile @ at
    assert np.sqrt(profile @ (at - mean) ** 2) == pytest.approx(sigma_rel, rel=1e-4)


@given(steps=st.integers(1, 300), gamma=st.floats(0, 100))
def test_the_profile_is_what_the_decays_come_to(steps: int, gamma: float) -> None:
    shares = np.zeros(steps)
    for step in range(1, steps + 1):
        decay = power_decay(step, gamma)
        shares *= decay
        shares[step - 1] += 1 - decay
    found = power_profile(steps, gamma)
    np.testing.assert_allclose(found, shares, rtol=1e-9, atol=1e-15)
    assert found.sum() == pytest.approx(1)


@given(gamma=st.floats(0, 100), steps=st.integers(2, 500))
def test_a_stored_average_is_found_again(gamma: float, steps: int) -> None:
    factors, misfit = mixing_weights([(steps, gamma), (steps // 2, gamma)], steps, gamma)
    np.testing.assert_allclose(factors, [1, 0], atol=1e-6)
    assert misfit < 1e-6


@pytest.mark.parametrize("wanted", [0.03, 0.07, 0.12])
def test_another_length_is_made_of_two_kept_at_ten_steps(wanted: float) -> None:
    """Of weights that walk at random: the mixture is the average that was really kept, to 2%."""
    steps, rng = 2000, np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((steps, 50)), axis=0)
    exponents = [power_exponent(s) for s in (0.05, 0.10)]
    kept = [(step, gamma) for step in range(200, steps + 1, 200) for gamma in exponents]
    averages = [power_profile(step, gamma) @ walk[:step] for step, gamma in kept]
    really = power_profile(steps, power_exponent(wanted)) @ walk
    factors, misfit = mixing_weights(kept, steps, power_exponent(wanted))
    assert factors.sum() == pytest.approx(1, abs=0.02)
    found = factors @ np.array(averages)
    assert np.linalg.norm(found - really) < 0.02 * np.linalg.norm(really)
    _, alone = mixing_weights(kept[-2:], steps, power_exponent(wanted))
    assert misfit < 0.5 * alone


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power_exponent(0.3), "sigma_rel must be < 0.28, not 0.3"),
        (lambda: power_exponent(0.0), "sigma_rel must be > 0, not 0.0"),
        (lambda: power_decay(0, 1.0), "step must be >= 1, not 0"),
        (lambda: power_profile(5, -1.0), "gamma must be >= 0, not -1.0"),
        (lambda: mixing_weights([], 5, 1.0), "snapshots must hold at least one average"),
        (lambda: mixing_weights([(6, 1.0)], 5, 1.0), "snapshots must be of steps up to 5, not 6"),
    ],
)
def test_bad_arguments_are_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        call()
