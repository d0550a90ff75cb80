"""One-step and multi-step sampling from a consistency function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from ict_core._arrays import (
    Array,
    Namespace,
    check_floating,
    check_number,
    check_same,
    constant,
    full_batch,
    namespace,
    unstack,
)
from ict_core.loss import ConsistencyFunction


def multistep_sample(
    f: ConsistencyFunction[Array],
    noises: Array | Sequence[Array],
    sigmas: Sequence[float],
    *,
    sigma_min: float = 0.002,
    clip: bool = False,
    clip_steps: bool = False,
    xp: Namespace | None = None,
) -> Array:
    """Sample in len(sigmas) evaluations of f; one level is one-step sampling.

        x <- f(smax z_1, smax);  x <- f(x + sqrt(t_j^2 - smin^2) z_j, t_j)           CM algorithm 1

    Args:
        f: the consistency function, f(x [b, *event], sigma [b]) -> [b, *event].
        noises: one [b, *event] standard normal array a step: a sequence, or one stacked array.
        sigmas: falling levels smax > t_1 > ... >= sigma_min, the first one the model's sigma_max.
        sigma_min: > 0.
        clip: clip the result to [-1, 1], as is done with images.
        clip_steps: also clip what each step but the last returns before noise is added, as released samplers do.
        xp: array namespace; inferred from the noise when omitted.

    Returns:
        [b, *event] in the dtype of the noise.

    Raises:
        TypeError, ValueError: naming the argument: no level, levels not falling or below sigma_min, as
            many noises as levels not given.

    >>> import numpy as np
    >>> halve = lambda x, sigma: x / (2.0 * sigma[:, None])
    >>> multistep_sample(halve, np.array([[[1.0, -0.5]]]), [80.0])
    array([[ 0.5 , -0.25]])
    """
    check_number("sigma_min", sigma_min, above=0.0)
    levels = check_falling_sigmas(sigmas, sigma_min=sigma_min)
    zs: list[Any] = unstack(noises)
    if len(zs) != len(levels):
        raise ValueError(f"noises must hold one array a level: {len(levels)}, not {len(zs)}")
    z = zs[0]
    xp = namespace("noises", z, xp)
    check_floating("noises", z, xp)
    if z.ndim < 1:
        raise ValueError("noises must be [b, *event] each, not scalars")
    for j in range(1, len(levels)):
        check_same("noises[0]", z, f"noises[{j}]", zs[j])
    x = f(levels[0] * z, full_batch(levels[0], z, xp))
    for j in range(1, len(levels)):
        noise_std = math.sqrt(levels[j] ** 2 - sigma_min**2)
        x = clip_images(x, xp) if clip_steps else x
        x = f(x + noise_std * zs[j], full_batch(levels[j], z, xp))
    return clip_images(x, xp) if clip else x


def clip_images(x: Array, xp: Namespace) -> Array:
    """Images with each value in [-1, 1]."""
    return xp.clip(x, constant(-1.0, x, xp), constant(1.0, x, xp))


def check_falling_sigmas(
    sigmas: Sequence[float], *, sigma_min: float = 0.002, sigma_max: float = math.inf
) -> list[float]:
    """`sigmas` as Python floats; raise ValueError unless they fall within [sigma_min, sigma_max], one at least."""
    check_number("sigma_min", sigma_min, at_least=0.0)
    levels = [check_number("sigmas", sigma) for sigma in sigmas]
    if not levels:
        raise ValueError("sigmas must hold at least one level")
    for level in levels:
        if not sigma_min <= level <= sigma_max:
            raise ValueError(f"sigmas must lie in [{sigma_min:g}, {sigma_max:g}]; {level:g} does not")
    if any(later >= earlier for earlier, later in pairwise(levels)):
        raise ValueError(f"sigmas must fall from each step to the next, not {', '.join(f'{s:g}' for s in levels)}")
    return levels
