"""Distances between sets of images, from their features; computed in float64, whatever the dtype of the features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def joined_moments(parts: Sequence[Moments]) -> Moments:
    """The moments of all features of which `parts` has the moments, each of two or more; there must be one part."""
    count = sum(part.num for part in parts)
    mean = sum((part.num / count * part.mean for part in parts), np.zeros_like(parts[0].mean))
    scatter = np.zeros_like(parts[0].cov)
    for part in parts:
        scatter += (part.num - 1) * part.cov + part.num * np.outer(part.mean - mean, part.mean - mean)
    return Moments(count, mean, scatter / (count - 1))


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


class Estimate(NamedTuple):
    """An estimate.

    Attributes:
        value: the mean of several measurements.
        error: the standard error or the standard deviation, as the function that returns it says.
    """

    value: float
    error: float


def perfect_distance(features: np.ndarray, num: int, *, splits: int = 8) -> Estimate:
    """Squared Frechet distance from the data that `num` samples of a perfect model would have.

    A distance of finite sets is too large by about C (1/n + 1/m) for n and m vectors. Random halves of the data show
    C, since their true distance is 0.

    Args:
        features: those of the data, [m, d], m >= 4.
        num: n, the number of samples, >= 1.
        splits: number of random splits into halves.

    Returns:
        The mean over the splits, and their standard deviation.
    """
    rng, count, half = np.random.Generator(np.random.Philox(0)), len(features), len(features) // 2
    orders = [rng.permutation(count) for _ in range(splits)]
    apart = [frechet_distance(moments(features[order[:half]]), moments(features[order[half:]])) for order in orders]
    scale = (1 / num + 1 / count) / (1 / half + 1 / (count - half))
    return Estimate(scale * float(np.mean(apart)), scale * float(np.std(apart)))


def kernel_distance(
    a: np.ndarray, b: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """Squared maximum mean discrepancy with a cubic kernel; for Inception features, it is the KID.

        k(x, y) = (x . y / d + 1)^3, the unbiased estimate, averaged over random subsets   Binkowski et al. 2018

    Args:
        a, b: features, [n, d] and [m, d], with n, m >= 2.
        subsets: number of pairs of random subsets, >= 1.
        subset_size: vectors in a subset; at most min(n, m) are taken.
        seed: seed of the subsets.

    Returns:
        The mean, and its standard error: how much the value would vary if both sets, and the subsets, were drawn again.
        It is up to a quarter too large if both sets are of one distribution, and NaN for subsets of fewer than four.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    size = min(subset_size, len(a), len(b))
    values, parts = [], []
    for _ in range(subsets):
        kernels = _kernels(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
        values.append(_discrepancy(*kernels))
        parts.append(_variance_parts(*kernels))
    of_sets, of_subsets = (_variance(np.mean(parts, axis=0), *sizes) for sizes in ((len(a), len(b)), (size, size)))
    # The mean over all possible subsets is the estimate from the whole sets; that over some of them varies around it.
    variance = of_sets + (of_subsets - of_sets) / subsets
    return Estimate(float(np.mean(values)), float(np.sqrt(variance)))


def _kernels(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kernels, [s, s] each, within `a`, within `b` and between them, [s, d] each; those of a vector with itself
    are 0."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    aa, bb, ab = ((x @ y.T / a.shape[1] + 1.0) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    np.fill_diagonal(aa, 0.0)
    np.fill_diagonal(bb, 0.0)
    return aa, bb, ab


def _discrepancy(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> float:
    """The unbiased estimate from the kernels of equally many vectors of both sets, [s, s] each."""
    return float((aa.sum() + bb.sum()) / (len(ab) * (len(ab) - 1)) - 2.0 * ab.mean())


def _variance(parts: np.ndarray, n: int, m: int) -> float:
    """The variance of the unbiased estimate from sets of n and m vectors, by `_variance_parts`."""
    of_a, of_b, of_aa, of_bb, of_ab = parts
    second = 2 * of_aa / (n * (n - 1)) + 2 * of_bb / (m * (m - 1)) + 4 * of_ab / (n * m)
    return float(np.maximum(4 * of_a / n + 4 * of_b / m, 0.0) + second)


def _variance_parts(aa: np.ndarray, bb: np.ndarray, ab: np.ndarray) -> np.ndarray:
    """What the variance of the unbiased estimate consists of, by the kernels of s vectors of each set, [s, s] each.

    By Hoeffding's decomposition (1948; Serfling 1980, sec. 5.2), with w(x) = E k(x, X) - E k(x, Y), and with Kxx, Kyy
    and Kxy, the kernels less what each vector alone explains, the variance is

        4 var w(X) / n + 4 var w(Y) / m + 2 var Kxx / (n (n - 1)) + 2 var Kyy / (m (m - 1)) + 4 var Kxy / (n m)

    Returns:
        The five variances, [5], without bias, so that the first two may be negative; NaN where s < 4.
    """
    size = len(ab)
    if size < 4:
        return np.full(5, np.nan)
    to_a, to_b = ab.mean(axis=1), ab.mean(axis=0)
    within_a, within_b = aa.sum(axis=1) / (size - 1), bb.sum(axis=1) / (size - 1)
    of_ab = ((ab - to_a[:, None] - to_b + ab.mean()) ** 2).sum() / (size - 1) ** 2
    of_aa, of_bb = _interaction(aa), _interaction(bb)
    # The mean over a row of s kernels varies around that over all vectors.
    of_a = (within_a - to_a).var(ddof=1) - of_aa / (size - 1) - of_ab / size
    of_b = (within_b - to_b).var(ddof=1) - of_bb / (size - 1) - of_ab / size
    return np.array([of_a, of_b, of_aa, of_bb, of_ab])


def _interaction(kernel: np.ndarray) -> float:
    """The variance of a set's kernels, [s, s] with 0 on the diagonal, less what each vector alone explains."""
    size = len(kernel)
    mean = kernel.sum() / (size * (size - 1))
    alone = (kernel.sum(axis=1) - (size - 1) * mean) / (size - 2)
    rest = kernel - mean - alone[:, None] - alone
    np.fill_diagonal(rest, 0.0)
    return float((rest**2).sum() / (size * (size - 3)))


def inception_score(probabilities: np.ndarray, *, splits: int = 10) -> Estimate:
    """The inception score: high if the class of each image is certain and the classes of all images vary.

        exp(E_x KL(p(y|x) || p(y))), over random parts of the images                       Salimans et al. 2016

    The parts come from a fixed seed: consecutive ones would have few classes each where images are sorted by class.

    Args:
        probabilities: [n, k], the probabilities of k classes for each image; n >= splits.
        splits: number of parts.

    Returns:
        The mean over the parts, and their standard deviation (as papers report it).
    """
    scores, order = [], np.random.Generator(np.random.Philox(0)).permutation(len(probabilities))
    for part in np.array_split(np.asarray(probabilities, dtype=np.float64)[order], splits):
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
        a, b: features, [n, d] and [m, d].
        directions: number of directions, uniform on the sphere.
        seed: seed of the directions.
    """
    rng = np.random.Generator(np.random.Philox(seed))
    axes = rng.standard_normal((a.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    of_a, of_b, shares = _matched(len(a), len(b))
    total = 0.0
    for axis in axes.T:
        x, y = (np.sort(np.asarray(values @ axis.astype(values.dtype), dtype=np.float64)) for values in (a, b))
        total += float(shares @ (x[of_a] - y[of_b]) ** 2)
    return float(np.sqrt(total / directions))


def _matched(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The optimal transport between n and m numbers in order: which goes to which, and the share of each such pair.

    Both quantile functions are steps, n and m of them; between two of all their edges, both are constant.
    """
    edges = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1 / (n m): integers are exact
    return (edges - 1) // m, (edges - 1) // n, np.diff(edges, prepend=0) / (n * m)


def _blocks(count: int, width: int) -> Iterator[slice]:
    """Ranges that cover 0..count-1, each so short that its rows of `width` elements fit into a block."""
    step = max(1, _BLOCK // max(width, 1))
    return (slice(i, min(i + step, count)) for i in range(0, count, step))
