"""The law of the noise level in training: a lognormal, discretised on the levels of a stage; or a uniform one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ict_core._arrays import (
    Array,
    Namespace,
    check_choice,
    check_floating,
    check_number,
    host_constant,
    namespace,
    to_host,
)


def lognormal_mass(levels: np.ndarray[Any, Any], *, p_mean: float, p_std: float) -> np.ndarray[Any, Any]:
    """The mass of a lognormal law between neighbouring levels, not normalised: the recipe's law.

        2 P(s_i < s <= s_{i+1}) = erf((log s_{i+1} - Pm) / (sqrt2 Ps)) - erf((log s_i - Pm) / (sqrt2 Ps))
                                                                                     iCT sec. 3.5

    Evaluated by complementary error functions of the nearer tail, which keep their relative precision where 1 - erf
    would round to 0.

    Args:
        levels: [n] float64, > 0, strictly rising.
        p_mean, p_std: mean and standard deviation (> 0) of log sigma.

    Returns:
        [n-1] float64, >= 0.
    """
    u = (np.log(levels) - p_mean) / (math.sqrt(2.0) * p_std)
    lo, hi = u[:-1], u[1:]
    upper = lo > 0
    near, far = np.where(upper, lo, -hi), np.where(upper, hi, -lo)
    mass: np.ndarray[Any, Any] = _erfc(near) - _erfc(far)
    return mass


def uniform_mass(levels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[n-1] ones: every interval between [n] levels has the same mass.              CM algorithm 3"""
    return np.ones(len(levels) - 1)


# `noise.law` of the settings -> the mass of the intervals, from (levels, p_mean, p_std).
LAWS: dict[str, Callable[[np.ndarray[Any, Any], float, float], np.ndarray[Any, Any]]] = {
    "lognormal": lambda levels, p_mean, p_std: lognormal_mass(levels, p_mean=p_mean, p_std=p_std),
    "uniform": lambda levels, p_mean, p_std: uniform_mass(levels),
}


def interval_probabilities(
    sigmas: Array, *, law: str = "lognormal", p_mean: float = -1.1, p_std: float = 2.0, xp: Namespace | None = None
) -> Array:
    """The probability of each interval between neighbouring levels, by the name of the law in settings.

        lognormal
        p(i) ~ erf((log s_{i+1} - Pm) / (sqrt2 Ps)) - erf((log s_i - Pm) / (sqrt2 Ps))    iCT sec. 3.5
             = P(s_i < s <= s_{i+1}) for log s ~ N(Pm, Ps^2), renormalised over [s_1, s_N]
        uniform
        p(i) = 1 / (N - 1)                                                                CM algorithm 3

    Computed on the host in float64 and cast once; it is set up once per stage and is not meant to
    be traced by a compiler.

    Args:
        sigmas: [n] levels, > 0, strictly rising, n >= 2.
        law: "lognormal", the recipe's, or "uniform", that of original consistency training.
        p_mean, p_std: mean and standard deviation (> 0) of log sigma; only the lognormal law has them.
        xp: array namespace; inferred from `sigmas` when omitted.

    Returns:
        [n-1], >= 0, summing to 1, in the dtype and on the device of `sigmas`.

    Raises:
        TypeError, ValueError: naming the argument; also where the law has no mass between the ends.
    """
    xp = namespace("sigmas", sigmas, xp)
    check_floating("sigmas", sigmas, xp)
    check_choice("law", law, LAWS)
    p_mean = check_number("p_mean", p_mean)
    p_std = check_number("p_std", p_std, above=0.0)
    if sigmas.ndim != 1 or sigmas.shape[0] < 2:
        raise ValueError(f"sigmas must be [n] with n >= 2, not {tuple(sigmas.shape)}")
    levels = to_host(sigmas)
    if not (np.isfinite(levels).all() and levels[0] > 0 and np.all(np.diff(levels) > 0)):
        raise ValueError("sigmas must be positive, finite and strictly rising")
    mass = LAWS[law](levels, p_mean, p_std)
    total = mass.sum()
    if not total > 0:
        raise ValueError(
            f"p_mean = {p_mean}, p_std = {p_std} put no mass between sigmas {levels[0]:g} and {levels[-1]:g}"
        )
    return host_constant(mass / total, sigmas, xp)


def interval_cdf(probabilities: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """[n-1] cumulated probabilities, float64, the last one exactly 1."""
    cdf = np.cumsum(np.asarray(probabilities, dtype=np.float64))
    cdf /= cdf[-1]
    return cdf


def interval_index(uniforms: Array, cdf: np.ndarray[Any, Any], *, xp: Namespace | None = None) -> Array:
    """The interval that each uniform falls into: index i with cdf[i-1] <= u < cdf[i].

    Args:
        uniforms: [b] in [0, 1), real floating; float32 or wider, since a narrower type has too few values.
        cdf: [n-1] from `interval_cdf`.
        xp: array namespace; inferred from `uniforms` when omitted.

    Returns:
        [b] integers in 0..n-2. An interval of probability 0 is never returned.

    Raises:
        TypeError, ValueError: naming the argument. The range is checked in NumPy, but not on a device.
    """
    xp = namespace("uniforms", uniforms, xp)
    check_floating("uniforms", uniforms, xp)
    if isinstance(uniforms, np.ndarray) and uniforms.size and not (uniforms.min() >= 0.0 and uniforms.max() < 1.0):
        raise ValueError("uniforms must be in [0, 1)")
    return xp.searchsorted(
        host_constant(cdf, uniforms, xp), uniforms, side="right"
    )  # the last of cdf is 1 in any dtype


def _erfc(u: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.array([math.erfc(v) for v in u])
