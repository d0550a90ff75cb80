"""A mixture of Gaussians in the plane: its exact consistency function, and training on it as on any images.

A point is an image of two channels and one pixel, so that the usual training loop can be used; a 3x3 convolution of one
pixel is a dense layer.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Protocol

import numpy as np

from ict_backends.data.dataset import Dataset
from ict_backends.images import to_uint8
from ict_backends.runs.folder import RunDir, create_run
from ict_core import Config
from ict_core.settings import build_config, merge

# Above the distance of two grey levels, 2 / 255: under this much noise the rounding to uint8 is not seen.
SIGMA_MIN, SIGMA_MAX = 0.01, 80.0


class Mixture(NamedTuple):
    """A mixture of k Gaussians in the plane, each with equal variance in all directions.

    Attributes:
        weights: [k], which sum to 1.
        means: [k, 2].
        stds: [k] standard deviations.
    """

    weights: np.ndarray
    means: np.ndarray
    stds: np.ndarray

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Draw n points, [n, 2]."""
        i = rng.choice(len(self.weights), n, p=self.weights)
        return self.means[i] + self.stds[i, None] * rng.standard_normal((n, 2))

    def std(self) -> float:
        """The standard deviation of a coordinate, pooled over both coordinates: the right value of sigma_data."""
        spread = self.means - self.weights @ self.means
        return float(np.sqrt(self.weights @ (self.stds**2 + np.mean(spread**2, axis=1))))


# Far enough inside [-1, 1]: three and a half deviations at the least.
MIXTURE = Mixture(
    np.array([0.45, 0.35, 0.2]),
    np.array([[-0.5, -0.3], [0.5, -0.35], [0.05, 0.5]]),
    np.array([0.14, 0.12, 0.12]),
)


class Model(Protocol):
    """The part of a model from `load_model` of a backend that is used here."""

    def consistency(self, x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """Map noisy images, [b, c, h, w], of levels [b] to clean ones, [b, c, h, w]."""
        ...


def posterior_mean(mixture: Mixture, x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The mean of the clean point, given the noisy one.

        D(x, s) = sum_k r_k (m_k + s_k^2 / (s_k^2 + s^2) (x - m_k)),  r_k ~ w_k N(x; m_k, s_k^2 + s^2)

    Args:
        x: [n, 2] noisy points, float64.
        sigma: [n] their levels.

    Returns:
        [n, 2].
    """
    variance = mixture.stds**2 + sigma[:, None] ** 2
    away = x[:, None] - mixture.means
    log_r = np.log(mixture.weights / variance) - np.sum(away**2, axis=2) / (2 * variance)
    r = np.exp(log_r - log_r.max(axis=1, keepdims=True))
    r /= r.sum(axis=1, keepdims=True)
    means = mixture.means + (mixture.stds**2 / variance)[..., None] * away
    return np.einsum("nk,nkd->nd", r, means)


def exact_consistency(
    mixture: Mixture, x: np.ndarray, sigma: np.ndarray, *, sigma_min: float = SIGMA_MIN, steps: int = 1000
) -> np.ndarray:
    """Solve the probability-flow ODE for each point from its level down to sigma_min.

        dx / dsigma = (x - D(x, sigma)) / sigma, that is dx / du = x - D(x, e^u)

    The scheme is the classical Runge-Kutta of order 4, in equal steps of u = log sigma, whose size each point has for
    itself.

    Args:
        x: [n, 2] noisy points, float64.
        sigma: [n] their levels, >= sigma_min.
        steps: the number of steps.

    Returns:
        [n, 2].
    """

    def slope(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        return x - posterior_mean(mixture, x, np.exp(u))

    u = np.log(sigma)
    du = (np.log(sigma_min) - u) / steps
    h = du[:, None]
    for _ in range(steps):
        k1 = slope(x, u)
        k2 = slope(x + h / 2 * k1, u + du / 2)
        k3 = slope(x + h / 2 * k2, u + du / 2)
        k4 = slope(x + h * k3, u + du)
        x, u = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), u + du
    return x


def make_config(**sections: dict[str, object]) -> Config:
    """Settings, tuned by hand, that learn the mixture in under a minute on one core; `sections` override them."""
    base = {
        "data": {"source": "mixture", "shape": [2, 1, 1]},
        "network": {
            "channels": 32,
            "channel_mult": [1],
            "blocks": 1,
            "attention_resolutions": [],
            "dropout": 0.0,
            "fir_kernel": [],
            "input_pyramid": False,
        },
        "noise": {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "sigma_data": round(MIXTURE.std(), 3)},
        "curriculum": {"s0": 10, "s1": 160},
        # c = 0.07. The paper's 0.00054 is far below the length of a step between levels, however many there are here.
        "loss": {"huber_factor": 0.05},
        "train": {
            "total_steps": 1500,
            "batch_size": 256,
            "learning_rate": 3e-3,
            "ema_decay": 0.995,
            "sample_every": 0,
            "checkpoint_every": 0,
            "log_every": 200,
        },
    }
    return build_config(merge([base, sections]))


def make_data(n: int = 50_000, seed: int = 0) -> Dataset:
    """A data set of n points of the mixture, rounded to uint8: images [n, 2, 1, 1]."""
    points = MIXTURE.draw(np.random.default_rng(seed), n)
    return Dataset(to_uint8(points)[:, :, None, None], None)


def train(engine: ModuleType, config: Config, path: Path) -> RunDir:
    """Train with a backend into a new folder, and return the run."""
    dataset = make_data()
    run = create_run(path, config, dataset)
    engine.train(config, dataset, run)
    return run


def learnt_consistency(model: Model, x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Map points, [n, 2], of levels [n] by a trained model: [n, 2]."""
    return model.consistency(x[:, :, None, None], sigma)[:, :, 0, 0]


def noisy_points(levels: np.ndarray, n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Draw n noisy points at each of [m] levels, unseen in training: points, [m n, 2], and their levels, [m n]."""
    rng, sigma = np.random.default_rng(seed), np.repeat(levels, n)
    return MIXTURE.draw(rng, len(sigma)) + sigma[:, None] * rng.standard_normal((len(sigma), 2)), sigma


def mean_errors(a: np.ndarray, b: np.ndarray, levels: int) -> np.ndarray:
    """The mean distance at each level, [levels], between points [levels n, 2] in the order of `noisy_points`."""
    return np.linalg.norm(a - b, axis=1).reshape(levels, -1).mean(axis=1)
