"""The factor on the loss that keeps the gradients of a float16 network from vanishing."""

from __future__ import annotations

from typing import Generic, NamedTuple

from ict_core._arrays import Array, Namespace, namespace

# What a run begins with.
FIRST_FACTOR = 2.0**16
_MOST, _LEAST, _PATIENCE = 2.0**24, 1.0, 2000


class LossScale(NamedTuple, Generic[Array]):
    """A factor that is as large as the gradients allow.

    Attributes:
        factor: [] float32, a power of two; the loss is multiplied by it and the gradient divided.
        good_steps: [] int32, the steps in a row since the last change whose gradient was finite.
    """

    factor: Array
    good_steps: Array


def next_loss_scale(scale: LossScale[Array], finite: Array, *, xp: Namespace | None = None) -> LossScale[Array]:
    """Halve the factor after a step whose gradient was not finite; double it after 2,000 steps that were.

    The rule of mixed precision training (Micikevicius et al. 2018, sec. 3.2), within 1 and 2^24.

    Args:
        scale: of the step that was done.
        finite: [] bool, whether that step's gradient was. Where it was not, the caller leaves the weights as they are.
        xp: array namespace; inferred from `scale.factor` when omitted.
    """
    xp = namespace("scale.factor", scale.factor, xp)
    good = xp.where(finite, scale.good_steps + 1, xp.zeros_like(scale.good_steps))
    grows = good >= _PATIENCE
    factor = xp.where(finite, xp.where(grows, scale.factor * 2.0, scale.factor), scale.factor * 0.5)
    return LossScale(xp.clip(factor, _LEAST, _MOST), xp.where(grows, xp.zeros_like(good), good))
