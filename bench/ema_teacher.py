"""The one-dimensional example that shows what an EMA teacher does, computed by `ict_core`.

Data are the single point xi, and f_theta(x, s) = (smin / s) x + (1 - smin / s) theta, so that theta = xi is the
solution. The distance is the squared l2: 2c times the Pseudo-Huber distance, as c grows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ict_core import consistency_loss, make_grid

SIGMA_MIN, C = 0.002, 1e6


class Outcome(NamedTuple):
    """Exact expectations over one grid: the loss with lambda = 1, and the gradient with lambda = 1 / gap."""

    loss: float
    scaled_gradient: float


def example(n: int, xi: float, theta: float, theta_bar: float, z: float = 0.3) -> Outcome:
    """Loss and scaled gradient of the student theta with the teacher theta_bar.

    Every interval of the grid of n levels is one sample, weighted by its probability; z cancels out.
    """
    grid = make_grid(n)
    lo, hi, probability = (torch.tensor(a) for a in (grid.sigmas[:-1], grid.sigmas[1:], grid.probabilities))
    x, noise = torch.full_like(lo, xi)[:, None], torch.full_like(lo, z)[:, None]
    parameter = torch.tensor(theta, dtype=torch.float64, requires_grad=True)

    def f(value: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, s: (SIGMA_MIN / s)[:, None] * x + (1 - SIGMA_MIN / s)[:, None] * value

    def loss(weight: Tensor) -> Tensor:
        squared = 2 * C * probability * weight
        teacher = f(torch.tensor(theta_bar, dtype=torch.float64))
        return consistency_loss(f(parameter), teacher, x, noise, lo, hi, squared, c=C).per_sample.sum()

    (gradient,) = torch.autograd.grad(loss(torch.tensor(grid.weights)), parameter)
    return Outcome(float(loss(torch.ones_like(lo)).detach()), float(gradient))


def expectation(values: Callable[[np.ndarray], np.ndarray], n: int = 20_000) -> float:
    """The expectation over the continuous law of sigma, by a much finer grid; `values` maps [n-1] levels to [n-1]."""
    grid = make_grid(n)
    middle = np.sqrt(grid.sigmas[:-1] * grid.sigmas[1:])
    return float(np.sum(grid.probabilities * values(middle)))


def gradient_limit(xi: float, theta: float) -> float:
    """The limit without an EMA: (1 / ds) dL / dtheta -> 2 E[(smin / s^2)(1 - smin / s)](theta - xi)."""
    return 2 * expectation(lambda s: SIGMA_MIN / s**2 * (1 - SIGMA_MIN / s)) * (theta - xi)


def loss_limit(theta: float, theta_bar: float) -> float:
    """The limit with an EMA: L -> E[(1 - smin / s)^2](theta - theta_bar)^2, which does not depend on xi."""
    return expectation(lambda s: (1 - SIGMA_MIN / s) ** 2) * (theta - theta_bar) ** 2
