"""The learning rate over time: constant in the recipe; warm-up and decay to compare with."""

from __future__ import annotations

import math

from ict_core._arrays import check_count

# The ways in which the rate falls.
DECAYS = ("none", "linear", "cosine", "inverse_sqrt")


def learning_rate_factor(
    step: int, total_steps: int, *, warmup_steps: int = 0, decay: str = "none", decay_from: int = 0
) -> float:
    """The factor on the learning rate in a training step.

        min(k / W, 1) d(k),  d(k) = 1 for k <= s, and for k > s with u = (k - s) / (K - s)

        linear         1 - u
        cosine         (1 + cos(pi u)) / 2                              Loshchilov & Hutter 2017, eq. 5
        inverse_sqrt   sqrt(s / k)                                      Karras et al. 2024 (EDM2), with t_ref = s

    k steps are done, of K. W steps of linear warm-up begin at the rate 0 (Goyal et al. 2017, sec. 2.2), as in EDM and
    EDM2. With s = W, "inverse_sqrt" is the schedule of Vaswani et al. 2017, eq. 3.

    Args:
        step: k >= 0, the number of steps done.
        total_steps: K >= 1; no factor is 0 before it but for the first of a warm-up.
        warmup_steps: W >= 0.
        decay: "none" for d = 1, or the form of d.
        decay_from: s, >= `warmup_steps`; 0 for `warmup_steps`. One of them is > 0 with "inverse_sqrt".

    Returns:
        In [0, 1].

    >>> [learning_rate_factor(k, 8, warmup_steps=2, decay="linear", decay_from=4) for k in range(8)]
    [0.0, 0.5, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    check_count("step", step, at_least=0)
    check_count("total_steps", total_steps, at_least=1)
    check_count("warmup_steps", warmup_steps, at_least=0)
    check_count("decay_from", decay_from, at_least=0)
    if decay not in DECAYS:
        raise ValueError(f"decay must be one of {', '.join(DECAYS)}, not {decay!r}")
    first = decay_from or warmup_steps
    if first < warmup_steps or (decay == "inverse_sqrt" and not first):
        raise ValueError(f"decay_from must be >= warmup_steps = {warmup_steps} and > 0, not {decay_from}")
    rising = min(step / warmup_steps, 1.0) if warmup_steps else 1.0
    if decay == "none" or step <= first:
        return rising
    if decay == "inverse_sqrt":
        return rising * math.sqrt(first / step)
    left = max(total_steps - step, 0) / max(total_steps - first, 1)
    return rising * (left if decay == "linear" else (1.0 - math.cos(math.pi * left)) / 2)
