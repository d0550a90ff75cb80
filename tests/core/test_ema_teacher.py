"""Why the teacher has no EMA: the paper's one-dimensional example, computed by the core.

Data are the single point xi, and f_theta(x, s) = (smin / s) x + (1 - smin / s) theta, so that theta = xi is the
solution. The distance is the squared l2: 2c times the Pseudo-Huber distance, as c grows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ict_core import consistency_loss, make_grid

SIGMA_MIN, C = 0.002, 1e6
points = st.floats(-3.0, 3.0)


class Limit(NamedTuple):
    """Exact expectations over one grid: the loss with lambda = 1, and the gradient with lambda = 1 / gap."""

    loss: float
    scaled_gradient: float


def example(n: int, xi: float, theta: float, theta_bar: float, z: float = 0.3) -> Limit:
    """Every interval of the grid is one sample, weighted by its probability; z cancels out."""
    grid = make_grid(n)
    lo, hi, probability = (torch.tensor(a) for a in (grid.sigmas[:-1], grid.sigmas[1:], grid.probabilities))
    x, noise = torch.full_like(lo, xi)[:, None], torch.full_like(lo, z)[:, None]
    parameter = torch.tensor(theta, dtype=torch.float64, requires_grad=True)

    def f(value):
        return lambda x, s: (SIGMA_MIN / s)[:, None] * x + (1 - SIGMA_MIN / s)[:, None] * value

    def loss(weight: torch.Tensor) -> torch.Tensor:
        squared = 2 * C * probability * weight
        teacher = f(torch.tensor(theta_bar, dtype=torch.float64))
        return consistency_loss(f(parameter), teacher, x, noise, lo, hi, squared, c=C).per_sample.sum()

    (gradient,) = torch.autograd.grad(loss(torch.tensor(grid.weights)), parameter)
    return Limit(float(loss(torch.ones_like(lo)).detach()), float(gradient))


def expectation(values, n: int = 20_000) -> float:
    """E over the continuous law of sigma, by a much finer grid."""
    grid = make_grid(n)
    middle = np.sqrt(grid.sigmas[:-1] * grid.sigmas[1:])
    return float(np.sum(grid.probabilities * values(middle)))


SLOPE = expectation(lambda s: SIGMA_MIN / s**2 * (1 - SIGMA_MIN / s))
FORGETFUL = expectation(lambda s: (1 - SIGMA_MIN / s) ** 2)


@given(xi=points, theta=points)
def test_without_ema_the_scaled_gradient_points_from_theta_to_the_data(xi: float, theta: float) -> None:
    """(1 / ds) dL / dtheta -> 2 E[(smin / s^2)(1 - smin / s)](theta - xi), closer and closer as N grows."""
    slope = 2 * SLOPE
    errors = [abs(example(n, xi, theta, theta).scaled_gradient - slope * (theta - xi)) for n in (161, 641, 2561)]
    assert errors[2] <= 0.02 * slope * abs(theta - xi) + 1e-9
    assert errors[2] <= errors[0] + 1e-9


@given(xi=points)
def test_without_ema_the_gradient_vanishes_at_the_data_and_only_there(xi: float) -> None:
    assert example(1281, xi, xi, xi).scaled_gradient == pytest.approx(0, abs=1e-9)
    assert example(1281, xi, xi + 0.5, xi + 0.5).scaled_gradient > 1e-3
    assert example(1281, xi, xi - 0.5, xi - 0.5).scaled_gradient < -1e-3


@given(xi=points, theta=points, gap=st.floats(0.05, 1.0), sign=st.sampled_from([-1, 1]))
def test_with_an_ema_teacher_the_loss_forgets_the_data(xi: float, theta: float, gap: float, sign: int) -> None:
    """L -> E[(1 - smin / s)^2](theta - theta_bar)^2, whatever xi is."""
    limit = FORGETFUL * gap**2
    losses = [example(n, xi, theta, theta - sign * gap).loss for n in (161, 2561)]
    assert losses[1] == pytest.approx(limit, rel=0.05, abs=0.02 * gap)
    assert abs(losses[1] - limit) <= abs(losses[0] - limit) + 1e-3 * gap


@given(xi=points, theta=points, gap=st.floats(0.1, 1.0), sign=st.sampled_from([-1, 1]))
def test_with_an_ema_teacher_the_scaled_gradient_diverges_away_from_the_teacher(
    xi: float, theta: float, gap: float, sign: int
) -> None:
    """Its sign is that of theta - theta_bar, even where theta - xi has the other one."""
    coarse, fine = (example(n, xi, theta, theta - sign * gap).scaled_gradient for n in (1281, 20_481))
    assert np.sign(fine) == sign
    assert abs(fine) > 4 * abs(coarse) or np.sign(coarse) != sign
