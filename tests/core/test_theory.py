"""The figures of docs/theory.md: the exact consistency function of a mixture, and the trend of the 1-D example."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCH / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EMA, MIX = load("ema_teacher"), load("mixture")
SIZES = [10 * 2**k + 1 for k in range(12)]
POINTS = MIX.noisy_points(np.geomspace(0.02, 80.0, 6), 30)


def test_halving_the_steps_of_the_ode_changes_nothing() -> None:
    coarse, fine = (MIX.exact_consistency(MIX.MIXTURE, *POINTS, steps=n) for n in (1000, 2000))
    np.testing.assert_allclose(coarse, fine, rtol=0, atol=1e-8)


def test_the_check_of_the_steps_can_fail() -> None:
    coarse, fine = (MIX.exact_consistency(MIX.MIXTURE, *POINTS, steps=n) for n in (20, 40))
    assert np.abs(coarse - fine).max() > 1e-4


def test_of_one_gaussian_the_solution_is_the_closed_form() -> None:
    """f(x, s) = m + (x - m) sqrt((d^2 + smin^2) / (d^2 + s^2)) for N(m, d^2)."""
    mean, std = np.array([0.3, -0.4]), 0.15
    one, (x, sigma) = MIX.Mixture(np.ones(1), mean[None], np.array([std])), POINTS
    shrink = np.sqrt((std**2 + MIX.SIGMA_MIN**2) / (std**2 + sigma**2))
    expected = mean + shrink[:, None] * (x - mean)
    np.testing.assert_allclose(MIX.exact_consistency(one, x, sigma), expected, rtol=0, atol=1e-8)


def test_the_posterior_mean_is_that_of_a_sum_over_a_grid() -> None:
    """E[x0 | x] = sum x0 p(x0) N(x; x0, s^2) / sum p(x0) N(x; x0, s^2), over a fine grid of the plane."""
    side = np.linspace(-1.5, 1.5, 301)
    clean = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    mixture, x, sigma = MIX.MIXTURE, np.array([[0.1, 0.05], [-0.3, 0.7]]), np.array([0.3, 1.0])
    away = np.sum((clean[:, None] - mixture.means) ** 2, axis=2)
    prior = np.sum(mixture.weights / mixture.stds**2 * np.exp(-away / (2 * mixture.stds**2)), axis=1)
    for point, level, found in zip(x, sigma, MIX.posterior_mean(mixture, x, sigma), strict=True):
        law = prior * np.exp(-np.sum((clean - point) ** 2, axis=1) / (2 * level**2))
        np.testing.assert_allclose(found, law @ clean / law.sum(), atol=1e-6)


def test_the_exact_map_takes_noise_to_the_mixture() -> None:
    """At sigma_max, the images of Gaussian noise have the mixture's mean and spread."""
    sigma = np.full(4000, MIX.SIGMA_MAX)
    x = MIX.SIGMA_MAX * np.random.default_rng(0).standard_normal((4000, 2))
    images, data = MIX.exact_consistency(MIX.MIXTURE, x, sigma, steps=200), MIX.MIXTURE
    np.testing.assert_allclose(images.mean(axis=0), data.weights @ data.means, atol=0.04)
    assert images.std(axis=0).mean() == pytest.approx(data.std(), rel=0.06)


def test_rounding_to_grey_levels_does_not_move_the_data() -> None:
    images = MIX.make_data(20_000).images[:, :, 0, 0]
    # Nothing is clipped but the rare end of a tail; the deviation fits sigma_data.
    assert np.mean((images == 0) | (images == 255)) < 1e-3
    assert MIX.make_config().noise.sigma_data == pytest.approx(
        np.sqrt((images / 127.5 - 1.0).var(axis=0).mean()), rel=0.01
    )
    assert MIX.SIGMA_MIN > 2 / 255


def test_without_ema_the_gradient_nears_its_limit_with_each_doubling() -> None:
    found = [EMA.example(n, 0.0, 0.5, 0.5) for n in SIZES]
    limit = EMA.gradient_limit(0.0, 0.5)
    errors = np.array([abs(o.scaled_gradient - limit) for o in found])
    assert (np.diff(errors[:9]) < 0).all()
    assert errors[-1] < 0.01 * limit
    losses = np.array([o.loss for o in found])
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 1e-3 * losses[0]


@pytest.mark.parametrize("sign", [-1, 1])
def test_with_an_ema_teacher_the_gradient_doubles_with_each_doubling(sign: int) -> None:
    """And the loss ends where xi has no part in it."""
    found = [EMA.example(n, 0.0, 0.5, 0.5 - sign * 0.1) for n in SIZES]
    gradients = np.array([sign * o.scaled_gradient for o in found])
    np.testing.assert_allclose(gradients[-3:] / gradients[-4:-1], 2, rtol=0.1)
    limit = EMA.loss_limit(0.5, 0.5 - sign * 0.1)
    errors = np.array([abs(o.loss - limit) for o in found])
    assert errors[-1] < 0.01 * limit
    assert errors[-1] < 0.1 * errors[0]
