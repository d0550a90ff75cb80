"""The loss between neighbouring levels: the Pseudo-Huber distance, weighted by the gap; and the distances and weights
that are there to compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol

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


class ConsistencyFunction(Protocol[Array]):
    """f(x, sigma): [b, *event] and [b] in, [b, *event] out."""

    def __call__(self, x: Array, sigma: Array, /) -> Array:
        """f(x, sigma)."""
        ...


class ConsistencyLoss(NamedTuple, Generic[Array]):
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

    >>> import numpy as np
    >>> pseudo_huber(np.array([[3.0, 4.0], [0.0, 0.0]]), np.zeros((2, 2)), c=12.0)
    array([1., 0.])
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
    """The sum of the Pseudo-Huber distances of single elements: a known fault, which is here to be shown, not used.

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


class Distance(Protocol[Array]):
    """d(a, b) per sample: two [b, *event] in, [b] out."""

    def __call__(self, a: Array, b: Array, /) -> Array:
        """d(a, b)."""
        ...


# `loss.distance` of the settings -> d(a, b, *, xp), made of the Pseudo-Huber constant c, which the others do not have.
DISTANCES: dict[str, Callable[[float], Callable[..., Any]]] = {
    "pseudo_huber": lambda c: partial(pseudo_huber, c=c),
    "l2": lambda c: squared_l2,
    "l1": lambda c: l1,
    "pseudo_huber_elementwise": lambda c: partial(pseudo_huber_elementwise, c=c),
}


def huber_constant(dim: int, *, factor: float = 0.00054) -> float:
    """c for data of `dim` elements a sample.

        c = 0.00054 sqrt(D)                                                          iCT sec. 3.3

    Args:
        dim: D >= 1, channels * height * width.
        factor: > 0.

    >>> round(huber_constant(3 * 32 * 32), 4), round(huber_constant(3 * 64 * 64), 4)
    (0.0299, 0.0599)
    """
    check_count("dim", dim, at_least=1)
    return check_number("factor", factor, above=0.0) * math.sqrt(dim)


def inverse_gap(sigma_lo: Array, sigma_hi: Array, /) -> Array:
    """The recipe's weight of an interval, which falls with the noise level: lambda(s_i) = 1 / (s_{i+1} - s_i).

    iCT sec. 3.1
    """
    return 1.0 / (sigma_hi - sigma_lo)


def snr(sigma: Array, /) -> Array:
    """The signal-to-noise ratio of data of variance 1 at a level: 1 / s^2."""
    return 1.0 / sigma**2


def truncated_snr(sigma: Array, /, *, xp: Namespace) -> Array:
    """max(1 / s^2, 1).                                                              CM, released code"""
    ratio = snr(sigma)
    return xp.where(ratio > 1.0, ratio, xp.ones_like(ratio))


def edm_weight(sigma: Array, /, *, sigma_data: float) -> Array:
    """1 / s^2 + 1 / sd^2 = (s^2 + sd^2) / (s sd)^2.                                 EDM table 1"""
    return snr(sigma) + 1.0 / sigma_data**2


# `loss.weighting` of the settings -> the weight of an interval, from (sigma_lo, sigma_hi, sigma_data, xp).
WEIGHTINGS: dict[str, Callable[[Any, Any, float, Namespace], Any]] = {
    "inverse_gap": lambda lo, hi, sigma_data, xp: inverse_gap(lo, hi),
    "one": lambda lo, hi, sigma_data, xp: xp.ones_like(hi),
    "snr": lambda lo, hi, sigma_data, xp: snr(hi),
    "snr_plus_one": lambda lo, hi, sigma_data, xp: snr(hi) + 1.0,
    "truncated_snr": lambda lo, hi, sigma_data, xp: truncated_snr(hi, xp=xp),
    "edm": lambda lo, hi, sigma_data, xp: edm_weight(hi, sigma_data=sigma_data),
}


def loss_weight(
    sigma_lo: Array,
    sigma_hi: Array,
    /,
    *,
    weighting: str = "inverse_gap",
    sigma_data: float = 0.5,
    xp: Namespace | None = None,
) -> Array:
    """The weight of an interval, by the name that it has in settings; all but the first are there to compare with.

        inverse_gap     lambda(s_i) = 1 / (s_{i+1} - s_i)                            iCT sec. 3.1
        one             1                                                            CM
        snr             1 / s^2
        snr_plus_one    1 / s^2 + 1                                                  CM, released code
        truncated_snr   max(1 / s^2, 1)                                              CM, released code
        edm             1 / s^2 + 1 / sd^2 = (s^2 + sd^2) / (s sd)^2                 EDM table 1

    The papers write the weight as a function of s_i, the teacher's level, which is smin in the first interval whatever
    is drawn. The authors' released code takes s = s_{i+1}, the student's level, and so does every s above.

    Take the difference in float64 (`Grid` does): at N = 1281 it is as small as 4e-5.

    Args:
        sigma_lo, sigma_hi: equal shapes and floating dtypes, sigma_hi > sigma_lo > 0 (not checked: they
            may live on a device).
        weighting: one of the names above.
        sigma_data: > 0, standard deviation of the data; only "edm" depends on it.
        xp: array namespace; inferred from `sigma_lo` when omitted.

    Returns:
        > 0, the shape and dtype of the arguments.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    xp = namespace("sigma_lo", sigma_lo, xp)
    check_floating("sigma_lo", sigma_lo, xp)
    check_same("sigma_lo", sigma_lo, "sigma_hi", sigma_hi)
    check_choice("weighting", weighting, WEIGHTINGS)
    sigma_data = check_number("sigma_data", sigma_data, above=0.0)
    return WEIGHTINGS[weighting](sigma_lo, sigma_hi, sigma_data, xp)


def consistency_loss(
    student: ConsistencyFunction[Array],
    teacher: ConsistencyFunction[Array],
    x: Array,
    z: Array,
    sigma_lo: Array,
    sigma_hi: Array,
    weight: Array,
    *,
    c: float | None = None,
    distance: Distance[Array] | None = None,
    xp: Namespace | None = None,
) -> ConsistencyLoss[Array]:
    """The objective of improved consistency training for one batch: its mean and the loss of each sample.

        L = mean[ lambda(s_i) d( f_theta(x + s_{i+1} z, s_{i+1}), f_stop(theta)(x + s_i z, s_i) ) ]
                                                                                     iCT eq. 5

    Both levels see the same x and the same z. The teacher is called first. It has the student's current weights and
    random numbers, and no gradient passes through it: `teacher_of(student)` is such a function.

    Args:
        student, teacher: f(x, sigma) of [b, *event] and [b].
        x: [b, *event] clean data.
        z: [b, *event] standard normal noise, the dtype of `x`.
        sigma_lo, sigma_hi, weight: [b], from `Grid.draw`, the dtype of `x`.
        c: > 0, the constant of the Pseudo-Huber distance, which is the recipe's d.
        distance: another d(a, b) -> [b], in place of `c`: `squared_l2`, or one of your own.
        xp: array namespace; inferred from `x` when omitted.

    Returns:
        `ConsistencyLoss(mean [], per_sample [b])`.

    Raises:
        TypeError, ValueError: naming the argument.

    >>> import numpy as np
    >>> x, z = np.zeros((2, 3)), np.ones((2, 3))
    >>> f = lambda x, sigma: 0.5 * x
    >>> loss = consistency_loss(f, f, x, z, np.array([1.0, 2.0]), np.array([2.0, 4.0]), np.array([1.0, 0.5]), c=0.1)
    >>> loss.per_sample.round(3)
    array([0.772, 0.817])
    """
    xp = namespace("x", x, xp)
    check_floating("x", x, xp)
    check_same("x", x, "z", z)
    for name, values in (("sigma_lo", sigma_lo), ("sigma_hi", sigma_hi), ("weight", weight)):
        check_per_sample(name, values, "x", x)
    d = _chosen_distance(c, distance, xp)
    y_lo = teacher(x + per_sample(sigma_lo, x, xp) * z, sigma_lo)
    y_hi = student(x + per_sample(sigma_hi, x, xp) * z, sigma_hi)
    distances = d(y_hi, y_lo)
    # [b, 1], or a mean over the batch, would broadcast to a loss that is wrong and looks right.
    if tuple(distances.shape) != tuple(x.shape[:1]):
        raise ValueError(f"distance must return [b] = {tuple(x.shape[:1])}, not {tuple(distances.shape)}")
    losses = weight * distances
    return ConsistencyLoss(xp.mean(losses), losses)


def _chosen_distance(c: float | None, distance: Distance[Array] | None, xp: Namespace) -> Distance[Array]:
    """The distance that a caller has given, by itself or by the constant of the Pseudo-Huber one."""
    if c is not None and distance is None:
        return partial(pseudo_huber, c=c, xp=xp)
    if distance is None or c is not None:
        raise TypeError("consistency_loss takes c, for the Pseudo-Huber distance, or else distance")
    if not callable(distance):
        raise TypeError(f"distance must be a function of (a, b), not {type(distance).__name__}")
    return distance
