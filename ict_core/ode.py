"""Sampling by the probability-flow ODE, in many steps: of diffusion models, and of any denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ict_core._arrays import (
    Array,
    Namespace,
    check_count,
    check_floating,
    check_number,
    check_same,
    full_batch,
    namespace,
)
from ict_core.loss import ConsistencyFunction
from ict_core.sampling import check_falling_sigmas, clip_images
from ict_core.schedule import karras_sigmas


def heun_sigmas(steps: int = 18, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """The falling levels of so many steps of `heun_sample` from sigma_max to sigma_min, which itself is left out.

    Args:
        steps: >= 1; 18 is EDM's number for CIFAR-10, 40 for ImageNet at 64 pixels.
        sigma_min, sigma_max, rho: as for `karras_sigmas`.
    """
    check_count("steps", steps, at_least=1)
    return karras_sigmas(steps + 1, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)[:0:-1].tolist()


def heun_sample(
    denoiser: ConsistencyFunction[Array],
    noise: Array,
    sigmas: Sequence[float],
    *,
    sigma_end: float = 0.0,
    clip: bool = False,
    xp: Namespace | None = None,
) -> Array:
    """Solve the probability-flow ODE from sigmas[0] down to sigma_end by Heun's method.

        dx / ds = (x - D(x, s)) / (s - s_end)                                        EDM algorithm 1, without churn

    D(x, s) is the mean of the point at level s_end, given x at level s: the clean image with sigma_end = 0, as EDM has
    it. A consistency function that is trained as a diffusion model gives the mean at sigma_min. Each step but the last
    takes two evaluations, and the last, to sigma_end, one: it returns D itself.

    Args:
        denoiser: D(x [b, *event], sigma [b]) -> [b, *event].
        noise: [b, *event] standard normal.
        sigmas: falling levels above sigma_end, from `heun_sigmas`.
        sigma_end: >= 0, the level of the result.
        clip: clip the result to [-1, 1], as is done with images.
        xp: array namespace; inferred from `noise` when omitted.

    Returns:
        [b, *event] in the dtype of `noise`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    xp = namespace("noise", noise, xp)
    check_floating("noise", noise, xp)
    if noise.ndim < 1:
        raise ValueError("noise must be [b, *event], not a scalar")
    end = check_number("sigma_end", sigma_end, at_least=0.0)
    levels = check_falling_sigmas(sigmas, sigma_min=end)
    if levels[-1] == end:
        raise ValueError(f"sigmas must lie above sigma_end = {end:g}, which they reach by themselves")

    def mean(x: Array, sigma: float) -> Array:
        found = denoiser(x, full_batch(sigma, x, xp))
        check_same("noise", x, "the denoiser's result", found)
        return found

    def slope(x: Array, sigma: float) -> Array:
        return (x - mean(x, sigma)) / (sigma - end)

    x = noise * levels[0]
    for sigma, after in pairwise(levels):
        first = slope(x, sigma)
        second = slope(x + (after - sigma) * first, after)
        x = x + (after - sigma) * (0.5 * (first + second))
    x = mean(x, levels[-1])
    return clip_images(x, xp) if clip else x
