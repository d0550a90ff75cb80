"""The teacher's moving average: none in the recipe; that of original consistency training, to compare with."""

from __future__ import annotations

import math

from ict_core._arrays import check_count, check_number


def adaptive_decay(n: int, *, mu0: float = 0.9, s0: int = 2) -> float:
    """mu(k), the decay of the teacher's weights while there are n = N(k) levels.

        mu(k) = exp(s0 log(mu0) / (N(k) - 1))                                        CM app. C, released code

    The paper prints N(k) where the released code divides by the number of intervals, N(k) - 1. After each step,
    teacher <- mu teacher + (1 - mu) student. The recipe has mu = 0: the teacher is the student itself (iCT sec. 3.2).

    Args:
        n: N(k) >= 2 levels, from `discretization_steps`.
        mu0: in (0, 1), the decay at s0 intervals.
        s0: >= 1, the first number of intervals.

    Returns:
        In (0, 1), rising with n.
    """
    check_count("n", n, at_least=2)
    check_count("s0", s0, at_least=1)
    mu0 = check_number("mu0", mu0, above=0.0)
    if not mu0 < 1:
        raise ValueError(f"mu0 must be < 1, not {mu0}")
    return math.exp(s0 * math.log(mu0) / (n - 1))
