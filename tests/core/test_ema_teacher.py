"""Why the teacher has no EMA: the paper's one-dimensional example, computed by the core.

Data are the single point xi, and f_theta(x, s) = (smin / s) x + (1 - smin / s) theta, so that theta = xi is the
solution. The distance is the squared l2: 2c times the Pseudo-Huber distance, as c grows.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

points = st.floats(-3.0, 3.0)


def load(name: str) -> ModuleType:
    path = Path(__file__).resolve().parents[2] / "bench" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What docs/theory.md draws.
EXAMPLE = load("ema_teacher")
example, SLOPE, FORGETFUL = EXAMPLE.example, EXAMPLE.gradient_limit(0.0, 1.0), EXAMPLE.loss_limit(1.0, 0.0)


@given(xi=points, theta=points)
def test_without_ema_the_scaled_gradient_points_from_theta_to_the_data(xi: float, theta: float) -> None:
    """(1 / ds) dL / dtheta -> 2 E[(smin / s^2)(1 - smin / s)](theta - xi), closer and closer as N grows."""
    errors = [abs(example(n, xi, theta, theta).scaled_gradient - SLOPE * (theta - xi)) for n in (161, 641, 2561)]
    assert errors[2] <= 0.02 * SLOPE * abs(theta - xi) + 1e-9
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
