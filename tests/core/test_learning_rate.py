"""The learning rate over time: warm-up, and the forms in which it falls."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ict_core import learning_rate_factor
from ict_core.learning_rate import DECAYS

steps = st.integers(1, 10**6)


@given(step=st.integers(0, 10**6), total=steps)
def test_the_recipes_rate_is_constant(step: int, total: int) -> None:
    assert learning_rate_factor(step, total) == 1.0


@given(step=st.integers(0, 2 * 10**6), warmup=steps, first=st.integers(0, 10**6), total=steps)
def test_warm_up_and_decay_match_their_formulas(step: int, warmup: int, first: int, total: int) -> None:
    start = max(warmup, first)
    rising = min(step / warmup, 1)
    u = min((step - start) / (total - start), 1) if step > start and total > start else float(step > start)
    expected = {
        "none": rising,
        "linear": rising * (1 - u),
        "cosine": rising * 0.5 * (1 + math.cos(math.pi * u)),
        "inverse_sqrt": rising / math.sqrt(max(step / start, 1)),
    }
    for decay, value in expected.items():
        found = learning_rate_factor(step, total, warmup_steps=warmup, decay=decay, decay_from=first and start)
        assert type(found) is float
        assert found == pytest.approx(value, rel=1e-9, abs=1e-12), decay


@given(step=st.integers(0, 10**6))
def test_edm2s_schedule(step: int) -> None:
    """Its code, in steps: ref / sqrt(max(k / 70000, 1)) min(k / W, 1), here with W = 10 million images of 2048."""
    expected = 1 / np.sqrt(max(step / 70e3, 1)) * min(step * 2048 / 10e6, 1)
    found = learning_rate_factor(step, 10**6, warmup_steps=4883, decay="inverse_sqrt", decay_from=70_000)
    assert found == pytest.approx(expected, rel=1e-4)  # W is no whole number of steps


@given(step=steps, warmup=steps)
def test_from_the_warm_up_on_the_inverse_root_is_that_of_transformers(step: int, warmup: int) -> None:
    """Vaswani et al. 2017, eq. 3, over its largest value: min(k^-0.5, k W^-1.5) W^0.5."""
    expected = min(step**-0.5, step * warmup**-1.5) * warmup**0.5
    found = learning_rate_factor(step, 1, warmup_steps=warmup, decay="inverse_sqrt")
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("decay", DECAYS)
def test_it_rises_then_stays_then_falls_and_no_step_is_lost(decay: str) -> None:
    found = [learning_rate_factor(k, 100, warmup_steps=10, decay=decay, decay_from=40) for k in range(100)]
    assert found[0] == 0
    assert min(found[1:]) > 0
    assert found[:11] == sorted(found[:11])
    assert set(found[10:41]) == {1.0}
    assert found[40:] == sorted(found[40:], reverse=True)
    assert (found[-1] < 1) == (decay != "none")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"step": -1}, "^step must be >= 0"),
        ({"total_steps": 0}, "^total_steps must be >= 1"),
        ({"warmup_steps": -1}, "^warmup_steps must be >= 0"),
        ({"decay_from": -1}, "^decay_from must be >= 0"),
        ({"decay": "step"}, "^decay must be one of none, linear, cosine, inverse_sqrt, not 'step'$"),
        ({"warmup_steps": 5, "decay_from": 4}, "^decay_from must be >= warmup_steps = 5 and > 0, not 4$"),
        ({"decay": "inverse_sqrt"}, "^decay_from must be >= warmup_steps = 0 and > 0, not 0$"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        learning_rate_factor(**{"step": 0, "total_steps": 10, **changes})
