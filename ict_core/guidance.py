"""Classifier-free guidance (Ho & Salimans 2022): sampling more of a class than the network gives by itself.

It needs a network that also knows images without their class: training drops the label of some images
(`train.label_dropout`), which then have the label `NO_CLASS`.
"""

from __future__ import annotations

from ict_core._arrays import Array, check_number
from ict_core.loss import ConsistencyFunction

# The label of an image without a class, in every network that has classes: its row of the table of classes is zero, as
# where EDM's label dropout sets the one-hot vector to zero. So it needs no parameters of its own.
NO_CLASS = -1


def guided(
    f: ConsistencyFunction[Array], f_null: ConsistencyFunction[Array], scale: float
) -> ConsistencyFunction[Array]:
    """The consistency function of a class, moved away from what the network gives without one.

        f_w(x, s) = f_null(x, s) + w (f(x, s) - f_null(x, s))                        Karras et al. 2024

    Since f is affine in the network, this guides the network's output alike. w = 1 is no guidance: the result is `f`
    itself; with w = 0 it is `f_null`. Any other scale evaluates both, and what they give may leave [-1, 1].

    Args:
        f: the consistency function of the classes that are asked for, f(x [b, *event], sigma [b]) -> [b, *event].
        f_null: that of the same network without a class (`NO_CLASS`).
        scale: w, finite and >= 0; the papers that count from 0 call it w - 1.

    Raises:
        TypeError, ValueError: the scale is no such number.

    >>> import numpy as np
    >>> f = guided(lambda x, sigma: 0.5 * x, lambda x, sigma: 0.25 * x, 3.0)
    >>> f(np.array([[1.0, -2.0]]), np.array([80.0]))
    array([[ 1., -2.]])
    """
    w = check_number("scale", scale, at_least=0.0)
    if w in (0.0, 1.0):
        return f if w else f_null

    def both(x: Array, sigma: Array, /) -> Array:
        without = f_null(x, sigma)
        return without + w * (f(x, sigma) - without)

    return both
