"""The discretisation curriculum: how many noise levels, and when."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ict_core._arrays import check_choice, check_count


class Stage(NamedTuple):
    """A run of training steps with one number of levels.

    Attributes:
        first, last: training steps, counted from 0, both included.
        n: N(k), the number of levels in these steps.
    """

    first: int
    last: int
    n: int


def stage_length(total_steps: int, *, s0: int = 10, s1: int = 1280) -> int:
    """K', the steps after which the number of intervals doubles; at least 1.

        K' = floor(K / (log2 floor(s1/s0) + 1))                                      iCT sec. 3.4

    The floor of 1 matters only where K is smaller than the number of stages, where the formula
    would give 0.

    Args:
        total_steps: K >= 1.
        s0, s1: 1 <= s0 <= s1, the first and the last number of intervals.
    """
    _check_range(total_steps, s0, s1)
    return max(1, math.floor(total_steps / (math.log2(s1 // s0) + 1)))


def _check_range(total_steps: int, s0: int, s1: int) -> None:
    check_count("total_steps", total_steps, at_least=1)
    check_count("s0", s0, at_least=1)
    check_count("s1", s1, at_least=1)
    if s1 < s0:
        raise ValueError(f"s1 must be >= s0 = {s0}, not {s1}")


def doubling_steps(step: int, total_steps: int, *, s0: int, s1: int) -> int:
    """N(k) = min(s0 2^floor(k/K'), s1) + 1, the recipe's.                           iCT sec. 3.4"""
    length = stage_length(total_steps, s0=s0, s1=s1)
    doublings = min(step // length, s1.bit_length())  # 2^bit_length(s1) > s1: no larger power is needed
    return min(s0 << doublings, s1) + 1


def cm_steps(step: int, total_steps: int, *, s0: int, s1: int) -> int:
    """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1, that of original consistency training.

    CM app. C; from s0 levels (2 at least) to s1 + 1, with s0 = 2 and s1 = 150 there.
    """
    squared = (step / total_steps) * ((s1 + 1) ** 2 - s0**2) + s0**2
    return max(math.ceil(math.sqrt(squared) - 1), 1) + 1


# `curriculum.schedule` of the settings -> N(k), from (step, total_steps, s0, s1).
SCHEDULES: dict[str, Callable[[int, int, int, int], int]] = {
    "doubling": lambda step, total_steps, s0, s1: doubling_steps(step, total_steps, s0=s0, s1=s1),
    "fixed": lambda step, total_steps, s0, s1: s1 + 1,
    "cm": lambda step, total_steps, s0, s1: cm_steps(step, total_steps, s0=s0, s1=s1),
}


def discretization_steps(
    step: int, total_steps: int, *, s0: int = 10, s1: int = 1280, schedule: str = "doubling"
) -> int:
    """N(k), the number of noise levels at training step k.

        doubling    N(k) = min(s0 2^floor(k/K'), s1) + 1                             iCT sec. 3.4
        fixed       N(k) = s1 + 1
        cm          N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1        CM app. C

    N counts levels, so there are N(k) - 1 intervals to draw from. The recipe doubles: for K = 400,000 with the
    defaults, there are 11, 21, 41, ..., 1281 levels, each number for 50,000 steps.

    Args:
        step: k in 0..K; training runs over 0..K-1.
        total_steps: K >= 1.
        s0, s1: 1 <= s0 <= s1, the first and the last number of intervals; "fixed" only depends on s1.
        schedule: one of the names above.

    Raises:
        TypeError, ValueError: naming the argument that is out of range.

    >>> [discretization_steps(k, 400_000) for k in (0, 49_999, 50_000, 399_999)]
    [11, 11, 21, 1281]
    """
    check_count("step", step)
    _check_range(total_steps, s0, s1)
    check_choice("schedule", schedule, SCHEDULES)
    if step > total_steps:
        raise ValueError(f"step must be <= total_steps = {total_steps}, not {step}")
    return SCHEDULES[schedule](*map(int, (step, total_steps, s0, s1)))  # NumPy's integers overflow


def stages(total_steps: int, *, s0: int = 10, s1: int = 1280, schedule: str = "doubling") -> list[Stage]:
    """The stages of a whole run in order; they cover the steps 0..K-1 without gap or overlap.

    Args, Raises: as for `discretization_steps`.

    >>> stages(1000, s0=10, s1=40)
    [Stage(first=0, last=332, n=11), Stage(first=333, last=665, n=21), Stage(first=666, last=999, n=41)]
    """
    _check_range(total_steps, s0, s1)
    levels = partial(discretization_steps, total_steps=total_steps, s0=s0, s1=s1, schedule=schedule)
    runs: list[Stage] = []
    first = 0
    while first < total_steps:
        after = bisect_right(range(total_steps), levels(first), lo=first, key=levels)  # N never falls
        runs.append(Stage(first, after - 1, levels(first)))
        first = after
    return runs
