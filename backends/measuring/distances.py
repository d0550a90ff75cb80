"""Distances between sets of images, from their features; in NumPy float64 whatever the features are in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Elements of a block of distances or kernel values: 128 MiB in float64.
_BLOCK = 1 << 24


class Moments(NamedTuple):
    """A set of feature vectors as a Gaussian.

    Attributes:
        num: number of vectors, n >= 2.
        mean: [d] float64.
        cov: [d, d] float64, the unbiased covariance.
    """

    num: int
    mean: np.ndarray
    cov: np.ndarray


class MomentsSum:
    """Moments of features that come in batches: memory does not grow with their number."""

    def __init__(self) -> None:
        self._count, self._shift = 0, np.zeros(0)

    def add(self, features: np.ndarray) -> None:
        """Take in [b, d] features."""
        values = np.asarray(features, dtype=np.float64)
        if self._count == 0:
            # Sums of squares lose no digits where they are taken about something near the mean.
            self._shift = values.mean(axis=0)
            self._sum, self._outer = np.zeros(values.shape[1]), np.zeros((values.shape[1],) * 2)
        values = values - self._shift
        self._count += len(values)
        self._sum += values.sum(axis=0)
        self._outer += values.T @ values

    def result(self) -> Moments:
        """The moments of all of them; two at least."""
        mean = self._sum / self._count
        cov = (self._outer - self._count * np.outer(mean, mean)) / (self._count - 1)
        return Moments(self._count, self._shift + mean, cov)


def moments(features: np.ndarray) -> Moments:
    """The moments of [n, d] features, n >= 2."""
    total = MomentsSum()
    for rows in _blocks(len(features), features.shape[1]):
        total.add(features[rows])
    return total.result()


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance between two Gaussians; of Inception features it is the FID.

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2))                    Heusel et al. 2017
    """
    root = _sqrt_psd(a.cov)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b.cov @ root), 0.0, None)).sum()
    mean_term = np.sum((a.mean - b.mean) ** 2)
    return float(mean_term + np.trace(a.cov) + np.trace(b.cov) - 2.0 * cross)


def _sqrt_psd(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def halves_distances(features: np.ndarray, splits: int = 8) -> list[float]:
    """Frechet distances between random halves of [n, d] features, n >= 4: what a perfect model would show."""
    rng, half = np.random.Generator(np.random.Philox(0)), len(features) // 2
    orders = [rng.permutation(len(features)) for _ in range(splits)]
    return [frechet_distance(moments(features[order[:half]]), moments(features[order[half:]])) for order in orders]


class Estimate(NamedTuple):
    """A mean, and how far it may be off."""

    value: float
    error: float


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """Squared maximum mean discrepancy with a cubic kernel; of Inception features it is the KID.

        k(x, y) = (x . y / d + 1)^3, the unbiased estimate, averaged over random subsets   Binkowski et al. 2018

    Args:
        a, b: [n, d] and [m, d] features; 2 at least each.
        subsets: how many pairs of subsets.
        subset_size: vectors of each, at most as many as there are.
        seed: of the subsets.

    Returns:
        The mean, and its standard error over the subsets. They overlap, so that it is somewhat too small.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    size = min(subset_size, len(a), len(b))
    values = [
        _discrepancy(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
        for _ in range(subsets)
    ]
    error = float(np.std(values, ddof=1) / np.sqrt(subsets)) if subsets > 1 else float("nan")
    return Estimate(float(np.mean(values)), error)


def _discrepancy(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased, of equally many [n, d] vectors."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n, d = a.shape
    aa, bb, ab = ((x @ y.T / d + 1.0) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)
    return float(within / (n * (n - 1)) - 2.0 * ab.mean())


def inception_score(probabilities: np.ndarray, *, splits: int = 10) -> Estimate:
    """How sure and how varied the classes of images are.

        exp(E_x KL(p(y|x) || p(y))), over consecutive parts of the images                  Salimans et al. 2016

    Args:
        probabilities: [n, k] of k classes; n >= splits.
        splits: number of parts.

    Returns:
        The mean over the parts, and their standard deviation (which is what the field gives).
    """
    scores = []
    for part in np.array_split(np.asarray(probabilities, dtype=np.float64), splits):
        marginal = part.mean(axis=0, keepdims=True)
        # A class of no probability adds nothing.
        ratio = np.log(np.where(part > 0, part, 1.0)) - np.log(np.where(marginal > 0, marginal, 1.0))
        scores.append(np.exp((part * ratio).sum(axis=1).mean()))
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


class PrecisionRecall(NamedTuple):
    """Shares of one set that lie where the other is."""

    precision: float
    recall: float


def precision_recall(real: np.ndarray, fake: np.ndarray, *, neighbours: int = 3) -> PrecisionRecall:
    """Precision: the share of generated images that are within the reach of a real one. Recall: the other way round.

    The reach of an image is the distance to its `neighbours`-th nearest of its own set.       Kynkaanniemi et al. 2019

    Args:
        real, fake: [n, d] and [m, d] features, more than `neighbours` each.
    """
    reach_real, reach_fake = (_reach(x, neighbours) for x in (real, fake))
    return PrecisionRecall(_covered(fake, real, reach_real), _covered(real, fake, reach_fake))


def _reach(features: np.ndarray, neighbours: int) -> np.ndarray:
    """[n] squared distances to the nearest neighbours of a number; a vector is not its own neighbour."""
    parts = []
    for rows in _blocks(len(features), len(features)):
        # Itself comes first, at distance zero.
        near = np.partition(_squared_distances(features[rows], features), neighbours, axis=1)
        parts.append(near[:, neighbours].copy())  # a view would keep the whole block
    return np.concatenate(parts)


def _covered(queries: np.ndarray, centres: np.ndarray, reach: np.ndarray) -> float:
    """The share of queries within the reach of a centre."""
    inside = [
        (_squared_distances(queries[rows], centres) <= reach).any(axis=1)
        for rows in _blocks(len(queries), len(centres))
    ]
    return float(np.concatenate(inside).mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[n, m] float64, of [n, d] and [m, d]; `b` is taken in parts, so that no whole copy of it is made."""
    a = np.asarray(a, dtype=np.float64)
    squares = (a**2).sum(axis=1)[:, None]
    distances = np.empty((len(a), len(b)))
    for columns in _blocks(len(b), b.shape[1]):
        part = np.asarray(b[columns], dtype=np.float64)
        distances[:, columns] = squares + (part**2).sum(axis=1) - 2.0 * (a @ part.T)
    return np.maximum(distances, 0.0)


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, *, directions: int = 256, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance: the root of the mean of W_2^2 along random directions.      Bonneel et al. 2015

    Args:
        a, b: [n, d] and [m, d] features. Where n and m differ, the shorter's order statistics are repeated.
        directions: how many, uniform on the sphere.
        seed: of the directions.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    axes = rng.standard_normal((a.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    count = max(len(a), len(b))
    total = 0.0
    for axis in axes.T:
        x, y = (np.sort(np.asarray(values @ axis.astype(values.dtype), dtype=np.float64)) for values in (a, b))
        x, y = (v[((np.arange(count) + 0.5) * len(v) / count).astype(int)] for v in (x, y))
        total += float(np.mean((x - y) ** 2))
    return float(np.sqrt(total / directions))


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Ranges of 0..count-1 that are short enough for rows of `width` elements."""
    step = max(1, _BLOCK // max(width, 1))
    return (slice(i, min(i + step, count)) for i in range(0, count, step))
