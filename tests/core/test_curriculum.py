from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ict_core import Stage, discretization_steps, stages

totals = st.integers(1, 3000)


@st.composite
def interval_ranges(draw: st.DrawFn) -> tuple[int, int]:
    """s0 <= s1, powers of two apart or not."""
    s0 = draw(st.integers(1, 50))
    if draw(st.booleans()):
        return s0, s0 << draw(st.integers(0, 9))
    return s0, draw(st.integers(s0, 2000))


def formula(step: int, total_steps: int, s0: int, s1: int) -> int:
    length = int(np.floor(total_steps / (np.log2(np.floor(s1 / s0)) + 1)))
    return int(min(s0 * 2.0 ** (step // max(1, length)), s1)) + 1


@given(total=totals, ends=interval_ranges(), data=st.data())
def test_matches_the_formula(total: int, ends: tuple[int, int], data: st.DataObject) -> None:
    # 2^(k/K') must stay a float64 for the formula as it is written; ours has no such limit
    step = data.draw(st.integers(0, min(total, 900)))
    s0, s1 = ends
    actual = discretization_steps(step, total, s0=s0, s1=s1)
    assert type(actual) is int
    assert actual == formula(step, total, s0, s1)


def test_the_papers_400_000_steps() -> None:
    expected = [Stage(50_000 * i, 50_000 * (i + 1) - 1, 10 * 2**i + 1) for i in range(8)]
    assert [s.n for s in expected] == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert stages(400_000) == expected
    for stage in expected:
        assert discretization_steps(stage.first, 400_000) == stage.n
        assert discretization_steps(stage.last, 400_000) == stage.n


@given(total=totals, ends=interval_ranges())
def test_never_decreases_and_stays_within_its_ends(total: int, ends: tuple[int, int]) -> None:
    s0, s1 = ends
    n = [discretization_steps(k, total, s0=s0, s1=s1) for k in range(total + 1)]
    assert n[0] == s0 + 1
    assert max(n) <= s1 + 1
    assert all(later >= earlier for earlier, later in pairwise(n))


@given(s0=st.integers(1, 50), doublings=st.integers(0, 9), total=totals)
def test_the_last_step_has_s1_intervals(s0: int, doublings: int, total: int) -> None:
    """Holds where s1/s0 is a power of two and there is a step for each stage; an early stop would leave it out."""
    s1 = s0 << doublings
    if total > doublings:
        assert discretization_steps(total - 1, total, s0=s0, s1=s1) == s1 + 1


schedules_of_stages = st.sampled_from(["doubling", "fixed", "cm"])


@given(total=totals, ends=interval_ranges(), schedule=schedules_of_stages)
def test_stages_cover_the_run_without_gap_or_overlap(total: int, ends: tuple[int, int], schedule: str) -> None:
    found = stages(total, s0=ends[0], s1=ends[1], schedule=schedule)
    assert found[0].first == 0
    assert found[-1].last == total - 1
    assert all(stage.first <= stage.last for stage in found)
    for stage, following in pairwise(found):
        assert following.first == stage.last + 1
        assert following.n > stage.n


@given(total=totals, ends=interval_ranges(), schedule=schedules_of_stages)
def test_stages_agree_with_every_step(total: int, ends: tuple[int, int], schedule: str) -> None:
    settings = {"s0": ends[0], "s1": ends[1], "schedule": schedule}
    by_stage = [stage.n for stage in stages(total, **settings) for _ in range(stage.first, stage.last + 1)]
    by_step = [discretization_steps(k, total, **settings) for k in range(total)]
    assert by_stage == by_step


@given(total=totals, ends=interval_ranges())
def test_stages_are_equally_long_but_for_the_last(total: int, ends: tuple[int, int]) -> None:
    lengths = [stage.last - stage.first + 1 for stage in stages(total, s0=ends[0], s1=ends[1])]
    assert len(set(lengths[:-1])) <= 1


@given(total=totals, s0=st.integers(1, 2000))
def test_equal_ends_are_a_single_stage(total: int, s0: int) -> None:
    assert stages(total, s0=s0, s1=s0) == [Stage(0, total - 1, s0 + 1)]


@pytest.mark.parametrize("total", range(1, 8))
def test_fewer_steps_than_stages_double_at_every_step(total: int) -> None:
    """The formula's K' would be 0 here."""
    assert stages(total) == [Stage(k, k, 10 * 2**k + 1) for k in range(total)]


def test_an_astronomic_run_needs_no_astronomic_power() -> None:
    assert discretization_steps(10**15, 10**15) == 1281
    assert discretization_steps(10**6, 10**6, s0=1, s1=2**900) == 2**900 + 1


def test_numpy_integers_give_the_same_python_int() -> None:
    """int16 would overflow at 10 2^12."""
    for step in (0, 500, 999):
        k, total, s0, s1 = (np.int16(v) for v in (step, 1000, 10, 1280))
        actual = discretization_steps(k, total, s0=s0, s1=s1)
        assert type(actual) is int
        assert actual == discretization_steps(step, 1000)


def test_official_steps(schedules: Mapping[str, np.ndarray]) -> None:
    checked = 0
    for key in schedules:
        name = re.fullmatch(r"(steps/K(\d+)_s0_(\d+)_s1_(\d+))/k", key)
        if not name:
            continue
        total, s0, s1 = (int(v) for v in name.groups()[1:])
        expected = schedules[f"{name[1]}/N"]
        actual = [discretization_steps(int(k), total, s0=s0, s1=s1) for k in schedules[key]]
        np.testing.assert_array_equal(actual, expected, err_msg=key)
        checked += 1
    assert checked > 0


@given(total=totals, s0=st.integers(1, 50), data=st.data())
def test_fixed_is_the_last_number_all_the_time(total: int, s0: int, data: st.DataObject) -> None:
    step, s1 = data.draw(st.integers(0, total)), data.draw(st.integers(s0, 2000))
    assert discretization_steps(step, total, s0=s0, s1=s1, schedule="fixed") == s1 + 1
    assert stages(total, s0=s0, s1=s1, schedule="fixed") == [Stage(0, total - 1, s1 + 1)]


@given(total=totals, s0=st.integers(2, 50), data=st.data())
def test_cms_curriculum_rises_by_the_square_of_n(total: int, s0: int, data: st.DataObject) -> None:
    """From s0 levels to s1 + 1; N^2 grows as the steps do."""
    s1 = data.draw(st.integers(s0, 500))
    n = [discretization_steps(k, total, s0=s0, s1=s1, schedule="cm") for k in range(total + 1)]
    assert (n[0], n[-1]) == (s0, s1 + 1)
    assert all(later >= earlier for earlier, later in pairwise(n))
    line = [s0**2 + k / total * ((s1 + 1) ** 2 - s0**2) for k in range(total + 1)]
    assert all((m - 1) ** 2 - 1e-6 <= value <= m**2 + 1e-6 for m, value in zip(n, line, strict=True))


def test_official_steps_of_cm(ema_schedule: Mapping[str, np.ndarray]) -> None:
    checked = 0
    for key in ema_schedule:
        name = re.fullmatch(r"(ema/mu0_[\d.]+_s0_(\d+)_s1_(\d+)_K(\d+))/k", key)
        if not name:
            continue
        s0, s1, total = (int(v) for v in name.groups()[1:])
        actual = [discretization_steps(int(k), total, s0=s0, s1=s1, schedule="cm") for k in ema_schedule[key]]
        np.testing.assert_array_equal(actual, ema_schedule[f"{name[1]}/cm_N"], err_msg=key)
        checked += 1
    assert checked > 0


def test_numpy_integers_do_not_overflow_in_cms_either() -> None:
    """(s1 + 1)^2 is no int16."""
    k, total, s0, s1 = (np.int16(v) for v in (500, 1000, 2, 1280))
    found = discretization_steps(k, total, s0=s0, s1=s1, schedule="cm")
    assert type(found) is int
    assert found == discretization_steps(500, 1000, s0=2, s1=1280, schedule="cm")


@pytest.mark.parametrize("schedule", ["doubled", "", None])
def test_an_unknown_schedule_is_named(schedule: object) -> None:
    with pytest.raises(ValueError, match="^schedule must be one of doubling, fixed, cm, not"):
        discretization_steps(0, 10, schedule=schedule)
    with pytest.raises(ValueError, match="^schedule must be one of"):
        stages(10, schedule=schedule)


BAD = [
    ("step", -1, ValueError),
    ("step", 1001, ValueError),
    *[("step", value, TypeError) for value in (None, True, 3.0, "3", math.nan, np.float32(3))],
    *[(name, value, ValueError) for name in ("total_steps", "s0", "s1") for value in (0, -1)],
    *[(name, value, TypeError) for name in ("total_steps", "s0", "s1") for value in (None, True, 10.0, "10")],
    ("s1", 9, ValueError),
    ("s0", 1281, ValueError),
]


@pytest.mark.parametrize(("name", "value", "error"), BAD)
def test_bad_arguments_are_named(name: str, value: object, error: type[Exception]) -> None:
    arguments = {"step": 0, "total_steps": 1000, "s0": 10, "s1": 1280, name: value}
    with pytest.raises(error, match=rf"\b{name}\b"):
        discretization_steps(**arguments)
    if name != "step":
        del arguments["step"]
        with pytest.raises(error, match=rf"\b{name}\b"):
            stages(**arguments)
