"""The discretisation curriculum: how many noise levels, and when."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

from ict_core._arrays import check_choice, check_count

# `curriculum.schedule` of the settings.
SCHEDULES = ("doubling", "fixed", "cm")


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


def discretization_steps(
    step: int, total_steps: int, *, s0: int = 10, s1: int = 1280, schedule: str = "doubling"
) -> int:
    """N(k), the number of noise levels at training step k.

        doubling    N(k) = min(s0 2^floor(k/K'), s1) + 1                             iCT sec. 3.4
        fixed       N(k) = s1 + 1
        cm          N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1        CM app. C

    N counts levels, so there are N(k) - 1 intervals to draw from. The recipe doubles: for K = 400,000 with the
    defaults, 11, 21, 41, ..., 1281, each for 50,000 steps. "cm" is that of original consistency training, from
    s0 levels (2 at least) to s1 + 1, with s0 = 2 and s1 = 150 there.

    Args:
        step: k in 0..K; training runs over 0..K-1.
        total_steps: K >= 1.
        s0, s1: 1 <= s0 <= s1, the first and the last number of intervals; "fixed" takes s1 alone.
        schedule: one of the names above.

    Raises:
        TypeError, ValueError: naming the argument that is out of range.
    """
    check_count("step", step)
    _check_range(total_steps, s0, s1)
    check_choice("schedule", schedule, SCHEDULES)
    if step > total_steps:
        raise ValueError(f"step must be <= total_steps = {total_steps}, not {step}")
    step, total_steps, s0, s1 = map(int, (step, total_steps, s0, s1))  # NumPy's integers overflow
    if schedule == "fixed":
        return s1 + 1
    if schedule == "cm":
        squared = (step / total_steps) * ((s1 + 1) ** 2 - s0**2) + s0**2
        return max(math.ceil(math.sqrt(squared) - 1), 1) + 1
    length = stage_length(total_steps, s0=s0, s1=s1)
    doublings = min(step // length, s1.bit_length())  # 2^bit_length(s1) > s1: no larger power is needed
    return min(s0 << doublings, s1) + 1


def stages(total_steps: int, *, s0: int = 10, s1: int = 1280, schedule: str = "doubling") -> list[Stage]:
    """The stages of a whole run in order; they cover the steps 0..K-1 without gap or overlap.

    Args: as for `discretization_steps`.
    """

    def n(step: int) -> int:
        return discretization_steps(step, total_steps, s0=s0, s1=s1, schedule=schedule)

    _check_range(total_steps, s0, s1)
    found: list[Stage] = []
    first = 0
    while first < total_steps:
        after = bisect_right(range(total_steps), n(first), lo=first, key=n)  # N never falls
        found.append(Stage(first, after - 1, n(first)))
        first = after
    return found
