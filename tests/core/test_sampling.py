from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from helpers import (
    NUMPY,
    Library,
    assert_same,
    batch_shapes,
    eps,
    log_uniform,
    other_float,
    seeds,
    sigma_ranges,
    to_numpy,
)
from hypothesis import given
from hypothesis import strategies as st

from ict_core import karras_sigmas, multistep_sample
from ict_core.sampling import check_falling_sigmas

Array = Any


class Recorder:
    """f that keeps its arguments; contracts, so that what it is fed stays of order one."""

    def __init__(self) -> None:
        self.calls: list[tuple[Array, Array]] = []

    def __call__(self, x: Array, sigma: Array) -> Array:
        self.calls.append((x, sigma))
        return 0.125 * x


@st.composite
def falling_levels(draw: st.DrawFn) -> tuple[float, list[float]]:
    """sigma_min, and 1 to 5 falling levels above it; the last one may be sigma_min."""
    low, high = draw(sigma_ranges)
    inner = draw(st.lists(st.floats(0.05, 0.95), max_size=3, unique_by=lambda u: round(u, 2)))
    found = [high, *[low * (high / low) ** u for u in sorted(inner, reverse=True)]]
    return low, found + draw(st.sampled_from([[], [low]]))


def stack(lib: Library, noises: list[Array]) -> Array:
    return lib.xp.stack(noises, axis=0)


@given(shape=batch_shapes, seed=seeds, top=log_uniform(0.01, 300.0))
def test_one_step_is_f_of_the_scaled_noise(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, top: float
) -> None:
    z = lib.normal(seed, shape, dtype)
    f = Recorder()
    found = multistep_sample(f, [z], [top], clip=False)
    ((x, sigma),) = f.calls
    assert_same(x, lib.asarray(top * to_numpy(z), dtype), rtol=2 * eps(dtype))
    assert_same(sigma, lib.asarray(np.full(shape[0], top), dtype))
    assert_same(found, 0.125 * x)


@given(shape=batch_shapes, seed=seeds, ladder=falling_levels())
def test_many_steps_match_the_algorithm(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, ladder: tuple[float, list[float]]
) -> None:
    """Consistency Models, algorithm 1, as a NumPy loop in float64; f gets [b] levels in the noise's dtype."""
    sigma_min, sigmas = ladder
    noises = [lib.normal(seed + j, shape, dtype) for j in range(len(sigmas))]
    f = Recorder()
    found = multistep_sample(f, noises, sigmas, sigma_min=sigma_min, clip=False)

    x = sigmas[0] * to_numpy(noises[0])
    fed = [x]
    for t, z in zip(sigmas[1:], noises[1:], strict=True):
        fed.append(0.125 * fed[-1] + np.sqrt(t**2 - sigma_min**2) * to_numpy(z))
    scale = max(np.abs(x).max() for x in fed)
    assert len(f.calls) == len(sigmas)
    for (x, sigma), expected, level in zip(f.calls, fed, sigmas, strict=True):
        assert_same(sigma, lib.asarray(np.full(shape[0], level), dtype))
        assert_same(x, lib.asarray(expected, dtype), atol=8 * eps(dtype) * scale)
    assert_same(found, lib.asarray(0.125 * fed[-1], dtype), atol=8 * eps(dtype) * scale)


@given(shape=batch_shapes, seed=seeds, ladder=falling_levels())
def test_noises_may_be_a_list_a_tuple_or_one_stacked_array(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, ladder: tuple[float, list[float]]
) -> None:
    sigma_min, sigmas = ladder
    noises = [lib.normal(seed + j, shape, dtype) for j in range(len(sigmas))]
    expected = multistep_sample(Recorder(), noises, sigmas, sigma_min=sigma_min)
    assert_same(multistep_sample(Recorder(), tuple(noises), tuple(sigmas), sigma_min=sigma_min), expected)
    assert_same(multistep_sample(Recorder(), stack(lib, noises), sigmas, sigma_min=sigma_min), expected)


@given(shape=batch_shapes, seed=seeds, ends=sigma_ranges)
def test_no_noise_is_added_at_sigma_min(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, ends: tuple[float, float]
) -> None:
    """Exactly none: what f is fed there is bit for bit what it returned."""
    low, high = ends
    noises = [lib.normal(seed + j, shape, dtype) for j in range(2)]
    f = Recorder()
    multistep_sample(f, noises, [high, low], sigma_min=low)
    assert_same(f.calls[1][0], 0.125 * f.calls[0][0])


@given(shape=batch_shapes, seed=seeds)
def test_result_is_clipped_only_where_asked(lib: Library, dtype: str, shape: tuple[int, ...], seed: int) -> None:
    """At the end only: f is fed what it returned, unclipped."""
    noises = [lib.normal(seed + j, shape, dtype) for j in range(2)]
    f, g = Recorder(), Recorder()
    free = multistep_sample(f, noises, [80.0, 1.0])
    clipped = multistep_sample(g, noises, [80.0, 1.0], clip=True)
    assert_same(clipped, lib.asarray(np.clip(to_numpy(free), -1.0, 1.0), dtype))
    for (x, _), (y, _) in zip(f.calls, g.calls, strict=True):
        assert_same(x, y)


@given(shape=batch_shapes, seed=seeds)
def test_each_step_may_be_clipped(lib: Library, dtype: str, shape: tuple[int, ...], seed: int) -> None:
    """As released samplers do: f is fed the clipped result and new noise; the last result is that of `clip`."""
    z = [lib.normal(seed + j, shape, dtype) for j in range(2)]
    f = Recorder()
    found = multistep_sample(f, z, [80.0, 1.0], clip=True, clip_steps=True)
    (x, _), (y, _) = f.calls
    first = lib.asarray(np.clip(to_numpy(0.125 * x), -1.0, 1.0), dtype)
    assert_same(y, first + math.sqrt(1.0 - 0.002**2) * z[1])
    assert_same(found, lib.asarray(np.clip(to_numpy(0.125 * y), -1.0, 1.0), dtype))
    raw = multistep_sample(Recorder(), z, [80.0, 1.0], clip_steps=True)
    assert_same(raw, 0.125 * y)


def test_clipping_changes_what_is_outside_and_nothing_else(lib: Library, dtype: str) -> None:
    values = lib.asarray([[-1.5, -1.0, -0.3, 0.0, 0.3, 1.0, 1.5]], dtype)
    z = lib.asarray(np.zeros((1, 7)), dtype)
    assert_same(multistep_sample(lambda *_: values, [z], [80.0]), values)
    expected = lib.asarray([[-1.0, -1.0, -0.3, 0.0, 0.3, 1.0, 1.0]], dtype)
    assert_same(multistep_sample(lambda *_: values, [z], [80.0], clip=True), expected)


def test_clipping_does_not_hide_nan(lib: Library, dtype: str) -> None:
    values = lib.asarray([[np.nan, 0.5, 3.0]], dtype)
    found = multistep_sample(lambda *_: values, [lib.asarray(np.zeros((1, 3)), dtype)], [80.0], clip=True)
    assert_same(found, lib.asarray([[np.nan, 0.5, 1.0]], dtype))


def test_an_empty_batch_stays_empty(lib: Library, dtype: str) -> None:
    z = lib.asarray(np.zeros((0, 3, 2)), dtype)
    assert_same(multistep_sample(Recorder(), [z, z], [80.0, 1.0]), z)


# --- exact consistency functions


@given(shape=batch_shapes, seed=seeds, ladder=falling_levels())
def test_a_point_mass_is_recovered(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, ladder: tuple[float, list[float]]
) -> None:
    """Data delta(xi): trajectories are xi + sigma u, so f(x, s) = xi + (smin / s)(x - xi)."""
    sigma_min, sigmas = ladder
    xi = 0.3

    def f(x: Array, sigma: Array) -> Array:
        shrink = lib.xp.reshape(sigma_min / sigma, (-1, *[1] * (x.ndim - 1)))
        return xi + shrink * (x - xi)

    noises = [lib.normal(seed + j, shape, dtype) for j in range(len(sigmas))]
    found = to_numpy(multistep_sample(f, noises, sigmas, sigma_min=sigma_min, clip=False))
    # what is left is noise of size sigma_min, and of xi / sigma_max from starting off centre
    left = np.abs(found - xi) / (sigma_min * (1 + xi / sigmas[0]) + 4 * eps(dtype))
    assert left.max() < 2 * max(np.abs(to_numpy(z)).max() for z in noises) + 1


@pytest.mark.parametrize("sigmas", [[80.0], [80.0, 0.8], [80.0, 5.0, 0.9, 0.6], [80.0, 0.5]], ids=str)
@pytest.mark.parametrize("sigma_min", [0.002, 0.5])
def test_a_gaussian_is_recovered(lib: Library, sigmas: list[float], sigma_min: float) -> None:
    """Data N(0, sd^2): f(x, s) = x sqrt((sd^2 + smin^2) / (sd^2 + s^2)) gives samples of variance sd^2 + smin^2.

    At sigma_min = 0.5 adding noise of t instead of sqrt(t^2 - smin^2) makes it up to 1.4 times too wide.
    """
    sd = 0.5

    def f(x: Array, sigma: Array) -> Array:
        return x * lib.xp.reshape(lib.xp.sqrt((sd**2 + sigma_min**2) / (sd**2 + sigma**2)), (-1, 1))

    noises = [lib.normal(j, (4, 50_000), "float64") for j in range(len(sigmas))]
    found = multistep_sample(f, noises, sigmas, sigma_min=sigma_min, clip=False)
    # 0.7% is four standard errors of 200,000 values
    assert np.std(to_numpy(found)) == pytest.approx(math.sqrt(sd**2 + sigma_min**2), rel=0.007)


# --- arguments


def test_levels_may_come_from_a_schedule_without_promotion(lib: Library, dtype: str) -> None:
    """karras_sigmas gives NumPy float64, whose scalars promote float32 arrays, unlike Python's floats."""
    sigmas = karras_sigmas(11)[::-4]
    noises = [lib.normal(j, (2, 3), dtype) for j in range(len(sigmas))]
    expected = multistep_sample(Recorder(), noises, [float(s) for s in sigmas])
    f = Recorder()
    assert_same(multistep_sample(f, noises, sigmas), expected)
    for x, sigma in f.calls:
        assert x.dtype == sigma.dtype == noises[0].dtype


def test_namespace_can_be_given(lib: Library, dtype: str) -> None:
    noises = [lib.normal(j, (2, 3), dtype) for j in range(2)]
    expected = multistep_sample(Recorder(), noises, [80.0, 1.0])
    assert_same(multistep_sample(Recorder(), noises, [80.0, 1.0], xp=lib.xp), expected)


BAD_LEVELS = {
    "none": ([], "^sigmas must hold at least one level"),
    "rising": ([1.0, 80.0], "^sigmas must fall"),
    "equal": ([80.0, 80.0], "^sigmas must fall"),
    "rising later": ([80.0, 1.0, 2.0], "^sigmas must fall"),
    "below sigma_min": ([80.0, 0.001], "^sigmas must lie in .* 0.001 does not"),
    "zero": ([80.0, 0.0], "^sigmas must lie in"),
    "negative": ([80.0, -1.0], "^sigmas must lie in"),
    "first below sigma_min": ([0.001], "^sigmas must lie in"),
    "nan": ([80.0, np.nan], "^sigmas must be finite"),
    "infinite": ([np.inf, 1.0], "^sigmas must be finite"),
}


@pytest.mark.parametrize(("sigmas", "message"), BAD_LEVELS.values(), ids=BAD_LEVELS)
def test_bad_levels_are_named(lib: Library, sigmas: list[float], message: str) -> None:
    noises = [lib.normal(j, (2, 3), "float32") for j in range(len(sigmas))]
    with pytest.raises(ValueError, match=message):
        multistep_sample(Recorder(), noises, sigmas)
    with pytest.raises(ValueError, match=message):
        check_falling_sigmas(sigmas)


@pytest.mark.parametrize("level", [None, "80", True, np.ones(1)], ids=repr)
def test_levels_that_are_no_numbers_are_named(level: object) -> None:
    with pytest.raises(TypeError, match="^sigmas must be a number"):
        multistep_sample(Recorder(), [np.ones((2, 3))], [level])


def test_levels_above_a_given_sigma_max_are_refused() -> None:
    check_falling_sigmas([80.0, 0.002], sigma_max=80.0)
    with pytest.raises(ValueError, match=r"^sigmas must lie in \[0.002, 80\]; 81 does not"):
        check_falling_sigmas([81.0, 1.0], sigma_max=80.0)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
def test_a_bad_sigma_min_is_named(value: float) -> None:
    with pytest.raises(ValueError, match="^sigma_min must be"):
        multistep_sample(Recorder(), [np.ones((2, 3))], [80.0], sigma_min=value)


@pytest.mark.parametrize(("count", "sigmas"), [(0, [80.0]), (2, [80.0]), (1, [80.0, 1.0]), (3, [80.0, 1.0])])
@pytest.mark.parametrize("stacked", [False, True])
def test_one_noise_a_level(lib: Library, count: int, sigmas: list[float], stacked: bool) -> None:
    noises = [lib.normal(j, (2, 3), "float32") for j in range(count)]
    if stacked:
        noises = stack(lib, noises) if count else lib.asarray(np.zeros((0, 2, 3)), "float32")
    with pytest.raises(ValueError, match=f"^noises must hold one array a level: {len(sigmas)}, not {count}"):
        multistep_sample(Recorder(), noises, sigmas)


def test_noises_of_the_wrong_type_are_named(lib: Library) -> None:
    for wrong in (lib.asarray(np.ones((2, 3)), "int32"), 1.0, None, [[1.0]]):
        with pytest.raises(TypeError, match="^noises must be an array"):
            multistep_sample(Recorder(), [wrong], [80.0])
    with pytest.raises(ValueError, match="^noises must be .* not scalars"):
        multistep_sample(Recorder(), [lib.asarray(1.0, "float32")], [80.0])


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3,), (1,), (4, 2, 3)])
def test_later_noises_are_not_broadcast(lib: Library, dtype: str, shape: tuple[int, ...]) -> None:
    """[1, *event] would give every sample of the batch the same noise."""
    noises = [lib.normal(0, (2, 3), dtype), lib.normal(1, shape, dtype)]
    with pytest.raises(ValueError, match="^noises"):
        multistep_sample(Recorder(), noises, [80.0, 1.0])


def test_later_noises_do_not_promote(lib: Library, dtype: str) -> None:
    noises = [lib.normal(0, (2, 3), dtype), lib.normal(1, (2, 3), other_float(dtype))]
    with pytest.raises(TypeError, match="^noises"):
        multistep_sample(Recorder(), noises, [80.0, 1.0])


def test_noises_are_left_alone() -> None:
    noises = np.random.default_rng(0).standard_normal((2, 3, 4))
    before = noises.copy()
    multistep_sample(Recorder(), noises, [80.0, 1.0])
    assert_same(noises, before)
    multistep_sample(Recorder(), NUMPY.asarray(noises, "float64"), [80.0, 1.0])
