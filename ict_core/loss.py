"""The training objective: Pseudo-Huber distance between neighbouring levels, weighted by their gap; and the distances
and weights that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ict_core._arrays import (
    Array,
    Namespace,
    check_choice,
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
    c = check_number("c", c, above=0.0)
    r = squared_l2(a, b, xp=xp)
    xp = namespace("a", a, xp)
    return r / (xp.sqrt(r + c**2) + c)


def squared_l2(a: Array, b: Array, /, *, xp: Namespace | None = None) -> Array:
    """Squared Euclidean distance per sample, "l2" in settings.

        d(a, b) = ||a - b||^2                                                        CM sec. 3

    Args, Raises: as for `pseudo_huber`.

    Returns:
        [b], >= 0, the dtype of `a`.
    """
    xp = namespace("a", a, xp)
    return xp.sum(_differences(a, b, xp) ** 2, axis=1, dtype=a.dtype)


def l1(a: Array, b: Array, /, *, xp: Namespace | None = None) -> Array:
    """Sum of absolute differences per sample.

        d(a, b) = ||a - b||_1                                                        CM sec. 3

    Args, Raises: as for `pseudo_huber`.

    Returns:
        [b], >= 0, the dtype of `a`.
    """
    xp = namespace("a", a, xp)
    return xp.sum(xp.abs(_differences(a, b, xp)), axis=1, dtype=a.dtype)


def pseudo_huber_elementwise(a: Array, b: Array, /, *, c: float, xp: Namespace | None = None) -> Array:
    """A fault, to be shown and not to be used: the Pseudo-Huber distance of each element by itself, summed.

        d(a, b) = sum_j ( sqrt((a_j - b_j)^2 + c^2) - c )                            in no paper

    With the c that is meant for the norm of a whole sample, it is nearly l1, and its gradient's norm is not below 1 but
    up to sqrt(D).

    Args, Returns, Raises: as for `pseudo_huber`.
    """
    c = check_number("c", c, above=0.0)
    xp = namespace("a", a, xp)
    r = _differences(a, b, xp) ** 2
    return xp.sum(r / (xp.sqrt(r + c**2) + c), axis=1, dtype=a.dtype)


def _differences(a: Array, b: Array, xp: Namespace) -> Array:
    """a - b as [b, D]. Raises unless both have one shape and one floating dtype."""
    check_floating("a", a, xp)
    check_same("a", a, "b", b)
    if a.ndim < 1:
        raise ValueError("a must be [b, *event], not a scalar")
    return xp.reshape(a - b, (a.shape[0], math.prod(a.shape[1:])))


class Distance(Protocol):
    """d(a, b): two [b, *event] in, [b] out."""

    def __call__(self, a: Array, b: Array, /, *, c: float, xp: Namespace | None = None) -> Array:
        """d(a, b); c is of the Pseudo-Huber distances alone."""
        ...


# `loss.distance` of the settings -> the function.
DISTANCES: dict[str, Distance] = {
    "pseudo_huber": pseudo_huber,
    "l2": lambda a, b, /, *, c, xp=None: squared_l2(a, b, xp=xp),
    "l1": lambda a, b, /, *, c, xp=None: l1(a, b, xp=xp),
    "pseudo_huber_elementwise": pseudo_huber_elementwise,
}


def huber_constant(dim: int, *, factor: float = 0.00054) -> float:
    """c for data of `dim` elements a sample.

        c = 0.00054 sqrt(D)                                                          iCT sec. 3.3

    Args:
        dim: D >= 1, channels * height * width: 0.03 at 3x32x32, 0.06 at 3x64x64.
        factor: > 0.
    """
    check_count("dim", dim, at_least=1)
    return check_number("factor", factor, above=0.0) * math.sqrt(dim)


# `loss.weighting` of the settings -> the weight of the student's signal-to-noise ratio, snr = 1 / sigma^2.
_OF_SNR: dict[str, Callable[[Array, float, Namespace], Array]] = {
    "one": lambda snr, sigma_data, xp: xp.ones_like(snr),
    "snr": lambda snr, sigma_data, xp: snr,
    "snr_plus_one": lambda snr, sigma_data, xp: snr + 1.0,
    "truncated_snr": lambda snr, sigma_data, xp: xp.where(snr > 1.0, snr, xp.ones_like(snr)),
    "edm": lambda snr, sigma_data, xp: snr + 1.0 / sigma_data**2,
}
WEIGHTINGS = ("inverse_gap", *_OF_SNR)


def loss_weight(
    sigma_lo: Array,
    sigma_hi: Array,
    /,
    *,
    weighting: str = "inverse_gap",
    sigma_data: float = 0.5,
    xp: Namespace | None = None,
) -> Array:
    """The weight of an interval. The recipe's falls with the noise level; the others are what it is compared with.

        inverse_gap     lambda(s_i) = 1 / (s_{i+1} - s_i)                            iCT sec. 3.1
        one             1                                                            CM
        snr             1 / s^2
        snr_plus_one    1 / s^2 + 1                                                  CM, released code
        truncated_snr   max(1 / s^2, 1)                                              CM, released code
        edm             1 / s^2 + 1 / sd^2 = (s^2 + sd^2) / (s sd)^2                 EDM table 1

    The papers write the weight as one of s_i, the teacher's level, which is smin in the first interval whatever
    is drawn. The authors' released code takes s = s_{i+1}, the student's, and so do those of s here.

    Take the difference in float64 (`Grid` does): at N = 1281 it is as small as 4e-5.

    Args:
        sigma_lo, sigma_hi: equal shapes and floating dtypes, sigma_hi > sigma_lo > 0 (not checked: they
            may live on a device).
        weighting: one of the names above.
        sigma_data: > 0, standard deviation of the data; of "edm" alone.
        xp: array namespace; inferred from `sigma_lo` when omitted.

    Returns:
        > 0, the shape and dtype of the arguments.
    """
    xp = namespace("sigma_lo", sigma_lo, xp)
    check_floating("sigma_lo", sigma_lo, xp)
    check_same("sigma_lo", sigma_lo, "sigma_hi", sigma_hi)
    check_choice("weighting", weighting, WEIGHTINGS)
    sigma_data = check_number("sigma_data", sigma_data, above=0.0)
    if weighting == "inverse_gap":
        return 1.0 / (sigma_hi - sigma_lo)
    return _OF_SNR[weighting](1.0 / sigma_hi**2, sigma_data, xp)


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
    distance: str = "pseudo_huber",
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
        c: > 0, Pseudo-Huber constant; the other distances have none.
        distance: a key of `DISTANCES`. The recipe's is the Pseudo-Huber one.
        xp: array namespace; inferred from `x` when omitted.

    Returns:
        `ConsistencyLoss(mean [], per_sample [b])`.
    """
    xp = namespace("x", x, xp)
    check_floating("x", x, xp)
    check_same("x", x, "z", z)
    check_choice("distance", distance, DISTANCES)
    for name, values in (("sigma_lo", sigma_lo), ("sigma_hi", sigma_hi), ("weight", weight)):
        check_per_sample(name, values, "x", x)
    y_lo = teacher(x + per_sample(sigma_lo, x, xp) * z, sigma_lo)
    y_hi = student(x + per_sample(sigma_hi, x, xp) * z, sigma_hi)
    losses = weight * DISTANCES[distance](y_hi, y_lo, c=c, xp=xp)
    return ConsistencyLoss(xp.mean(losses), losses)
