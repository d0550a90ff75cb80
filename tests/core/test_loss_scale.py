"""The loss's factor halves where a gradient overflows, and doubles after 2,000 steps where none does."""

from __future__ import annotations

import pytest
from helpers import JAX, LIBRARIES, Library, assert_same
from hypothesis import given
from hypothesis import strategies as st

from ict_core import LossScale, next_loss_scale
from ict_core.loss_scale import FIRST_FACTOR

LEAST, MOST, PATIENCE = 0, 24, 2000  # the first two as exponents of 2
exponents = st.integers(LEAST, MOST)
# Close to where something happens, or anywhere.
counts = st.one_of(st.integers(PATIENCE - 3, PATIENCE - 1), st.integers(0, PATIENCE - 1))


def make(library: Library, exponent: int, good: int) -> LossScale:
    return LossScale(library.asarray(2.0**exponent, "float32"), library.asarray(good, "int32"))


def expected(exponent: int, good: int, finite: bool) -> tuple[int, int]:
    """The rule, in Python's integers."""
    if not finite:
        return max(exponent - 1, LEAST), 0
    if good + 1 == PATIENCE:
        return min(exponent + 1, MOST), 0
    return exponent, good + 1


@pytest.mark.parametrize("library", [*LIBRARIES, JAX], ids=lambda library: library.name)
@given(exponent=exponents, good=counts, outcomes=st.lists(st.booleans(), min_size=1, max_size=6))
def test_the_factor_follows_the_rule(library: Library, exponent: int, good: int, outcomes: list[bool]) -> None:
    """Exactly, in float32 and int32 whatever happens."""
    scale = make(library, exponent, good)
    for finite in outcomes:
        exponent, good = expected(exponent, good, finite)
        scale = next_loss_scale(scale, library.asarray(finite, "bool"))
        for found, wanted in zip(scale, make(library, exponent, good), strict=True):
            assert_same(found, wanted)


@pytest.mark.parametrize("library", [*LIBRARIES, JAX], ids=lambda library: library.name)
def test_a_namespace_can_be_given(library: Library) -> None:
    scale = next_loss_scale(make(library, 3, 7), library.asarray(True, "bool"), xp=library.xp)
    assert (float(scale.factor), int(scale.good_steps)) == (8.0, 8)


def test_it_doubles_after_2000_good_steps_in_a_row_and_not_before(lib: Library) -> None:
    good, bad, scale, factors = lib.asarray(True, "bool"), lib.asarray(False, "bool"), make(lib, 4, 0), []
    for step in range(1, 2 * PATIENCE + 300):
        scale = next_loss_scale(scale, bad if step == 200 else good)
        factors.append(float(scale.factor))
    changes = {i + 1: b for i, (a, b) in enumerate(zip([16.0, *factors], factors, strict=False)) if a != b}
    assert changes == {200: 8.0, 200 + PATIENCE: 16.0, 200 + 2 * PATIENCE: 32.0}


def test_it_stays_within_one_and_two_to_the_24(lib: Library) -> None:
    up, down = make(lib, MOST, PATIENCE - 1), make(lib, LEAST, 5)
    assert float(next_loss_scale(up, lib.asarray(True, "bool")).factor) == 2.0**24
    assert float(next_loss_scale(down, lib.asarray(False, "bool")).factor) == 1.0
    assert 1.0 < FIRST_FACTOR < 2.0**24
