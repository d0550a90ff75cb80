"""The discretisation curriculum: how many noise levels, and when."""

from __future__ import annotations

import math
from typing import NamedTuple

from ict_core._arrays import check_count


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
    check_count("total_steps", total_steps, at_least=1)
    check_count("s0", s0, at_least=1)
    check_count("s1", s1, at_least=1)
    if s1 < s0:
        raise ValueError(f"s1 must be >= s0 = {s0}, not {s1}")
    return max(1, math.floor(total_steps / (math.log2(s1 // s0) + 1)))


def discretization_steps(step: int, total_steps: int, *, s0: int = 10, s1: int = 1280) -> int:
    """N(k), the number of noise levels at training step k.

        N(k) = min(s0 2^floor(k/K'), s1) + 1                                         iCT sec. 3.4

    N counts levels, so there are N(k) - 1 intervals to draw from. For K = 400,000 with the
    defaults: 11, 21, 41, ..., 1281, each for 50,000 steps.

    Args:
        step: k in 0..K; training runs over 0..K-1.
        total_steps: K >= 1.
        s0, s1: 1 <= s0 <= s1, the first and the last number of intervals.

    Raises:
        TypeError, ValueError: naming the argument that is out of range.
    """
    check_count("step", step)
    length = stage_length(total_steps, s0=s0, s1=s1)
    if step > total_steps:
        raise ValueError(f"step must be <= total_steps = {total_steps}, not {step}")
    doublings = min(int(step) // length, int(s1).bit_length())  # 2^bit_length(s1) > s1: no larger power is needed
    return min(int(s0) << doublings, int(s1)) + 1


def stages(total_steps: int, *, s0: int = 10, s1: int = 1280) -> list[Stage]:
    """The stages of a whole run in order; they cover the steps 0..K-1 without gap or overlap.

    Args: as for `discretization_steps`.
    """
    length = stage_length(total_steps, s0=s0, s1=s1)
    found: list[Stage] = []
    for first in range(0, total_steps, length):
        n = discretization_steps(first, total_steps, s0=s0, s1=s1)
        if found and found[-1].n == n:
            break
        if found:
            found[-1] = found[-1]._replace(last=first - 1)
        found.append(Stage(first, total_steps - 1, n))
    return found
