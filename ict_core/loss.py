"""The training objective: Pseudo-Huber distance between neighbouring levels, weighted by their gap."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

from ict_core._arrays import (
    Array,
    Namespace,
    check_count,
    check_floating,
    check_number,
    check_per_sample,
    check_same,
    namespace,
    per_sample,
)


class ConsistencyFunction(Protocol):
    """f(x, sigma): [b, *event] and [b] in, [b, *event] out."""

    def __call__(self, x: Array, sigma: Array, /) -> Array:
        """f(x, sigma)."""
        ...


class ConsistencyLoss(NamedTuple):
    """The objective of one batch.

    Attributes:
        mean: [] what is differentiated.
        per_sample: [b] weighted distances; their mean is `mean`.
    """

    mean: Array
    per_sample: Array


def pseudo_huber(a: Array, b: Array, /, *, c: float, xp: Namespace | None = None) -> Array:
    """Distance per sample: quadratic near zero, linear far away.

        d(a, b) = sqrt(||a - b||^2 + c^2) - c        iCT sec. 3.3; norm over all axes but the first

    Evaluated as r / (sqrt(r + c^2) + c), r = ||a - b||^2, which keeps its digits for small r.

    Args:
        a, b: [b, *event], equal floating dtype, pixel units (images in [-1, 1]).
        c: > 0, in units of ||a - b||; iCT takes 0.00054 sqrt(D), D = prod(event): `huber_constant`.
        xp: array namespace; inferred from `a` when omitted.

    Returns:
        [b], >= 0, the dtype of `a`. The norm of its gradient with respect to `a` is below 1 for any D.

    Raises:
        TypeError, ValueError: naming the argument; nothing is broadcast or promoted.
    """
    xp = namespace("a", a, xp)
    check_floating("a", a, xp)
    check_same("a", a, "b", b)
    c = check_number("c", c, above=0.0)
    if a.ndim < 1:
        raise ValueError("a must be [b, *event], not a scalar")
    squared = xp.reshape((a - b) ** 2, (a.shape[0], math.prod(a.shape[1:])))
    r = xp.sum(squared, axis=1, dtype=a.dtype)
    return r / (xp.sqrt(r + c**2) + c)


def huber_constant(dim: int, *, factor: float = 0.00054) -> float:
    """c for data of `dim` elements a sample.

        c = 0.00054 sqrt(D)                                                          iCT sec. 3.3

    Args:
        dim: D >= 1, channels * height * width: 0.03 at 3x32x32, 0.06 at 3x64x64.
        factor: > 0.
    """
    check_count("dim", dim, at_least=1)
    return check_number("factor", factor, above=0.0) * math.sqrt(dim)


def loss_weight(sigma_lo: Array, sigma_hi: Array, /, *, xp: Namespace | None = None) -> Array:
    """The weight of an interval, which falls with the noise level.

        lambda(s_i) = 1 / (s_{i+1} - s_i)                                            iCT sec. 3.2

    Take the difference in float64 (`Grid` does): at N = 1281 it is as small as 4e-5.

    Args:
        sigma_lo, sigma_hi: equal shapes and floating dtypes, sigma_hi > sigma_lo (not checked: they
            may live on a device).
        xp: array namespace; inferred from `sigma_lo` when omitted.

    Returns:
        > 0, the shape and dtype of the arguments.
    """
    xp = namespace("sigma_lo", sigma_lo, xp)
    check_floating("sigma_lo", sigma_lo, xp)
    check_same("sigma_lo", sigma_lo, "sigma_hi", sigma_hi)
    return 1.0 / (sigma_hi - sigma_lo)


def consistency_loss(
    student: ConsistencyFunction,
    teacher: ConsistencyFunction,
    x: Array,
    z: Array,
    sigma_lo: Array,
    sigma_hi: Array,
    weight: Array,
    *,
    c: float,
    xp: Namespace | None = None,
) -> ConsistencyLoss:
    """The objective of improved consistency training, for one batch.

        L = mean[ lambda(s_i) d( f_theta(x + s_{i+1} z, s_{i+1}), f_stop(theta)(x + s_i z, s_i) ) ]
                                                                                     iCT eq. 5

    Both levels see the same x and the same z. The teacher is called first; that it has the
    student's current weights, its dropout masks and no gradient is the caller's part.

    Args:
        student, teacher: f(x, sigma) of [b, *event] and [b].
        x: [b, *event] clean data.
        z: [b, *event] standard normal noise, the dtype of `x`.
        sigma_lo, sigma_hi, weight: [b], from `Grid.draw`, the dtype of `x`.
        c: > 0, Pseudo-Huber constant.
        xp: array namespace; inferred from `x` when omitted.

    Returns:
        `ConsistencyLoss(mean [], per_sample [b])`.
    """
    xp = namespace("x", x, xp)
    check_floating("x", x, xp)
    check_same("x", x, "z", z)
    for name, values in (("sigma_lo", sigma_lo), ("sigma_hi", sigma_hi), ("weight", weight)):
        check_per_sample(name, values, "x", x)
    y_lo = teacher(x + per_sample(sigma_lo, x, xp) * z, sigma_lo)
    y_hi = student(x + per_sample(sigma_hi, x, xp) * z, sigma_hi)
    losses = weight * pseudo_huber(y_hi, y_lo, c=c, xp=xp)
    return ConsistencyLoss(xp.mean(losses), losses)
