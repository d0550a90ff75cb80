"""The decay of a teacher's average, as original consistency training has it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ict_core import adaptive_decay

rates = st.floats(0.01, 0.99)


@given(n=st.integers(2, 2000), mu0=rates, s0=st.integers(1, 50))
def test_decay_matches_the_formula(n: int, mu0: float, s0: int) -> None:
    found = adaptive_decay(n, mu0=mu0, s0=s0)
    assert type(found) is float
    assert found == pytest.approx(mu0 ** (s0 / (n - 1)), rel=1e-12)


@given(mu0=rates, s0=st.integers(1, 50), n=st.integers(2, 2000))
def test_decay_is_mu0_at_s0_intervals_and_rises_with_the_levels(mu0: float, s0: int, n: int) -> None:
    assert adaptive_decay(s0 + 1, mu0=mu0, s0=s0) == pytest.approx(mu0)
    assert adaptive_decay(n, mu0=mu0, s0=s0) < adaptive_decay(n + 1, mu0=mu0, s0=s0) < 1


def test_official_decays(ema_schedule: Mapping[str, np.ndarray]) -> None:
    """Of both released implementations, for the N(k) of each."""
    checked = 0
    for key, decays in ema_schedule.items():
        name = re.fullmatch(r"(ema/mu0_([\d.]+)_s0_(\d+)_s1_\d+_K\d+/(?:cm|jcm))_mu", key)
        if not name:
            continue
        n = ema_schedule[f"{name[1]}_N"]
        actual = [adaptive_decay(int(m), mu0=float(name[2]), s0=int(name[3])) for m in n]
        np.testing.assert_allclose(actual, decays, rtol=0, atol=1e-7, err_msg=key)
        checked += 1
    assert checked > 1


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        *[("n", value, ValueError) for value in (1, 0, -1)],
        *[("n", value, TypeError) for value in (None, 2.0, True)],
        *[("mu0", value, ValueError) for value in (0.0, -0.5, 1.0, 2.0, math.nan)],
        *[("mu0", value, TypeError) for value in (None, "0.9")],
        ("s0", 0, ValueError),
        ("s0", 2.0, TypeError),
    ],
)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^{name} must be"):
        adaptive_decay(**{"n": 11, "mu0": 0.9, "s0": 2, name: value})
