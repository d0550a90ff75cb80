"""Distances between sets of images, from their features; computed in float64, whatever the dtype of the features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Elements of a block of features or distances: 128 MiB in float64.
_BLOCK = 1 << 24


class Moments(NamedTuple):
    """The moments of a set of feature vectors, taken as a Gaussian.

    Attributes:
        num: number of vectors, n >= 2; 0 if unknown.
        mean: [d] float64.
        cov: [d, d] float64, the unbiased covariance.
    """

    num: int
    mean: np.ndarray
    cov: np.ndarray


class MomentsSum:
    """Sums for the moments of features that come in batches; memory does not grow with the number of features."""

    def __init__(self) -> None:
        self._count, self._shift = 0, np.zeros(0)

    def add(self, features: np.ndarray) -> None:
        """Take in features, [b, d]."""
        values = np.asarray(features, dtype=np.float64)
        if self._count == 0:
            # Sums of squares lose no digits if a vector near the mean is subtracted first.
            self._shift = values.mean(axis=0)
            self._sum, self._outer = np.zeros(values.shape[1]), np.zeros((values.shape[1],) * 2)
        values = values - self._shift
        self._count += len(values)
        self._sum += values.sum(axis=0)
        self._outer += values.T @ values

    def result(self) -> Moments:
        """The moments of all features taken in; there must be at least two."""
        mean = self._sum / self._count
        cov = (self._outer - self._count * np.outer(mean, mean)) / (self._count - 1)
        return Moments(self._count, self._shift + mean, cov)


def moments(features: np.ndarray) -> Moments:
    """The moments of features, [n, d], n >= 2."""
    total = MomentsSum()
    for rows in _blocks(len(features), features.shape[1]):
        total.add(features[rows])
    return total.result()


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Frechet distance between two Gaussians; for Inception features, it is the FID.

    |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2))                    Heusel et al. 2017

    Returns:
        >= 0; between equal Gaussians, rounding leaves about 1e-12 of the traces.
    """
    root = _sqrt_psd(a.cov)
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ b.cov @ root), 0.0, None)).sum()
    mean_term = np.sum((a.mean - b.mean) ** 2)
    return max(0.0, float(mean_term + np.trace(a.cov) + np.trace(b.cov) - 2.0 * cross))


def _sqrt_psd(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T


def halves_distances(features: np.ndarray, splits: int = 8) -> list[float]:
    """Squared Frechet distances between random halves of features, [n, d], n >= 4, for `splits` random splits.

    A perfect model would have about these distances from the data.
    """
    rng, half = np.random.Generator(np.random.Philox(0)), len(features) // 2
    orders = [rng.permutation(len(features)) for _ in range(splits)]
    return [frechet_distance(moments(features[order[:half]]), moments(features[order[half:]])) for order in orders]


class Estimate(NamedTuple):
    """An estimate.

    Attributes:
        value: the mean of several measurements.
        error: the standard error or the standard deviation, as the function that returns it says.
    """

    value: float
    error: float


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """Squared maximum mean discrepancy with a cubic kernel; for Inception features, it is the KID.

        k(x, y) = (x . y / d + 1)^3, the unbiased estimate, averaged over random subsets   Binkowski et al. 2018

    Args:
        a, b: features, [n, d] and [m, d], with n, m >= 2.
        subsets: number of pairs of random subsets.
        subset_size: vectors in a subset; at most min(n, m) are taken.
        seed: seed of the subsets.

    Returns:
        The mean, and its standard error over the subsets, which is somewhat too small since subsets overlap.
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
    """The unbiased estimate from equally many vectors of both sets, [n, d] each."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    n, d = a.shape
    aa, bb, ab = ((x @ y.T / d + 1.0) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = aa.sum() - np.trace(aa) + bb.sum() - np.trace(bb)
    return float(within / (n * (n - 1)) - 2.0 * ab.mean())


def inception_score(probabilities: np.ndarray, *, splits: int = 10) -> Estimate:
    """The inception score: high if the class of each image is certain and the classes of all images vary.

        exp(E_x KL(p(y|x) || p(y))), over consecutive parts of the images                  Salimans et al. 2016

    Args:
        probabilities: [n, k], the probabilities of k classes for each image; n >= splits.
        splits: number of parts.

    Returns:
        The mean over the parts, and their standard deviation (as papers report it).
    """
    scores = []
    for part in np.array_split(np.asarray(probabilities, dtype=np.float64), splits):
        marginal = part.mean(axis=0, keepdims=True)
        # A class of no probability adds nothing.
        ratio = np.log(np.where(part > 0, part, 1.0)) - np.log(np.where(marginal > 0, marginal, 1.0))
        scores.append(np.exp((part * ratio).sum(axis=1).mean()))
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


class PrecisionRecall(NamedTuple):
    """The shares, in [0, 1], of generated images near real ones (precision) and of real near generated (recall)."""

    precision: float
    recall: float


def precision_recall(real: np.ndarray, fake: np.ndarray, *, neighbours: int = 3) -> PrecisionRecall:
    """Precision and recall of generated images.

    Precision is the share of generated images that are within the reach of a real image, and recall the share of real
    images that are within the reach of a generated one. The reach of an image is its distance to the `neighbours`-th
    nearest image of its own set.                                                              Kynkaanniemi et al. 2019

    Args:
        real, fake: features, [n, d] and [m, d], with n, m > `neighbours`.
        neighbours: >= 1.
    """
    reach_real, reach_fake = (_reach(x, neighbours) for x in (real, fake))
    return PrecisionRecall(_covered(fake, real, reach_real), _covered(real, fake, reach_fake))


def _reach(features: np.ndarray, neighbours: int) -> np.ndarray:
    """The squared distance, [n], of each of the features, [n, d], to its `neighbours`-th nearest other one."""
    parts = []
    for rows in _blocks(len(features), len(features)):
        # A vector itself comes first, at distance zero.
        near = np.partition(_squared_distances(features[rows], features), neighbours, axis=1)
        parts.append(near[:, neighbours].copy())  # a view would keep the whole block
    return np.concatenate(parts)


def _covered(queries: np.ndarray, centres: np.ndarray, reach: np.ndarray) -> float:
    """The share of queries, [n, d], within the squared reach, [m], of one of the centres, [m, d]."""
    inside = [
        (_squared_distances(queries[rows], centres) <= reach).any(axis=1)
        for rows in _blocks(len(queries), len(centres))
    ]
    return float(np.concatenate(inside).mean())


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The squared distances, [n, m] float64, between [n, d] and [m, d]; `b` is converted in parts to save memory."""
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
        a, b: features, [n, d] and [m, d]. If n and m differ, the order statistics of the smaller set are repeated.
        directions: number of directions, uniform on the sphere.
        seed: seed of the directions.
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
    """Ranges that cover 0..count-1, each so short that its rows of `width` elements fit into a block."""
    step = max(1, _BLOCK // max(width, 1))
    return (slice(i, min(i + step, count)) for i in range(0, count, step))
