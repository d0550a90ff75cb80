"""The metrics against closed forms, brute force and torchmetrics."""

from __future__ import annotations

import math
import tracemalloc
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ict_backends.measuring.distances import (
    MomentsSum,
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    perfect_distance,
    precision_recall,
    sliced_wasserstein,
)

seeds = st.integers(0, 1000)
sizes = st.integers(1, 6)


def normal(seed: int, n: int, d: int, *, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, d)) * scale + shift


def exactly(seed: int, mean: list[float], std: list[float]) -> np.ndarray:
    """[500, d] vectors that have just these moments."""
    x = normal(seed, 500, len(mean))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return x * std + mean


@given(seed=seeds, d=sizes, cuts=st.lists(st.integers(1, 29), max_size=4), shift=st.sampled_from([0.0, 1e4]))
def test_moments_of_batches_are_those_of_the_whole(seed: int, d: int, cuts: list[int], shift: float) -> None:
    x, total = normal(seed, 30, d, shift=shift), MomentsSum()
    for part in np.split(x, sorted(set(cuts))):
        total.add(part)
    found = total.result()
    assert found.num == 30
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(x, rowvar=False).reshape(d, d), rtol=1e-9, atol=1e-12)


@given(seed=seeds)
def test_no_frechet_distance_is_negative(seed: int) -> None:
    """Rounding alone would make that of equal Gaussians a little less than 0."""
    same = moments(normal(seed, 40, 12) * 1e3)
    assert 0.0 <= frechet_distance(same, same) < 1e-6 * np.trace(same.cov)


def test_frechet_distance_of_known_gaussians() -> None:
    """Against the closed form for diagonal covariances, on sets built to have them exactly."""
    a = moments(exactly(0, [0.0, 1.0, 2.0], [1.0, 2.0, 0.5]))
    b = moments(exactly(1, [1.0, 1.0, 0.0], [3.0, 2.0, 0.1]))
    assert frechet_distance(a, b) == pytest.approx((1 + 4) + (4 + 0 + 0.16), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


@given(seed=seeds, d=sizes)
def test_frechet_distance_of_rotated_gaussians_matches_the_matrix_root(seed: int, d: int) -> None:
    from scipy.linalg import sqrtm

    a, b = (normal(seed + i, 60, d) @ normal(seed + i + 7, d, d) for i in range(2))
    ca, cb = (np.cov(x, rowvar=False).reshape(d, d) for x in (a, b))
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_frechet_distance_handles_constant_pixels() -> None:
    data = normal(2, 50, 4) * [1, 0, 1, 0]
    assert np.isfinite(frechet_distance(moments(data), moments(data[:10])))


@pytest.mark.parametrize(("num", "count"), [(400, 600), (600, 400), (3000, 600), (300, 1201)])
def test_a_perfect_model_is_as_far_from_the_data_as_is_said(num: int, count: int) -> None:
    """Samples and data are of one Gaussian; the halves alone would say up to four times as much."""
    scale = np.linspace(0.1, 2.0, 8)
    sets = [(normal(2 * i, num, 8) * scale, normal(2 * i + 1, count, 8) * scale) for i in range(60)]
    found = np.mean([frechet_distance(moments(data), moments(samples)) for samples, data in sets])
    said = [perfect_distance(data, num) for _, data in sets]
    assert np.mean([each.value for each in said]) == pytest.approx(found, rel=0.06)
    assert said[0] == perfect_distance(sets[0][1], num)
    assert said[0] != perfect_distance(sets[0][1], num, splits=3)


class Flat(torch.nn.Module):
    """Features for torchmetrics that are the pixels themselves."""

    num_features = 6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


@given(seed=seeds, scale=st.floats(0.2, 3.0), shift=st.floats(-1.0, 1.0))
def test_frechet_distance_is_torchmetrics(seed: int, scale: float, shift: float) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = normal(seed, 40, 6), normal(seed + 1, 50, 6, scale=scale, shift=shift)
    metric = FrechetInceptionDistance(feature=Flat(), normalize=True, input_img_size=(1, 2, 3))
    metric.set_dtype(torch.float64)
    for x, real in ((a, True), (b, False)):
        metric.update(torch.tensor(x).reshape(-1, 1, 2, 3), real=real)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(float(metric.compute()), rel=1e-6)


@given(seed=seeds, scale=st.floats(0.2, 3.0), shift=st.floats(-1.0, 1.0))
def test_kernel_distance_is_torchmetrics(seed: int, scale: float, shift: float) -> None:
    """Over all vectors at once, where no draw of subsets differs."""
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = normal(seed, 40, 6), normal(seed + 1, 40, 6, scale=scale, shift=shift)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it holds all features
        metric = KernelInceptionDistance(feature=Flat(), subsets=1, subset_size=40, normalize=True)
    for x, real in ((a, True), (b, False)):
        metric.update(torch.tensor(x).reshape(-1, 1, 2, 3), real=real)
    found = kernel_distance(a, b, subsets=1, subset_size=40)
    assert found.value == pytest.approx(float(metric.compute()[0]), rel=1e-6, abs=1e-12)


def test_kernel_distance_of_gaussians_is_the_closed_form() -> None:
    """One feature, N(0, 1) against N(m, 1): with E x^k known, the expectation of the cubic kernel is a polynomial."""
    m = 1.5

    def expected_kernel(mu: float, nu: float) -> float:
        """E (x y + 1)^3 of independent N(mu, 1) and N(nu, 1)."""
        (x2, x3), (y2, y3) = ((t**2 + 1, t**3 + 3 * t) for t in (mu, nu))
        return x3 * y3 + 3 * x2 * y2 + 3 * mu * nu + 1

    expected = expected_kernel(0, 0) + expected_kernel(m, m) - 2 * expected_kernel(0, m)
    found = kernel_distance(normal(0, 20_000, 1), normal(1, 20_000, 1, shift=m), subsets=40, subset_size=500)
    assert abs(found.value - expected) < 4 * found.error
    assert found.error < 0.1 * expected
    same = kernel_distance(normal(0, 20_000, 1), normal(1, 20_000, 1), subsets=40, subset_size=500)
    assert abs(same.value) < 5 * same.error


def test_subsets_depend_on_the_seed_alone() -> None:
    a, b = normal(0, 300, 4), normal(1, 200, 4)
    first = kernel_distance(a, b, subsets=5, subset_size=50)
    assert first == kernel_distance(a, b, subsets=5, subset_size=50)
    assert first != kernel_distance(a, b, subsets=5, subset_size=50, seed=1)
    assert np.isfinite(kernel_distance(a[:9], b, subsets=2).value)  # fewer than a subset
    assert np.isnan(kernel_distance(a[:3], b).error)  # which three vectors do not tell


@pytest.mark.parametrize("shift", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(
    ("n", "m", "subsets", "size"), [(200, 200, 1, 200), (200, 400, 20, 60), (200, 300, 1, 60), (100, 300, 9, 1000)]
)
def test_the_error_of_the_kernel_distance_is_its_spread_over_fresh_draws(
    shift: float, n: int, m: int, subsets: int, size: int
) -> None:
    """Of equal distributions, of nearly equal ones and of others, with subsets that are everything or a part."""
    draws = [
        kernel_distance(normal(2 * i, n, 16), normal(2 * i + 1, m, 16, shift=shift), subsets=subsets, subset_size=size)
        for i in range(150)
    ]
    spread = np.std([draw.value for draw in draws])  # itself uncertain by a seventeenth
    assert 0.85 < np.sqrt(np.mean([draw.error**2 for draw in draws])) / spread < 1.3


def test_inception_score_of_known_classes() -> None:
    """One class: 1. k classes in equal shares, each sure: k. All classes equally likely for each image: 1."""
    sure = np.eye(5)[np.arange(100) % 5]
    assert inception_score(sure, splits=1) == pytest.approx((5, 0))
    assert inception_score(np.eye(5)[np.zeros(100, int)]).value == pytest.approx(1)
    assert inception_score(np.full((100, 5), 0.2)).value == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.4, 0.6]])
    marginal = p.mean(0)
    expected = np.exp(np.mean([np.sum(row * np.log(row / marginal)) for row in p]))
    assert inception_score(p, splits=1).value == pytest.approx(expected)


def test_the_inception_score_does_not_depend_on_the_order_of_the_images() -> None:
    """Sorted by class, consecutive parts would have a class each and score 1."""
    sure = np.eye(10)[np.repeat(np.arange(10), 500)]
    shuffled = sure[np.random.default_rng(0).permutation(5000)]
    for found in (inception_score(sure), inception_score(shuffled), inception_score(sure[::-1])):
        assert found.value == pytest.approx(10, rel=0.03)
        assert 0 < found.error < 0.1


def brute_force(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[float, float]:
    def share(queries: np.ndarray, centres: np.ndarray) -> float:
        inside = 0
        for q in queries:
            for i, c in enumerate(centres):
                others = sorted(np.linalg.norm(c - o) for j, o in enumerate(centres) if j != i)
                if np.linalg.norm(q - c) <= others[k - 1]:
                    inside += 1
                    break
        return inside / len(queries)

    return share(fake, real), share(real, fake)


@given(seed=seeds, d=sizes, k=st.integers(1, 4), shift=st.floats(0, 2), n=st.integers(6, 15), m=st.integers(6, 15))
def test_precision_and_recall_are_those_of_brute_force(seed: int, d: int, k: int, shift: float, n: int, m: int) -> None:
    real, fake = normal(seed, n, d), normal(seed + 1, m, d, shift=shift)
    assert precision_recall(real, fake, neighbours=k) == pytest.approx(brute_force(real, fake, k))


def test_precision_and_recall_in_blocks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(0, 40, 3), normal(1, 30, 3, shift=0.5)
    whole = precision_recall(real, fake)
    monkeypatch.setattr("ict_backends.measuring.distances._BLOCK", 64)
    assert precision_recall(real, fake) == whole
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, fake + 100) == (0.0, 0.0)


def test_sliced_wasserstein_of_known_sets() -> None:
    """A shift by v moves every slice by v . theta: the mean of its square is |v|^2 / d. In one dimension it is W_2."""
    x, v = normal(0, 500, 4), np.array([3.0, 0.0, 4.0, 0.0])
    assert sliced_wasserstein(x, x + v, directions=4000) == pytest.approx(np.sqrt(25 / 4), rel=0.03)
    assert sliced_wasserstein(x, x) == 0
    line = np.arange(8.0)[:, None]
    assert sliced_wasserstein(line, line[::-1] * 2) == pytest.approx(np.sqrt(np.mean(np.arange(8.0) ** 2)))
    assert sliced_wasserstein(line, np.repeat(line, 3, axis=0)) == 0  # other numbers of the same distribution
    assert sliced_wasserstein(x, x + v, seed=1) != sliced_wasserstein(x, x + v)


@given(seed=seeds, n=st.integers(1, 12), m=st.integers(1, 12))
def test_sliced_wasserstein_of_sets_of_unequal_size_is_exact(seed: int, n: int, m: int) -> None:
    """As if each vector were repeated until both sets had the same size."""
    a, b = normal(seed, n, 3), normal(seed + 1, m, 3)
    size = math.lcm(n, m)
    expected = sliced_wasserstein(np.repeat(a, size // n, axis=0), np.repeat(b, size // m, axis=0), directions=4)
    assert sliced_wasserstein(a, b, directions=4) == pytest.approx(expected, rel=1e-9)


@given(seed=seeds, function=st.sampled_from([kernel_distance, precision_recall, sliced_wasserstein]))
def test_float32_features_give_nearly_the_same(seed: int, function: Callable[..., object]) -> None:
    a, b = normal(seed, 50, 5).astype(np.float32), normal(seed + 1, 50, 5, shift=0.5).astype(np.float32)
    narrow, wide = (np.atleast_1d(function(x, y)) for x, y in ((a, b), (a.astype(float), b.astype(float))))
    np.testing.assert_allclose(narrow, wide, rtol=1e-4, atol=1e-6)


def test_memory_of_moments_does_not_grow_with_the_number_of_images() -> None:
    peaks = []
    for batches in (3, 30):
        total = MomentsSum()
        tracemalloc.start()
        for i in range(batches):
            total.add(normal(i, 100, 50))
        total.result()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
