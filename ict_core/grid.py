"""One stage's levels with their law and weights, and the draw from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ict_core._arrays import check_count
from ict_core.loss import loss_weight
from ict_core.noise_law import interval_cdf, interval_index, interval_probabilities
from ict_core.schedule import karras_sigmas


class Levels(NamedTuple):
    """The drawn levels of one batch, NumPy float64; cast once, when they go to the device.

    Attributes:
        sigma_lo: [b] the teacher's level sigma_i.
        sigma_hi: [b] the student's level sigma_{i+1}.
        weight: [b] of `loss_weight`, lambda(sigma_i) = 1 / (sigma_hi - sigma_lo) unless told otherwise.
    """

    sigma_lo: np.ndarray[Any, Any]
    sigma_hi: np.ndarray[Any, Any]
    weight: np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """The levels of one stage of the curriculum. Build it with `make_grid`.

    Attributes:
        sigmas: [n] rising, float64.
        probabilities: [n-1] of the intervals.
        cdf: [n-1] cumulated, the last one 1.
        weights: [n-1] lambda of each interval.
    """

    sigmas: np.ndarray[Any, Any]
    probabilities: np.ndarray[Any, Any]
    cdf: np.ndarray[Any, Any]
    weights: np.ndarray[Any, Any]

    def draw(self, rng: np.random.Generator, batch: int) -> Levels:
        """Draw neighbouring levels for a batch; takes `batch` uniforms from `rng` and nothing else.

        Args:
            rng: host generator, for training a function of (seed, step).
            batch: >= 1.

        Returns:
            `Levels`, each [batch] float64.
        """
        check_count("batch", batch, at_least=1)
        i = interval_index(rng.random(batch), self.cdf)
        return Levels(self.sigmas[i], self.sigmas[i + 1], self.weights[i])


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
