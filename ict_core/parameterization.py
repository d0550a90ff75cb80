"""The consistency function f, made of a free network F so that f(x, sigma_min) = x for any F."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple, Protocol

from ict_core._arrays import (
    Array,
    Namespace,
    check_floating,
    check_number,
    check_per_sample,
    constant,
    namespace,
    per_sample,
)


class Network(Protocol[Array]):
    """The free network F: arrays in, an array of the shape of `x_in` out."""

    def __call__(self, x_in: Array, c_noise: Array, condition: Any, /) -> Array:
        """F(x_in, c_noise, condition)."""
        ...


class Scalings(NamedTuple, Generic[Array]):
    """The four coefficients of the parameterization, each with the shape of sigma."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


def scalings(
    sigma: Array, *, sigma_data: float = 0.5, sigma_min: float = 0.002, xp: Namespace | None = None
) -> Scalings[Array]:
    """Skip, output, input and noise scalings of the consistency function.

        c_skip(s)  = sd^2 / ((s - smin)^2 + sd^2)                                    CM app. C
        c_out(s)   = sd (s - smin) / sqrt(s^2 + sd^2)
        c_in(s)    = 1 / sqrt(s^2 + sd^2)                                            EDM table 1
        c_noise(s) = log(s) / 4

    c_skip has s - smin under its fraction, c_out has s: at s = smin, c_skip is 1 and c_out is 0
    exactly, in every dtype.

    Args:
        sigma: levels of any shape, >= sigma_min (not checked: it may live on a device), real floating.
        sigma_data: > 0, standard deviation of the data.
        sigma_min: > 0.
        xp: array namespace; inferred from `sigma` when omitted.

    Returns:
        `Scalings`, each with the shape, dtype and device of `sigma`.

    >>> import numpy as np
    >>> at_minimum = scalings(np.array([0.002]))
    >>> float(at_minimum.c_skip[0]), float(at_minimum.c_out[0])
    (1.0, 0.0)
    """
    xp = namespace("sigma", sigma, xp)
    check_floating("sigma", sigma, xp)
    sigma_data = check_number("sigma_data", sigma_data, above=0.0)
    sigma_min = check_number("sigma_min", sigma_min, above=0.0)
    above_min = sigma - constant(sigma_min, sigma, xp)
    variance = sigma_data**2
    # 1 / (1 + (s/sd)^2), not sd^2 / (s^2 + sd^2): exactly 1 at s = 0 in the narrow dtypes too.
    c_skip = 1.0 / (1.0 + (above_min / sigma_data) ** 2)
    c_in = 1.0 / xp.sqrt(sigma**2 + variance)
    return Scalings(c_skip, sigma_data * above_min * c_in, c_in, 0.25 * xp.log(sigma))


def consistency_output(
    network: Network[Array],
    x: Array,
    sigma: Array,
    condition: Any = None,
    *,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    xp: Namespace | None = None,
) -> Array:
    """The consistency function f, for any network F.

        f(x, s) = c_skip(s) x + c_out(s) F(c_in(s) x, c_noise(s), condition)           CM app. C

    The affine part is evaluated in the dtype of `x` (float32 in training), whatever the network
    computes in; the network's output is cast to it.

    Args:
        network: F(x_in, c_noise, condition), returning the shape of x_in.
        x: [b, *event] noisy samples, real floating.
        sigma: [b] their levels, in the dtype of `x`.
        condition: passed on to the network unread: labels, an embedding, a dict of arrays, or None.
        sigma_data, sigma_min, xp: as for `scalings`.

    Returns:
        [b, *event] in the dtype of `x`.

    Raises:
        TypeError, ValueError: naming the argument, or the network where it changes the shape.
    """
    xp = namespace("x", x, xp)
    check_floating("x", x, xp)
    check_per_sample("sigma", sigma, "x", x)
    coefficients = scalings(sigma, sigma_data=sigma_data, sigma_min=sigma_min, xp=xp)
    c_skip, c_out, c_in = (per_sample(c, x, xp) for c in coefficients[:3])
    output = network(c_in * x, coefficients.c_noise, condition)
    if tuple(output.shape) != tuple(x.shape):
        raise ValueError(f"network must return the shape of its input, {tuple(x.shape)}, not {tuple(output.shape)}")
    return c_skip * x + c_out * xp.astype(output, x.dtype)
