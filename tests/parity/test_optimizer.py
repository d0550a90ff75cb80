"""RAdam (Liu et al. 2020, algorithm 2) in both backends, against its equations in exact arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import smallest

from ict_backends.jax.state import make_optimizer, radam_factors
from ict_core.settings import build_config

LEARNING_RATE = 1e-2
# Those of the recipe, and ones whose corrections last for very long or for a step.
BETAS = [(0.9, 0.999), (0.9, 0.99999), (0.0, 0.9), (0.5, 0.5), (0.9, 0.0)]


def exact_factors(t: int, b1: float, b2: float) -> tuple[float, float, float]:
    """1 - b1^t, sqrt(1 - b2^t) and r_t, which is 0 without rectification; in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        first, power, limit = 1 - Decimal(b1) ** t, Decimal(b2) ** t, 2 / (1 - Decimal(b2)) - 1
        rho = limit - 2 * t * power / (1 - power)
        ratio = (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho) if rho > 5 else Decimal(0)
        return float(first), float((1 - power).sqrt()), float(ratio.sqrt())


def exact_steps(gradients: np.ndarray, betas: tuple[float, float]) -> np.ndarray:
    """What each step adds to the weights, [steps, d] float64; epsilon joins the root before the correction."""
    b1, b2 = betas
    m, v, found = np.zeros(gradients.shape[1]), np.zeros(gradients.shape[1]), []
    for t, g in enumerate(gradients.astype(np.float64), start=1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        first, second, rectified = exact_factors(t, b1, b2)
        found.append(-LEARNING_RATE * m / first * (rectified * second / (np.sqrt(v) + 1e-8) if rectified else 1.0))
    return np.array(found)


def torch_steps(gradients: np.ndarray, betas: tuple[float, float]) -> np.ndarray:
    theta, found = torch.nn.Parameter(torch.zeros(gradients.shape[1])), []
    optimizer = torch.optim.RAdam([theta], lr=LEARNING_RATE, betas=betas, foreach=True)
    for g in gradients:
        theta.data.zero_()
        theta.grad = torch.tensor(g)
        optimizer.step()
        found.append(theta.detach().numpy().copy())
    return np.array(found)


def jax_steps(gradients: np.ndarray, betas: tuple[float, float]) -> np.ndarray:
    optimizer = make_optimizer(build_config(smallest(train={"learning_rate": LEARNING_RATE, "betas": list(betas)})))
    state, found = optimizer.init(jnp.zeros(gradients.shape[1])), []
    update = jax.jit(partial(optimizer.update, learning_rate=LEARNING_RATE))
    for g in gradients:
        updates, state = update(jnp.asarray(g), state)
        found.append(np.asarray(updates))
    return np.array(found)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("steps", [torch_steps, jax_steps])
def test_each_step_is_that_of_the_equations(
    steps: Callable[[np.ndarray, tuple[float, float]], np.ndarray], betas: tuple[float, float]
) -> None:
    """Those of the sixth and the twelfth step, where optax's RAdam is off by 0.6% and 0.2%, too."""
    gradients = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    exact, found = exact_steps(gradients, betas), steps(gradients, betas)
    off = np.linalg.norm(found - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert off.max() < 1e-6, f"step {off.argmax() + 1}"


@given(t=st.integers(1, 10**6), b2=st.one_of(st.floats(0.7, 0.99999), st.sampled_from([0.9, 0.999, 0.9999])))
def test_jaxs_factors_are_exact_to_the_rounding_of_float32(t: int, b2: float) -> None:
    expected, found = exact_factors(t, 0.9, b2), [float(f) for f in radam_factors(jnp.asarray(t), 0.9, b2)]
    np.testing.assert_allclose(found[:2], expected[:2], rtol=1e-6)
    if (found[2] > 0) == (expected[2] > 0):  # rho_t within the rounding of 5 may lie on either side
        np.testing.assert_allclose(found[2], expected[2], rtol=2e-6)
    else:
        assert abs(exact_rho(t, b2) - 5) < 1e-4


def exact_rho(t: int, b2: float) -> float:
    with localcontext() as context:
        context.prec = 60
        power = Decimal(b2) ** t
        return float(2 / (1 - Decimal(b2)) - 1 - 2 * t * power / (1 - power))
