"""The checker itself: it must be able to fail, and for the stated reason."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from helpers import LIBRARIES, NUMPY, TORCH, Library, assert_same, other_float
from hypothesis import given
from hypothesis import strategies as st

VALUES = [[0.5, -2.0, 0.0], [1.0, 3.0, 4.0]]


def test_equal_arrays_pass(lib: Library, dtype: str) -> None:
    assert_same(lib.asarray(VALUES, dtype), lib.asarray(VALUES, dtype))


@given(row=st.integers(0, 1), column=st.integers(0, 2), size=st.floats(1e-6, 1e6))
def test_one_wrong_value_fails(lib: Library, dtype: str, row: int, column: int, size: float) -> None:
    wrong = np.array(VALUES)
    wrong[row, column] += size
    with pytest.raises(AssertionError, match="Mismatched elements: 1 / 6"):
        assert_same(lib.asarray(wrong, dtype), lib.asarray(VALUES, dtype))


def test_a_nan_fails_unless_expected_there(lib: Library, dtype: str) -> None:
    with_nan = lib.asarray([1.0, np.nan], dtype)
    for other in ([1.0, 2.0], [np.nan, 1.0]):
        with pytest.raises(AssertionError, match="nan location mismatch"):
            assert_same(with_nan, lib.asarray(other, dtype), rtol=1e9)
    assert_same(with_nan, lib.asarray([1.0, np.nan], dtype))


def test_wrong_dtype_fails(lib: Library, dtype: str) -> None:
    with pytest.raises(AssertionError, match="dtype"):
        assert_same(lib.asarray(VALUES, other_float(dtype)), lib.asarray(VALUES, dtype))


@pytest.mark.parametrize("shape", [(3, 2), (6,), (1, 2, 3), (2, 3, 1)])
def test_wrong_shape_fails(lib: Library, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_same(lib.asarray(np.ones(shape), dtype), lib.asarray(np.ones((2, 3)), dtype))


def test_a_shape_that_broadcasts_fails(lib: Library, dtype: str) -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_same(lib.asarray(np.ones(()), dtype), lib.asarray(np.ones(3), dtype))


@pytest.mark.parametrize(("one", "other"), list(permutations(LIBRARIES, 2)), ids=lambda library: library.name)
def test_wrong_kind_fails(one: Library, other: Library, dtype: str) -> None:
    with pytest.raises(AssertionError, match="kind"):
        assert_same(one.asarray(VALUES, dtype), other.asarray(VALUES, dtype))


@pytest.mark.parametrize("value", [1.0, [1.0], None])
def test_what_is_no_array_fails(value: object) -> None:
    with pytest.raises(AssertionError, match="kind"):
        assert_same(value, NUMPY.asarray(1.0, "float64"))


def test_a_numpy_scalar_is_a_numpy_array() -> None:
    assert_same(np.float32(1.5), NUMPY.asarray(1.5, "float32"))


def test_tolerances_are_relative_and_absolute(lib: Library, dtype: str) -> None:
    expected = lib.asarray([100.0, 1.0], dtype)
    near = lib.asarray([100.5, 1.0], dtype)
    assert_same(near, expected, rtol=0.006)
    assert_same(near, expected, atol=0.6)
    for too_tight in ({"rtol": 0.004}, {"atol": 0.4}):
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            assert_same(near, expected, **too_tight)


def test_numpy_arrays_under_test_are_read_only() -> None:
    with pytest.raises(ValueError, match="read-only"):
        NUMPY.asarray(VALUES, "float32")[0, 0] = 1.0


def test_narrow_torch_dtypes_compare_too() -> None:
    assert TORCH.asarray(VALUES, "bfloat16").dtype == torch.bfloat16
    with pytest.raises(AssertionError, match="dtype"):
        assert_same(TORCH.asarray(VALUES, "bfloat16"), TORCH.asarray(VALUES, "float16"))
