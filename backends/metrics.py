"""Figures of merit, in NumPy float64."""

from __future__ import annotations

import numpy as np


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance between two sets of feature vectors, each taken as a Gaussian.

        |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2))

    Args:
        a, b: [n, d] and [m, d]; n, m >= 2. Covariances are the unbiased ones.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    root = _sqrt_psd(np.cov(a, rowvar=False))
    cov_b = np.cov(b, rowvar=False)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0.0, None)).sum()
    mean_term = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2)
    return float(mean_term + np.trace(root @ root) + np.trace(cov_b) - 2.0 * cross)


def _sqrt_psd(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def halves_distances(features: np.ndarray, splits: int = 8) -> list[float]:
    """Frechet distances between random halves of [n, d] features, n >= 4: what a perfect model would show."""
    rng, half = np.random.Generator(np.random.Philox(0)), len(features) // 2
    orders = [rng.permutation(len(features)) for _ in range(splits)]
    return [frechet_distance(features[order[:half]], features[order[half:]]) for order in orders]
