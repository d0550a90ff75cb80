"""The gap rule of consistency tuning: continuous levels of the student, and the teacher's a share of them below.

In place of a grid. Doubling the number of a grid's levels halves the gap between neighbours; a stage of the rule with
q = 2 does the same at levels that are drawn anew. Diffusion training is the stage before the first: all of the gap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ict_core._arrays import (
    Array,
    Namespace,
    check_count,
    check_floating,
    check_number,
    constant,
    host_constant,
    namespace,
)
from ict_core.grid import Levels
from ict_core.loss import loss_weight

# The student's levels keep so far above sigma_min, relatively: at sigma_min itself there is no level below. Of the
# recipe's law, 0.5% lies there.
_ABOVE_MIN = 1.01


def gap_share(stage: int, *, q: float = 2.0, limit: float = 0.999) -> float:
    """The share of a large level by which the teacher's is lower in a stage: max(q^-(a+1), 1 - limit).

    ECT, with 1 - share in place of the share. The stage before the first, a = -1, has share 1: diffusion training.

    Args:
        stage: a >= -1.
        q: > 1.
        limit: in (0, 1), where 1 - share stays.

    >>> [gap_share(stage) for stage in (-1, 0, 1, 2, 20)]
    [1.0, 0.5, 0.25, 0.125, 0.0010000000000000009]
    """
    check_count("stage", stage, at_least=-1)
    q, limit = check_number("q", q, above=1.0), check_number("limit", limit, above=0.0)
    if not limit < 1:
        raise ValueError(f"limit must be < 1, not {limit}")
    return max(q ** -float(stage + 1), 1.0 - limit)


def gap_stages(total_steps: int, count: int) -> list[tuple[int, int]]:
    """The first and the last step of each stage: `count` of equal length, the last one longer by what is left over.

    If there are fewer steps than stages, each step is a stage.

    >>> gap_stages(100_000, 8)[0], gap_stages(10, 4)
    ((0, 12499), [(0, 1), (2, 3), (4, 5), (6, 9)])
    """
    check_count("total_steps", total_steps, at_least=1)
    check_count("count", count, at_least=1)
    length = max(1, total_steps // count)
    firsts = range(0, min(count * length, total_steps), length)
    return [(first, first + length - 1) for first in firsts[:-1]] + [(firsts[-1], total_steps - 1)]


def teacher_level(
    sigma: Array,
    share: float,
    *,
    k: float = 8.0,
    b: float = 1.0,
    sigma_min: float = 0.002,
    xp: Namespace | None = None,
) -> Array:
    """The teacher's level below a level of the student.

        r(t) = max(sigma_min, t (1 - share n(t))),  n(t) = 1 + k sigmoid(-b t)       ECT

    At the floor, the teacher's output is its input, x + sigma_min z: f(x, sigma_min) = x. (ECT has r = 0 there.)

    Args:
        sigma: t of any shape, > sigma_min (not checked: it may live on a device), real floating.
        share: in (0, 1], from `gap_share`.
        k: >= 0, how much wider the gap is at small levels.
        b: > 0, the steepness of the way from small levels to large ones.
        sigma_min: > 0.
        xp: array namespace; inferred from `sigma` when omitted.

    Returns:
        r, in [sigma_min, t), of the shape and dtype of `sigma`.
    """
    xp = namespace("sigma", sigma, xp)
    share, k = check_number("share", share, above=0.0), check_number("k", k, at_least=0.0)
    b, sigma_min = check_number("b", b, above=0.0), check_number("sigma_min", sigma_min, above=0.0)
    if share > 1:
        raise ValueError(f"share must be <= 1, not {share}")
    # sigmoid(-u) = exp(-u) / (1 + exp(-u)): u >= 0, so that nothing overflows
    small = xp.exp(-b * sigma)
    widened = 1.0 + k * small / (1.0 + small)
    return xp.maximum(sigma * (1.0 - share * widened), constant(sigma_min, sigma, xp))


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The levels of one stage of the gap rule: in place of a `Grid`, with the same `draw`.

    Attributes:
        share: in (0, 1], from `gap_share`.
        k, b: see `teacher_level`.
        sigma_min: the smallest level.
        p_mean, p_std: mean and standard deviation of log t. The law is not cut off above.
        weighting, sigma_data: see `loss_weight`.
    """

    share: float
    k: float = 8.0
    b: float = 1.0
    sigma_min: float = 0.002
    p_mean: float = -1.1
    p_std: float = 2.0
    weighting: str = "inverse_gap"
    sigma_data: float = 0.5

    def levels(self, normals: Array, *, xp: Namespace | None = None) -> Levels[Array]:
        """The levels that standard normal numbers choose: a pure function, for arrays of any library.

        Args:
            normals: [b], real floating; log t = p_mean + p_std normals.
            xp: array namespace; inferred from `normals` when omitted.

        Returns:
            `Levels`, each [b] in the dtype and on the device of `normals`: r, t and the weight of their gap.
        """
        xp = namespace("normals", normals, xp)
        check_floating("normals", normals, xp)
        check_number("p_mean", self.p_mean)
        check_number("p_std", self.p_std, above=0.0)
        drawn = xp.exp(self.p_mean + self.p_std * normals)
        sigma = xp.maximum(drawn, constant(_ABOVE_MIN * self.sigma_min, normals, xp))
        below = teacher_level(sigma, self.share, k=self.k, b=self.b, sigma_min=self.sigma_min, xp=xp)
        weight = loss_weight(below, sigma, weighting=self.weighting, sigma_data=self.sigma_data, xp=xp)
        return Levels(below, sigma, weight)

    def draw(self, rng: np.random.Generator, batch: int, *, like: Array | None = None) -> Levels[Any]:
        """Draw levels for a batch; takes `batch` normal numbers from `rng` and nothing else. As `Grid.draw`."""
        check_count("batch", batch, at_least=1)
        levels = self.levels(rng.standard_normal(batch))
        if like is None:
            return levels
        xp = namespace("like", like)
        return Levels(*(host_constant(values, like, xp) for values in levels))
