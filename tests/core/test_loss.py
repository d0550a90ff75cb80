from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    TORCH,
    Library,
    assert_same,
    batch_shapes,
    eps,
    event_shapes,
    levels,
    log_uniform,
    other_float,
    seeds,
    to_numpy,
)
from hypothesis import given
from hypothesis import strategies as st

from ict_core import (
    consistency_loss,
    huber_constant,
    karras_sigmas,
    l1,
    loss_weight,
    make_grid,
    pseudo_huber,
    pseudo_huber_elementwise,
    squared_l2,
)
from ict_core.loss import DISTANCES, WEIGHTINGS

Array = Any
constants = log_uniform(1e-3, 10.0)
scales = log_uniform(1e-4, 1e2)


def reference_huber(a: np.ndarray, b: np.ndarray, c: float) -> np.ndarray:
    """Sample by sample in float64, in the form that keeps its digits."""
    squared = np.array([np.sum((a_i - b_i) ** 2) for a_i, b_i in zip(a, b, strict=True)]).reshape(len(a))
    return squared / (np.sqrt(squared + c**2) + c)


def pair(lib: Library, seed: int, shape: tuple[int, ...], dtype: str, scale: float) -> tuple[Array, Array]:
    return lib.normal(seed, shape, dtype, scale), lib.normal(seed + 1, shape, dtype, scale)


# --- pseudo_huber


@given(shape=batch_shapes, seed=seeds, c=constants, scale=scales)
def test_huber_matches_the_formula(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, c: float, scale: float
) -> None:
    a, b = pair(lib, seed, shape, dtype, scale)
    wide_a, wide_b = to_numpy(a), to_numpy(b)
    # as printed in the paper, where its cancellation (of c, hence absolute) does no harm
    printed = np.sqrt(np.sum((wide_a - wide_b).reshape(shape[0], -1) ** 2, axis=1) + c**2) - c
    np.testing.assert_allclose(reference_huber(wide_a, wide_b, c), printed, rtol=1e-12, atol=1e-15 * c)
    # a - b costs an eps of the operands, not of their difference
    expected = lib.asarray(reference_huber(wide_a, wide_b, c), dtype)
    atol = eps(dtype) * scale * math.sqrt(math.prod(shape))
    assert_same(pseudo_huber(a, b, c=c), expected, rtol=32 * eps(dtype), atol=atol)


@given(shape=batch_shapes, seed=seeds, c=constants, scale=scales)
def test_huber_is_symmetric(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, c: float, scale: float
) -> None:
    a, b = pair(lib, seed, shape, dtype, scale)
    assert_same(pseudo_huber(a, b, c=c), pseudo_huber(b, a, c=c))


@given(shape=batch_shapes, seed=seeds, c=constants, scale=scales)
def test_huber_is_zero_for_equals_and_positive_for_others(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, c: float, scale: float
) -> None:
    """Positive as soon as one element of the sample differs."""
    a = lib.normal(seed, shape, dtype, scale)
    assert_same(pseudo_huber(a, a, c=c), lib.asarray(np.zeros(shape[0]), dtype))
    changed = to_numpy(a)
    index = tuple(np.random.default_rng(seed).integers(shape))
    changed[index] = changed[index] * 1.5 + scale * 1e-2
    found = to_numpy(pseudo_huber(a, lib.asarray(changed, dtype), c=c))
    assert found[index[0]] > 0
    assert np.all(np.delete(found, index[0]) == 0)


@given(batch=st.integers(1, 3), dim=st.integers(2, 30), seed=seeds, c=constants, scale=scales)
def test_huber_sees_a_sample_through_one_norm(
    lib: Library, batch: int, dim: int, seed: int, c: float, scale: float
) -> None:
    """Rotating the event leaves ||a - b|| alone; the elementwise version does not survive it."""
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((dim, dim)))
    a, b = scale * rng.standard_normal((2, batch, dim))
    plain = pseudo_huber(lib.asarray(a, "float64"), lib.asarray(b, "float64"), c=c)
    rotated = pseudo_huber(lib.asarray(a @ rotation, "float64"), lib.asarray(b @ rotation, "float64"), c=c)
    assert_same(rotated, plain, rtol=1e-10)


@given(batch=st.integers(1, 3), dim=st.integers(1, 30), c=constants, distance=scales, seed=seeds)
def test_huber_is_the_same_wherever_the_difference_sits(
    lib: Library, dtype: str, batch: int, dim: int, c: float, distance: float, seed: int
) -> None:
    """All in one element or spread over all of them: only the distance counts, at any D."""
    spread = np.random.default_rng(seed).standard_normal((batch, dim))
    spread *= distance / np.linalg.norm(spread, axis=1, keepdims=True)
    single = np.zeros((batch, dim))
    single[:, seed % dim] = distance
    zeros = lib.asarray(np.zeros((batch, dim)), dtype)
    one, all_of_them = (pseudo_huber(lib.asarray(a, dtype), zeros, c=c) for a in (single, spread))
    assert_same(all_of_them, one, rtol=64 * eps(dtype))
    expected = math.sqrt(distance**2 + c**2) - c
    np.testing.assert_allclose(to_numpy(one), expected, rtol=64 * eps(dtype), atol=4 * 2.3e-16 * c)


@given(shape=batch_shapes, seed=seeds, c=constants)
def test_huber_forgets_the_order_and_the_shape_of_the_event(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, c: float
) -> None:
    a, b = pair(lib, seed, shape, dtype, 1.0)
    order = np.random.default_rng(seed).permutation(math.prod(shape[1:]))
    flat = [lib.asarray(to_numpy(array).reshape(shape[0], -1)[:, order], dtype) for array in (a, b)]
    assert_same(pseudo_huber(*flat, c=c), pseudo_huber(a, b, c=c), rtol=64 * eps(dtype))


@given(shape=batch_shapes, seed=seeds, c=constants)
def test_huber_judges_each_sample_alone(lib: Library, dtype: str, shape: tuple[int, ...], seed: int, c: float) -> None:
    a, b = pair(lib, seed, shape, dtype, 1.0)
    together = to_numpy(pseudo_huber(a, b, c=c))
    for i in range(shape[0]):
        a_i, b_i = (lib.asarray(to_numpy(array)[i : i + 1], dtype) for array in (a, b))
        assert_same(pseudo_huber(a_i, b_i, c=c), lib.asarray(together[i : i + 1], dtype), rtol=64 * eps(dtype))


@given(c=constants, ratio=log_uniform(1e-4, 1e-2))
def test_huber_is_quadratic_near_zero(c: float, ratio: float) -> None:
    """r^2 / 2c, the next term being smaller by (r / 2c)^2."""
    r = ratio * c
    found = pseudo_huber(np.array([[r]]), np.zeros((1, 1)), c=c)
    np.testing.assert_allclose(found, r**2 / (2 * c), rtol=ratio**2 / 4 + 1e-12)
    assert abs(found[0] / (r**2 / (2 * c)) - 1) > ratio**2 / 8 - 1e-12


@given(c=constants, ratio=log_uniform(1e2, 1e6))
def test_huber_is_linear_far_away(c: float, ratio: float) -> None:
    """r - c, the next term being c^2 / 2r."""
    r = ratio * c
    found = pseudo_huber(np.array([[r]]), np.zeros((1, 1)), c=c)
    np.testing.assert_allclose(found, r - c, rtol=0, atol=0.5 * c / ratio + 1e-12 * r)


@given(ratio=log_uniform(1e-6, 10.0), dim=st.sampled_from([1, 12, 64, 3072]), seed=seeds)
def test_huber_keeps_its_digits_in_float32(lib: Library, ratio: float, dim: int, seed: int) -> None:
    """sqrt(r + c^2) - c would be 0 for ||a - b|| below 3e-4 c."""
    c = huber_constant(dim)
    direction = np.random.default_rng(seed).standard_normal((2, dim))
    a = lib.asarray(ratio * c * direction / np.linalg.norm(direction, axis=1, keepdims=True), "float32")
    b = lib.asarray(np.zeros((2, dim)), "float32")
    wide = to_numpy(a)
    expected = lib.asarray(reference_huber(wide, np.zeros_like(wide), c), "float32")
    assert_same(pseudo_huber(a, b, c=c), expected, rtol=1e-5)


def gradient_norms(distance: Callable[..., torch.Tensor], a: np.ndarray, c: float) -> np.ndarray:
    """[b] norms of d distance / d a, against b = 0, by torch's autograd in float64."""
    a_torch = torch.tensor(a, dtype=torch.float64, requires_grad=True)
    distance(a_torch, torch.zeros_like(a_torch), c=c).sum().backward()
    return np.linalg.norm(a_torch.grad.numpy(), axis=1)


@given(dim=st.sampled_from([1, 2, 30, 1000, 3072]), c=constants, ratio=log_uniform(1e-3, 1e3), seed=seeds)
def test_huber_gradient_is_shorter_than_1_at_any_dimension(dim: int, c: float, ratio: float, seed: int) -> None:
    """It is r / sqrt(r^2 + c^2), whatever D."""
    a = np.random.default_rng(seed).standard_normal((2, dim))
    a *= ratio * c / np.linalg.norm(a, axis=1, keepdims=True)
    norms = gradient_norms(pseudo_huber, a, c)
    assert np.all(norms < 1)
    np.testing.assert_allclose(norms, ratio / math.sqrt(ratio**2 + 1), rtol=1e-9)


def test_huber_gradient_does_not_grow_with_dimension_as_the_elementwise_one_does() -> None:
    """The fault of the open implementations, shown beside ours: sqrt(D) too strong."""

    dims = (4, 64, 1024, 16384)
    ours, theirs = [], []
    for dim in dims:
        a = np.random.default_rng(dim).standard_normal((8, dim))
        ours.append(gradient_norms(pseudo_huber, a, huber_constant(dim)).mean())
        theirs.append(gradient_norms(pseudo_huber_elementwise, a, huber_constant(dim)).mean())
    np.testing.assert_allclose(ours, 1.0, rtol=1e-4)
    np.testing.assert_allclose(theirs, np.sqrt(dims), rtol=0.1)


def test_huber_gradient_at_equals_is_zero_and_finite(dtype: str) -> None:
    """A plain norm has none there."""
    a = TORCH.normal(0, (3, 4), dtype).requires_grad_()
    pseudo_huber(a, a.detach(), c=0.03).sum().backward()
    assert_same(a.grad, torch.zeros_like(a))


@pytest.mark.parametrize("shape", [(0,), (0, 3), (0, 3, 2, 2)])
def test_huber_of_no_samples_is_empty(lib: Library, dtype: str, shape: tuple[int, ...]) -> None:
    a = lib.asarray(np.zeros(shape), dtype)
    assert_same(pseudo_huber(a, a, c=0.1), lib.asarray(np.zeros(0), dtype))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_huber_shows_what_is_not_finite_and_only_there(lib: Library, dtype: str, bad: float) -> None:
    values = np.ones((3, 2, 2))
    values[1, 0, 1] = bad
    # NumPy speaks up about inf / inf, as it should; the value is what is at stake here
    with np.errstate(invalid="ignore"):
        found = to_numpy(pseudo_huber(lib.asarray(values, dtype), lib.asarray(np.zeros((3, 2, 2)), dtype), c=0.1))
    assert list(np.isfinite(found)) == [True, False, True]


def test_numpy_scalar_c_promotes_nothing(lib: Library, dtype: str) -> None:
    a, b = pair(lib, 0, (3, 4), dtype, 1.0)
    assert_same(pseudo_huber(a, b, c=np.float64(0.03)), pseudo_huber(a, b, c=0.03))


def test_huber_namespace_can_be_given(lib: Library, dtype: str) -> None:
    a, b = pair(lib, 0, (3, 4), dtype, 1.0)
    assert_same(pseudo_huber(a, b, c=0.1, xp=lib.xp), pseudo_huber(a, b, c=0.1))


@pytest.mark.parametrize("shape", [(3, 1), (1, 4), (4, 3), (3,), (3, 4, 1), ()])
def test_huber_broadcasts_nothing(lib: Library, dtype: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^b must have the shape of a, \(3, 4\), not "):
        pseudo_huber(lib.normal(0, (3, 4), dtype), lib.normal(0, shape, dtype), c=0.1)


def test_huber_names_arguments_of_the_wrong_type(lib: Library, dtype: str) -> None:
    a = lib.normal(0, (3, 4), dtype)
    for b in (lib.normal(0, (3, 4), other_float(dtype)), lib.asarray(np.ones((3, 4)), "int32"), 0.0, None, [[0.0]]):
        with pytest.raises(TypeError, match="^b must have the dtype of a"):
            pseudo_huber(a, b, c=0.1)
    for a in (lib.asarray(np.ones((3, 4)), "int32"), 1.0, None, [[1.0]]):
        with pytest.raises(TypeError, match="^a must be an array"):
            pseudo_huber(a, a, c=0.1)
    scalar = lib.asarray(1.0, dtype)
    with pytest.raises(ValueError, match="^a must be .* not a scalar"):
        pseudo_huber(scalar, scalar, c=0.1)


def test_huber_refuses_arrays_of_two_libraries() -> None:
    with pytest.raises(TypeError, match="^b must have the dtype of a"):
        pseudo_huber(np.ones((3, 4), np.float32), torch.ones(3, 4), c=0.1)


BAD_NUMBERS = [
    *[(value, ValueError) for value in (0.0, -1.0, math.nan, math.inf)],
    *[(value, TypeError) for value in (None, "1", True, np.ones(1))],
]


@pytest.mark.parametrize(("value", "error"), BAD_NUMBERS)
def test_bad_constants_are_named(value: object, error: type[Exception]) -> None:
    a = np.ones((2, 3))
    with pytest.raises(error, match="^c must be"):
        pseudo_huber(a, a, c=value)
    with pytest.raises(error, match="^factor must be"):
        huber_constant(3, factor=value)


# --- the distances that it is compared with

COMPARED = {
    "l2": (squared_l2, lambda d, c: np.sum(d**2)),
    "l1": (l1, lambda d, c: np.sum(np.abs(d))),
    "pseudo_huber_elementwise": (pseudo_huber_elementwise, lambda d, c: np.sum(np.sqrt(d**2 + c**2) - c)),
}


def constant_of(name: str, c: float) -> dict[str, float]:
    return {"c": c} if "huber" in name else {}


@pytest.mark.parametrize("name", COMPARED)
@given(shape=batch_shapes, seed=seeds, c=constants, scale=scales)
def test_compared_distances_match_their_formulas(
    lib: Library, dtype: str, name: str, shape: tuple[int, ...], seed: int, c: float, scale: float
) -> None:
    a, b = pair(lib, seed, shape, dtype, scale)
    function, formula = COMPARED[name]
    rows = (to_numpy(a) - to_numpy(b)).reshape(shape[0], -1)
    expected = lib.asarray([formula(row, c) for row in rows], dtype)
    size = scale * math.prod(shape) * (scale if name == "l2" else 1.0)
    found = function(a, b, **constant_of(name, c))
    assert_same(found, expected, rtol=64 * eps(dtype), atol=16 * eps(dtype) * size + 1e-14 * c * math.prod(shape))
    # As settings name them, each distance is made of c.
    assert_same(DISTANCES[name](c)(a, b), found)


def test_settings_name_every_distance() -> None:
    assert set(DISTANCES) == {"pseudo_huber", *COMPARED}
    a, b = pair(TORCH, 0, (3, 4), "float64", 1.0)
    assert_same(DISTANCES["pseudo_huber"](0.1)(a, b), pseudo_huber(a, b, c=0.1))


@pytest.mark.parametrize("name", COMPARED)
def test_compared_distances_name_bad_arguments(lib: Library, dtype: str, name: str) -> None:
    function, _ = COMPARED[name]
    a = lib.normal(0, (3, 4), dtype)
    with pytest.raises(ValueError, match="^b must have the shape of a"):
        function(a, lib.normal(0, (3, 1), dtype), **constant_of(name, 0.1))
    with pytest.raises(TypeError, match="^b must have the dtype of a"):
        function(a, lib.normal(0, (3, 4), other_float(dtype)), **constant_of(name, 0.1))
    with pytest.raises(TypeError, match="^a must be an array"):
        function(1.0, 1.0, **constant_of(name, 0.1))


@pytest.mark.parametrize(("value", "error"), BAD_NUMBERS)
def test_a_bad_constant_of_the_elementwise_distance_is_named(value: object, error: type[Exception]) -> None:
    a = np.ones((2, 3))
    with pytest.raises(error, match="^c must be"):
        pseudo_huber_elementwise(a, a, c=value)


# --- huber_constant


@pytest.mark.parametrize(("shape", "c"), [((3, 32, 32), 0.03), ((3, 64, 64), 0.06)])
def test_huber_constant_is_the_papers(shape: tuple[int, ...], c: float) -> None:
    assert round(huber_constant(math.prod(shape)), 2) == c


@given(dim=st.integers(1, 10**6), factor=log_uniform(1e-5, 1.0))
def test_huber_constant_grows_with_the_root_of_the_dimension(dim: int, factor: float) -> None:
    assert huber_constant(dim, factor=factor) == pytest.approx(factor * dim**0.5)
    assert huber_constant(4 * dim) == pytest.approx(2 * huber_constant(dim))
    assert huber_constant(dim) == pytest.approx(0.00054 * dim**0.5)
    assert type(huber_constant(np.int64(dim))) is float


@pytest.mark.parametrize(
    ("dim", "error"), [(0, ValueError), (-1, ValueError), (3.0, TypeError), (True, TypeError), (None, TypeError)]
)
def test_bad_dimensions_are_named(dim: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="^dim must be"):
        huber_constant(dim)


# --- loss_weight


@given(sigmas=levels())
def test_weight_is_the_inverse_gap(lib: Library, dtype: str, sigmas: np.ndarray) -> None:
    low, high = lib.asarray(sigmas[:-1], dtype), lib.asarray(sigmas[1:], dtype)
    gap = to_numpy(high) - to_numpy(low)
    # subtracting neighbours is exact, or off by an eps of the gap
    assert_same(loss_weight(low, high), lib.asarray(1 / gap, dtype), rtol=4 * eps(dtype))


@given(n=st.integers(3, 1281), rho=st.floats(1.5, 20.0))
def test_weight_falls_with_the_level(n: int, rho: float) -> None:
    sigmas = karras_sigmas(n, rho=rho)
    assert np.all(np.diff(loss_weight(sigmas[:-1], sigmas[1:])) < 0)


def test_official_weights(schedules: Mapping[str, np.ndarray]) -> None:
    """Ours are differences in float64; the float32 ones are 2.5e-5 off at N = 1281."""
    checked = 0
    for key, reference in schedules.items():
        name = re.fullmatch(r"loss_weight/N(\d+)(_from_float64)?", key)
        if not name:
            continue
        weights = make_grid(int(name[1])).weights
        assert weights.shape == reference.shape, key
        np.testing.assert_allclose(weights, reference, rtol=1.2e-7 if name[2] else 5e-5, err_msg=key)
        checked += 1
    assert checked > 1


WEIGHTS = {
    "one": lambda s, sd: np.ones_like(s),
    "snr": lambda s, sd: s**-2,
    "snr_plus_one": lambda s, sd: s**-2 + 1,
    "truncated_snr": lambda s, sd: np.maximum(s**-2, 1),
    "edm": lambda s, sd: (s**2 + sd**2) / (s * sd) ** 2,
}
# How the released code calls them.
OFFICIAL_WEIGHTS = {
    "one": "uniform",
    "snr": "snr",
    "snr_plus_one": "snr+1",
    "truncated_snr": "truncated-snr",
    "edm": "karras",
}


@pytest.mark.parametrize("weighting", WEIGHTS)
@given(sigmas=levels(), sigma_data=log_uniform(0.1, 2.0))
def test_weights_of_the_level_match_their_formulas(
    lib: Library, dtype: str, weighting: str, sigmas: np.ndarray, sigma_data: float
) -> None:
    """Of the student's level, sigma_hi."""
    low, high = lib.asarray(sigmas[:-1], dtype), lib.asarray(sigmas[1:], dtype)
    found = loss_weight(low, high, weighting=weighting, sigma_data=sigma_data)
    assert_same(found, lib.asarray(WEIGHTS[weighting](to_numpy(high), sigma_data), dtype), rtol=8 * eps(dtype))


def test_weightings_are_those_of_the_settings() -> None:
    assert set(WEIGHTINGS) == {"inverse_gap", *WEIGHTS}


@pytest.mark.parametrize("weighting", WEIGHTS)
def test_official_weights_of_the_level(schedules: Mapping[str, np.ndarray], weighting: str) -> None:
    sigma = schedules["scalings/sigma"].astype(np.float64)
    found = loss_weight(sigma / 2, sigma, weighting=weighting)
    np.testing.assert_allclose(found, schedules[f"weightings/{OFFICIAL_WEIGHTS[weighting]}"], rtol=5e-7)


@pytest.mark.parametrize("weighting", ["gap", "", None])
def test_an_unknown_weighting_is_named(weighting: object) -> None:
    with pytest.raises(ValueError, match="^weighting must be one of inverse_gap, one, snr"):
        loss_weight(np.array([0.1]), np.array([0.2]), weighting=weighting)


def test_weight_names_bad_arguments(lib: Library, dtype: str) -> None:
    low = lib.asarray([0.1, 0.2], dtype)
    with pytest.raises(ValueError, match="^sigma_hi must have the shape of sigma_lo"):
        loss_weight(low, lib.asarray([0.3], dtype))
    for high in (lib.asarray([0.2, 0.3], other_float(dtype)), 0.3, None):
        with pytest.raises(TypeError, match="^sigma_hi must have the dtype of sigma_lo"):
            loss_weight(low, high)
    for wrong in (lib.asarray([1, 2], "int32"), 0.1, None):
        with pytest.raises(TypeError, match="^sigma_lo must be an array"):
            loss_weight(wrong, low)


# --- consistency_loss


class Recorder:
    """A consistency function that keeps its arguments and tells the order of the calls."""

    def __init__(self, log: list[str], name: str, function: Callable[[Array, Array], Array]) -> None:
        self.log, self.name, self.function = log, name, function
        self.x: Array = None
        self.sigma: Array = None

    def __call__(self, x: Array, sigma: Array) -> Array:
        self.log.append(self.name)
        self.x, self.sigma = x, sigma
        return self.function(x, sigma)


class Batch:
    """Drawn arguments of one loss."""

    def __init__(self, lib: Library, seed: int, shape: tuple[int, ...], dtype: str) -> None:
        drawn = make_grid(41).draw(np.random.default_rng(seed), shape[0])
        self.x = lib.normal(seed, shape, dtype, 0.5)
        self.z = lib.normal(seed + 1, shape, dtype)
        self.sigma_lo, self.sigma_hi, self.weight = (lib.asarray(values, dtype) for values in drawn)
        self.arguments = (self.x, self.z, self.sigma_lo, self.sigma_hi, self.weight)


def shrink(x: Array, sigma: Array) -> Array:
    return 0.5 * x


def identity(x: Array, sigma: Array) -> Array:
    return x


@given(shape=batch_shapes, seed=seeds)
def test_both_levels_see_the_same_x_and_z(lib: Library, dtype: str, shape: tuple[int, ...], seed: int) -> None:
    """The teacher at sigma_lo, the student at sigma_hi, one call each, the teacher's first."""
    batch = Batch(lib, seed, shape, dtype)
    log: list[str] = []
    student, teacher = Recorder(log, "student", shrink), Recorder(log, "teacher", identity)
    consistency_loss(student, teacher, *batch.arguments, c=0.03)
    assert log == ["teacher", "student"]
    x, z = to_numpy(batch.x), to_numpy(batch.z)
    for seen, sigma in ((teacher, batch.sigma_lo), (student, batch.sigma_hi)):
        assert_same(seen.sigma, sigma)
        noise = to_numpy(sigma).reshape(-1, *[1] * (len(shape) - 1)) * z
        tolerance = 2 * eps(dtype) * (1 + np.abs(noise).max() + np.abs(x).max())
        assert_same(seen.x, lib.asarray(x + noise, dtype), atol=tolerance)


@given(shape=batch_shapes, seed=seeds, c=constants)
def test_loss_matches_the_formula(lib: Library, dtype: str, shape: tuple[int, ...], seed: int, c: float) -> None:
    batch = Batch(lib, seed, shape, dtype)
    found = consistency_loss(shrink, identity, *batch.arguments, c=c)
    x, z, low, high, weight = (to_numpy(values) for values in batch.arguments)
    per_sample = np.empty(shape[0])
    for i in range(shape[0]):
        y_hi, y_lo = 0.5 * (x[i] + high[i] * z[i]), x[i] + low[i] * z[i]
        per_sample[i] = weight[i] * (math.sqrt(np.sum((y_hi - y_lo) ** 2) + c**2) - c)
    atol = 16 * eps(dtype) * float(np.max(weight * (1 + high))) * math.prod(shape)
    assert_same(found.per_sample, lib.asarray(per_sample, dtype), rtol=64 * eps(dtype), atol=atol)
    assert_same(found.mean, lib.asarray(per_sample.mean(), dtype), rtol=64 * eps(dtype), atol=atol)


@pytest.mark.parametrize("distance", DISTANCES)
def test_loss_takes_each_distance(lib: Library, dtype: str, distance: str) -> None:
    batch = Batch(lib, 0, (3, 2, 2), dtype)
    found = consistency_loss(shrink, identity, *batch.arguments, distance=DISTANCES[distance](0.1))
    x, z, low, high = batch.arguments[:4]
    column = (3, 1, 1)
    y_hi = 0.5 * (x + lib.xp.reshape(high, column) * z)
    y_lo = x + lib.xp.reshape(low, column) * z
    expected = batch.weight * DISTANCES[distance](0.1)(y_hi, y_lo)
    assert_same(found.per_sample, expected, rtol=8 * eps(dtype))


def test_loss_takes_a_distance_of_ones_own(lib: Library, dtype: str) -> None:
    batch = Batch(lib, 0, (3, 2), dtype)

    def largest(a: Array, b: Array) -> Array:
        return lib.xp.max(lib.xp.abs(a - b), axis=1)

    own = consistency_loss(shrink, identity, *batch.arguments, distance=largest, xp=lib.xp)
    x, z, low, high = (to_numpy(a) for a in batch.arguments[:4])
    difference = 0.5 * (x + high[:, None] * z) - (x + low[:, None] * z)
    expected = to_numpy(batch.weight) * np.abs(difference).max(axis=1)
    assert_same(own.per_sample, lib.asarray(expected, dtype), rtol=32 * eps(dtype))


@pytest.mark.parametrize("given_", [{}, {"c": 0.1, "distance": squared_l2}], ids=["neither", "both"])
def test_loss_takes_a_constant_or_a_distance(given_: dict[str, Any]) -> None:
    batch = Batch(TORCH, 0, (3, 2), "float64")
    with pytest.raises(TypeError, match="^consistency_loss takes c, for the Pseudo-Huber distance, or else distance"):
        consistency_loss(shrink, identity, *batch.arguments, **given_)


def test_a_name_is_no_distance() -> None:
    """Names belong to settings, which `distance_of` reads."""
    batch = Batch(TORCH, 0, (3, 2), "float64")
    with pytest.raises(TypeError, match="^distance must be a function of .a, b., not str"):
        consistency_loss(shrink, identity, *batch.arguments, distance="l2")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (3, 2)])
def test_a_distance_of_another_shape_is_refused(lib: Library, dtype: str, shape: tuple[int, ...]) -> None:
    """[b, 1] would make [b, b] losses, and a mean over the batch would be weighted by every sample's weight."""
    batch, wrong = Batch(lib, 0, (3, 2), dtype), lib.asarray(np.ones(shape), dtype)
    with pytest.raises(ValueError, match=r"^distance must return \[b\] = \(3,\), not"):
        consistency_loss(shrink, identity, *batch.arguments, distance=lambda a, b: wrong)


@given(shape=batch_shapes, seed=seeds, c=constants)
def test_loss_is_the_mean_of_its_samples(lib: Library, dtype: str, shape: tuple[int, ...], seed: int, c: float) -> None:
    batch = Batch(lib, seed, shape, dtype)
    found = consistency_loss(shrink, identity, *batch.arguments, c=c)
    assert_same(found.mean, lib.asarray(to_numpy(found.per_sample).mean(), dtype), rtol=8 * eps(dtype))


@given(shape=batch_shapes, seed=seeds)
def test_a_consistent_function_has_no_loss(lib: Library, dtype: str, shape: tuple[int, ...], seed: int) -> None:
    """All the data at one point: f(x, s) = that point, at every level."""
    point = lib.normal(seed, shape, dtype)
    found = consistency_loss(lambda *_: point, lambda *_: point, *Batch(lib, seed, shape, dtype).arguments, c=0.03)
    assert_same(found.per_sample, lib.asarray(np.zeros(shape[0]), dtype))
    assert_same(found.mean, lib.asarray(0.0, dtype))


@given(event=event_shapes, seed=seeds, factor=log_uniform(0.1, 10.0))
def test_weight_multiplies_its_own_sample(
    lib: Library, dtype: str, event: tuple[int, ...], seed: int, factor: float
) -> None:
    batch = Batch(lib, seed, (3, *event), dtype)
    x, z, low, high, weight = batch.arguments
    factors = np.array([1.0, factor, 1.0])
    scaled = lib.asarray(to_numpy(weight) * factors, dtype)
    before = consistency_loss(shrink, identity, x, z, low, high, weight, c=0.03).per_sample
    after = consistency_loss(shrink, identity, x, z, low, high, scaled, c=0.03).per_sample
    assert_same(after, lib.asarray(to_numpy(before) * factors, dtype), rtol=8 * eps(dtype))


@pytest.mark.parametrize("where", ["x", "z", "weight", "student", "teacher"])
def test_nan_is_never_hidden(lib: Library, dtype: str, where: str) -> None:
    """One NaN in one sample: that sample's loss and the mean are NaN, the other samples' are not."""
    batch = Batch(lib, 0, (3, 2, 2), dtype)
    arguments = dict(zip(("x", "z", "sigma_lo", "sigma_hi", "weight"), batch.arguments, strict=True))
    functions = {"student": shrink, "teacher": identity}
    if where in arguments:
        values = to_numpy(arguments[where])
        values.reshape(3, -1)[1, -1] = np.nan
        arguments[where] = lib.asarray(values, dtype)
    else:
        values = np.ones((3, 2, 2))
        values[1, 1, 0] = np.nan
        functions[where] = lambda *_: lib.asarray(values, dtype)
    found = consistency_loss(**functions, **arguments, c=0.03)
    assert list(np.isnan(to_numpy(found.per_sample))) == [False, True, False]
    assert np.isnan(to_numpy(found.mean))


def test_gradient_reaches_the_student(dtype: str) -> None:
    """And its direction is that of the formula, by finite differences."""
    batch = Batch(TORCH, 0, (4, 3), dtype)

    def loss(theta: torch.Tensor) -> torch.Tensor:
        return consistency_loss(lambda x, s: theta * x, shrink, *batch.arguments, c=0.03).mean

    theta = torch.tensor(0.7, dtype=batch.x.dtype, requires_grad=True)
    loss(theta).backward()
    step = 1e-2
    slope = (loss(theta.detach() + step) - loss(theta.detach() - step)) / (2 * step)
    assert float(theta.grad) == pytest.approx(float(slope), rel=1e-2)


def test_loss_namespace_can_be_given(lib: Library, dtype: str) -> None:
    arguments = Batch(lib, 0, (3, 2), dtype).arguments
    given_, inferred = (consistency_loss(shrink, identity, *arguments, c=0.1, xp=xp) for xp in (lib.xp, None))
    assert_same(given_.per_sample, inferred.per_sample)
    assert_same(given_.mean, inferred.mean)


def test_loss_takes_a_numpy_scalar_c_without_promotion(lib: Library, dtype: str) -> None:
    arguments = Batch(lib, 0, (3, 2), dtype).arguments
    found, expected = (consistency_loss(shrink, identity, *arguments, c=c) for c in (np.float64(0.03), 0.03))
    assert_same(found.per_sample, expected.per_sample)
    assert_same(found.mean, expected.mean)


@pytest.mark.parametrize("name", ["sigma_lo", "sigma_hi", "weight"])
@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 1), (3, 2)])
def test_levels_of_the_wrong_shape_are_named(lib: Library, dtype: str, name: str, shape: tuple[int, ...]) -> None:
    """[1] and [b, 1] would broadcast, and a [b, 1] weight would make [b, b] losses of [b]."""
    arguments = vars(Batch(lib, 0, (3, 2), dtype)) | {name: lib.asarray(np.ones(shape), dtype)}
    del arguments["arguments"]
    with pytest.raises(ValueError, match=rf"^{name} must be \[b\]"):
        consistency_loss(shrink, identity, **arguments, c=0.1)


@pytest.mark.parametrize("name", ["sigma_lo", "sigma_hi", "weight"])
def test_levels_of_the_wrong_dtype_are_named(lib: Library, dtype: str, name: str) -> None:
    """The grid's float64 levels must have been cast: they would promote the whole pass."""
    for wrong in (lib.asarray(np.ones(3), other_float(dtype)), lib.asarray(np.ones(3), "int32"), 1.0, None):
        arguments = vars(Batch(lib, 0, (3, 2), dtype)) | {name: wrong}
        del arguments["arguments"]
        with pytest.raises(TypeError, match=f"^{name} must have the dtype of x"):
            consistency_loss(shrink, identity, **arguments, c=0.1)


def test_bad_data_and_noise_are_named(lib: Library, dtype: str) -> None:
    x, z, *rest = Batch(lib, 0, (3, 2), dtype).arguments
    for shape in ((3, 1), (1, 2), (3,)):
        with pytest.raises(ValueError, match="^z must have the shape of x"):
            consistency_loss(shrink, identity, x, lib.asarray(np.ones(shape), dtype), *rest, c=0.1)
    with pytest.raises(TypeError, match="^z must have the dtype of x"):
        consistency_loss(shrink, identity, x, lib.normal(0, (3, 2), other_float(dtype)), *rest, c=0.1)
    for wrong in (lib.asarray(np.ones((3, 2)), "int32"), 1.0, None):
        with pytest.raises(TypeError, match="^x must be an array"):
            consistency_loss(shrink, identity, wrong, z, *rest, c=0.1)
    scalar = lib.asarray(1.0, dtype)
    with pytest.raises(ValueError, match="^x must be .* not a scalar"):
        consistency_loss(shrink, identity, scalar, scalar, *rest, c=0.1)
    with pytest.raises(ValueError, match="^c must be"):
        consistency_loss(shrink, identity, x, z, *rest, c=0.0)


def test_functions_that_disagree_about_the_shape_are_refused(lib: Library, dtype: str) -> None:
    batch = Batch(lib, 0, (3, 2), dtype)
    with pytest.raises(ValueError, match="shape"):
        consistency_loss(shrink, lambda x, s: s, *batch.arguments, c=0.1)
