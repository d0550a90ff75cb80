"""One stage's levels with their law and weights, and the draw from it."""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

import numpy as np

from ict_core._arrays import Array, Namespace, check_count, host_constant, namespace
from ict_core.loss import loss_weight
from ict_core.noise_law import interval_cdf, interval_index, interval_probabilities
from ict_core.schedule import karras_sigmas


class Levels(NamedTuple, Generic[Array]):
    """The drawn levels of one batch.

    Attributes:
        sigma_lo: [b] the teacher's level sigma_i.
        sigma_hi: [b] the student's level sigma_{i+1}.
        weight: [b] of `loss_weight`, lambda(sigma_i) = 1 / (sigma_hi - sigma_lo) unless told otherwise.
    """

    sigma_lo: Array
    sigma_hi: Array
    weight: Array


class Grid(NamedTuple):
    """The levels of one stage of the curriculum. Build it with `make_grid`.

    It is a tuple of arrays, hence a pytree: it may be an argument of a compiled function, which need not be compiled
    again for a stage with as many levels.

    Attributes:
        sigmas: [n] rising, float64.
        probabilities: [n-1] of the intervals.
        cdf: [n-1] cumulated, the last one 1.
        weights: [n-1] lambda of each interval, its gap taken in float64.
    """

    sigmas: np.ndarray[Any, Any]
    probabilities: np.ndarray[Any, Any]
    cdf: np.ndarray[Any, Any]
    weights: np.ndarray[Any, Any]

    def levels(self, uniforms: Array, *, xp: Namespace | None = None) -> Levels[Array]:
        """The neighbouring levels that uniform numbers choose: a pure function, for arrays of any library.

        A compiler may trace it.

        Args:
            uniforms: [b] in [0, 1), real floating, float32 or wider: see `interval_index`.
            xp: array namespace; inferred from `uniforms` when omitted.

        Returns:
            `Levels`, each [b] in the dtype and on the device of `uniforms`.

        >>> make_grid(3).levels(np.array([0.0, 0.99])).sigma_hi.round(3)
        array([ 2.515, 80.   ])
        """
        xp = namespace("uniforms", uniforms, xp)
        i = interval_index(uniforms, self.cdf, xp=xp)
        sigmas, weights = (host_constant(values, uniforms, xp) for values in (self.sigmas, self.weights))
        return Levels(xp.take(sigmas, i, axis=0), xp.take(sigmas, i + 1, axis=0), xp.take(weights, i, axis=0))

    def draw(self, rng: np.random.Generator, batch: int, *, like: Array | None = None) -> Levels[Any]:
        """Draw neighbouring levels for a batch; takes `batch` uniforms from `rng` and nothing else.

        Args:
            rng: host generator, for training a function of (seed, step).
            batch: >= 1.
            like: an array whose dtype and device the levels take; NumPy float64 when omitted. They are cast once, after
                the gap of each interval is taken in float64.

        Returns:
            `Levels`, each [batch].
        """
        check_count("batch", batch, at_least=1)
        levels = self.levels(rng.random(batch))
        if like is None:
            return levels
        xp = namespace("like", like)
        return Levels(*(host_constant(values, like, xp) for values in levels))


def make_grid(
    n: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    p_mean: float = -1.1,
    p_std: float = 2.0,
    law: str = "lognormal",
    weighting: str = "inverse_gap",
    sigma_data: float = 0.5,
) -> Grid:
    """The grid of a stage with n levels; arguments as of `karras_sigmas`, `interval_probabilities`, `loss_weight`."""
    sigmas = karras_sigmas(n, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    probabilities = interval_probabilities(sigmas, law=law, p_mean=p_mean, p_std=p_std)
    return Grid(
        sigmas=sigmas,
        probabilities=probabilities,
        cdf=interval_cdf(probabilities),
        weights=loss_weight(sigmas[:-1], sigmas[1:], weighting=weighting, sigma_data=sigma_data),
    )
