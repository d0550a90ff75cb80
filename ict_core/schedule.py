"""The noise levels: where the probability-flow ODE is cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ict_core._arrays import check_count, check_level_range, check_number


def karras_sigmas(
    n: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> np.ndarray[Any, Any]:
    """The n noise levels of one stage, rising.

        s_i = (smin^(1/rho) + (i-1)/(n-1) (smax^(1/rho) - smin^(1/rho)))^rho, i = 1..n     EDM eq. 5

    Host arithmetic in float64: at n = 1281 neighbouring levels are only 4e-5 apart at the low end,
    so differences are taken before any cast to a narrower type.

    Args:
        n: >= 2, the number of levels (there are n - 1 intervals).
        sigma_min, sigma_max: 0 < sigma_min < sigma_max, pixel units (images in [-1, 1]).
        rho: > 0; larger values crowd the levels towards sigma_min.

    Returns:
        [n] NumPy float64, strictly rising, both ends exact.

    Raises:
        TypeError, ValueError: naming the argument that is out of range, or n where so many levels
            do not fit between the ends as distinct float64 numbers.

    >>> [round(float(sigma), 3) for sigma in karras_sigmas(5)]
    [0.002, 0.17, 2.515, 17.528, 80.0]
    """
    check_count("n", n, at_least=2)
    sigma_min, sigma_max = check_level_range(sigma_min, sigma_max)
    rho = check_number("rho", rho, above=0.0)
    # In logarithms of (s_i / smin)^(1/rho), so that no power leaves float64, however small rho is.
    ramp = np.arange(1, n - 1) / (n - 1)
    top = (math.log(sigma_max) - math.log(sigma_min)) / rho
    growth = np.log1p(ramp * math.expm1(top)) if top < 700 else np.logaddexp(np.log1p(-ramp), np.log(ramp) + top)
    inner = np.exp(math.log(sigma_min) + rho * growth)
    sigmas: np.ndarray[Any, Any] = np.concatenate([[sigma_min], inner, [sigma_max]])
    if not np.all(np.diff(sigmas) > 0):
        raise ValueError(
            f"n = {n} levels between {sigma_min} and {sigma_max} at rho = {rho} are not distinct in float64"
        )
    return sigmas
