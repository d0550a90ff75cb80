from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import NUMPY, Library, assert_same, eps, kind, other_float, seeds, to_numpy
from hypothesis import given
from hypothesis import strategies as st

from ict_core import (
    colorize,
    denoise,
    inpaint,
    interpolate_noise,
    mix_colors,
    mix_patches,
    multistep_sample,
    patch_means,
    repeat_pixels,
    stroke,
    super_resolve,
    to_grey,
)
from ict_core.editing import LUMA, reflection

Array = Any
LEVELS = [80.0, 5.0, 0.5]
# size of a patch, and how many there are
patches = st.tuples(st.integers(1, 4), st.integers(1, 3))


def dream(x: Array, sigma: Array) -> Array:
    """An f whose results leave [-1, 1], and differ from pixel to pixel."""
    return 2.0 * x / (1.0 + sigma[:, None, None, None]) + 0.3


def images(lib: Library, seed: int, shape: tuple[int, ...], dtype: str) -> Array:
    return lib.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), dtype)


def noises(lib: Library, seed: int, shape: tuple[int, ...], dtype: str, steps: int = len(LEVELS)) -> list[Array]:
    return [lib.normal(seed + j, shape, dtype) for j in range(steps)]


def close(actual: Array, expected: np.ndarray, dtype: str, scale: float = 8.0) -> None:
    np.testing.assert_allclose(to_numpy(actual), expected, rtol=0, atol=scale * eps(dtype))


@given(n=st.integers(1, 20), seed=seeds)
def test_a_reflection_is_orthogonal_symmetric_and_points_where_asked(n: int, seed: int) -> None:
    direction = np.random.default_rng(seed).standard_normal(n)
    a = np.array(reflection(direction.tolist()))
    np.testing.assert_allclose(a @ a.T, np.eye(n), atol=1e-13)
    np.testing.assert_allclose(a, a.T, atol=0)
    np.testing.assert_allclose(a[0], direction / np.linalg.norm(direction), atol=1e-13)
    assert reflection([2.0, 0.0, 0.0]) == np.eye(3).tolist()


@given(seed=seeds, b=st.integers(1, 3), h=st.integers(1, 4), w=st.integers(1, 4))
def test_mixing_colours_keeps_lengths_inverts_itself_and_puts_luma_first(
    lib: Library, dtype: str, seed: int, b: int, h: int, w: int
) -> None:
    x = images(lib, seed, (b, 3, h, w), dtype)
    mixed = mix_colors(x)
    assert (kind(mixed), tuple(mixed.shape), mixed.dtype) == (kind(x), tuple(x.shape), x.dtype)
    close(mix_colors(mixed), to_numpy(x), dtype)
    np.testing.assert_allclose((to_numpy(mixed) ** 2).sum(1), (to_numpy(x) ** 2).sum(1), atol=16 * eps(dtype))
    luma = np.einsum("c,bchw->bhw", LUMA, to_numpy(x))
    close(mixed[:, 0, ...], luma / np.linalg.norm(LUMA), dtype)


@given(seed=seeds, sizes=patches, c=st.integers(1, 3))
def test_mixing_patches_keeps_lengths_inverts_itself_and_puts_means_first(
    lib: Library, dtype: str, seed: int, sizes: tuple[int, int], c: int
) -> None:
    size, count = sizes
    x = images(lib, seed, (2, c, size * count, size * (count + 1)), dtype)
    mixed = mix_patches(x, size=size)
    assert (kind(mixed), tuple(mixed.shape), mixed.dtype) == (kind(x), tuple(x.shape), x.dtype)
    close(mix_patches(mixed, size=size), to_numpy(x), dtype, 32)
    np.testing.assert_allclose((to_numpy(mixed) ** 2).sum(), (to_numpy(x) ** 2).sum(), rtol=64 * eps(dtype))
    means = to_numpy(x).reshape(2, c, count, size, count + 1, size).mean(axis=(3, 5))
    close(mixed[:, :, ::size, ::size], size * means, dtype, 32)
    close(patch_means(x, size=size), means, dtype, 32)
    assert_same(patch_means(repeat_pixels(x, size=1), size=1), x)


@given(seed=seeds, c=st.integers(1, 3), share=st.floats(0, 1))
def test_known_pixels_stay_and_the_others_are_made(lib: Library, dtype: str, seed: int, c: int, share: float) -> None:
    y, zs = images(lib, seed, (2, c, 4, 3), dtype), noises(lib, seed, (2, c, 4, 3), dtype)
    known = np.random.default_rng(seed).random((2, c, 4, 3)) < share
    found = inpaint(dream, y, lib.xp.asarray(known), zs, LEVELS)
    assert (kind(found), found.dtype) == (kind(y), y.dtype)
    np.testing.assert_array_equal(to_numpy(found)[known], to_numpy(y)[known])
    assert abs(to_numpy(found)).max() <= 1
    # What is not known of y is not read.
    other = lib.asarray(np.where(known, to_numpy(y), 7.0), dtype)
    assert_same(inpaint(dream, other, lib.xp.asarray(known), zs, LEVELS), found)


@given(seed=seeds)
def test_luma_stays_and_colours_are_made(lib: Library, dtype: str, seed: int) -> None:
    y, zs = images(lib, seed, (2, 3, 3, 4), dtype), noises(lib, seed, (2, 3, 3, 4), dtype)
    found = colorize(dream, y, zs, LEVELS)
    luma = np.einsum("c,bchw->bhw", LUMA, to_numpy(y))
    np.testing.assert_allclose(np.einsum("c,bchw->bhw", LUMA, to_numpy(found)), luma, rtol=0, atol=16 * eps(dtype))
    assert abs(to_numpy(found)).max() <= 1
    close(colorize(dream, to_grey(y), zs, LEVELS), to_numpy(found), dtype, 2000)
    assert abs(to_numpy(found) - to_numpy(to_grey(y))).max() > 0.01


@given(seed=seeds, sizes=patches, c=st.integers(1, 3))
def test_means_of_patches_stay_and_details_are_made(
    lib: Library, dtype: str, seed: int, sizes: tuple[int, int], c: int
) -> None:
    size, count = sizes
    y = images(lib, seed, (2, c, count, count), dtype)
    zs = noises(lib, seed, (2, c, size * count, size * count), dtype)
    found = super_resolve(dream, y, zs, LEVELS, size=size)
    assert tuple(found.shape) == (2, c, size * count, size * count)
    close(patch_means(found, size=size), to_numpy(y), dtype, 32)
    assert abs(to_numpy(found)).max() <= 1
    if size > 1:
        assert abs(to_numpy(found) - to_numpy(repeat_pixels(y, size=size))).max() > 1e-3


def saturated(lib: Library, dtype: str, channels: int) -> Array:
    """Images at the very ends of the range, where nothing can be added."""
    values = np.where(np.random.default_rng(0).random((2, channels, 4, 4)) < 0.5, -1.0, 1.0)
    values[0] = 1.0
    return lib.asarray(values, dtype)


def test_black_and_white_stay_what_they_are(lib: Library, dtype: str) -> None:
    y, zs = saturated(lib, dtype, 3), noises(lib, 0, (2, 3, 4, 4), dtype)
    found = to_numpy(colorize(dream, y, zs, LEVELS))
    np.testing.assert_allclose(found[0], 1.0, atol=16 * eps(dtype))
    zs = noises(lib, 0, (2, 3, 8, 8), dtype)
    found = super_resolve(dream, y, zs, LEVELS, size=2)
    close(found, to_numpy(repeat_pixels(y, size=2)), dtype, 32)


@given(seed=seeds, shape=st.sampled_from([(1, 1, 2, 2), (2, 3, 4, 4)]))
def test_with_nothing_known_inpainting_is_sampling(lib: Library, dtype: str, seed: int, shape: tuple[int, ...]) -> None:
    zs = noises(lib, seed, shape, dtype)
    nothing = lib.xp.asarray(np.zeros(shape, dtype=bool))
    found = inpaint(dream, images(lib, seed, shape, dtype), nothing, zs, LEVELS)
    close(found, to_numpy(multistep_sample(dream, zs, LEVELS, clip=True)), dtype, 4)


def test_each_level_is_noised_as_in_sampling_and_one_evaluation(lib: Library, dtype: str) -> None:
    """x + t_1 z_1 at first, then x + sqrt(t^2 - smin^2) z; what is known is put back in between."""
    y, zs = images(lib, 0, (1, 1, 2, 2), dtype), noises(lib, 1, (1, 1, 2, 2), dtype)
    known, calls = np.array([[[[True, False], [False, False]]]]), []

    def f(x: Array, sigma: Array) -> Array:
        calls.append((to_numpy(x), to_numpy(sigma)))
        return 0.125 * x

    inpaint(f, y, lib.xp.asarray(known), zs, LEVELS, sigma_min=0.4)
    x = np.where(known, to_numpy(y), 0.0)
    for j, level in enumerate(LEVELS):
        x = x + (level if j == 0 else np.sqrt(level**2 - 0.16)) * to_numpy(zs[j])
        np.testing.assert_allclose(calls[j][0], x, rtol=16 * eps(dtype))
        np.testing.assert_allclose(calls[j][1], [level], rtol=eps(dtype))
        x = np.where(known, to_numpy(y), 0.125 * x)
    assert len(calls) == len(LEVELS)


def test_an_exact_consistency_function_repairs_a_point_mass(lib: Library, dtype: str) -> None:
    """Data are one image: f knows it, and every edit returns it."""
    xi = images(lib, 3, (1, 3, 4, 4), dtype)
    target = lib.xp.concat([xi, xi])
    smin = 0.002

    def f(x: Array, sigma: Array) -> Array:
        weight = lib.xp.reshape(smin / sigma, (-1, 1, 1, 1))
        return target + weight * (x - target)

    levels, zs = [80.0, 1.0, smin], noises(lib, 0, (2, 3, 4, 4), dtype)
    tolerance = {"rtol": 0, "atol": 0.05}
    known = lib.xp.asarray(np.random.default_rng(0).random((2, 3, 4, 4)) < 0.5)
    found = [
        inpaint(f, target, known, zs, levels),
        colorize(f, to_grey(target), zs, levels),
        super_resolve(f, patch_means(target, size=2), zs, levels, size=2),
        stroke(f, target, zs, levels),
        denoise(f, target + 0.5 * zs[0], lib.asarray([0.5, 0.5], dtype)),
    ]
    for image in found:
        np.testing.assert_allclose(to_numpy(image), to_numpy(target), **tolerance)


@given(seed=seeds, fraction=st.floats(0, 1))
def test_noise_between_noises_is_on_the_great_circle(lib: Library, dtype: str, seed: int, fraction: float) -> None:
    a, b = lib.normal(seed, (3, 4), dtype), lib.normal(seed + 1, (3, 4), dtype)
    found = interpolate_noise(a, b, [0, fraction, 1])
    assert (kind(found), tuple(found.shape), found.dtype) == (kind(a), (3, 3, 4), a.dtype)
    close(found[0, ...], to_numpy(a), dtype, 40)
    close(found[2, ...], to_numpy(b), dtype, 40)
    # Of unit vectors, the result is one, at the asked fraction of the angle.
    ua, ub = (lib.asarray(v / np.linalg.norm(v), dtype) for v in (to_numpy(a), to_numpy(b)))
    middle = to_numpy(interpolate_noise(ua, ub, [fraction]))[0]
    assert np.linalg.norm(middle) == pytest.approx(1.0, abs=64 * eps(dtype))
    angle = np.arccos(np.clip(np.sum(to_numpy(ua) * to_numpy(ub)), -1, 1))
    cosine = np.sum(middle * to_numpy(ua))
    assert cosine == pytest.approx(np.cos(fraction * angle), abs=64 * eps(dtype))


GOOD = np.zeros((1, 3, 4, 4))
MASK = np.ones((1, 3, 4, 4), dtype=bool)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: mix_colors(np.zeros((1, 1, 2, 2))), ValueError, "x must have 3 channels, not 1"),
        (lambda: mix_colors(np.zeros((3, 2, 2))), ValueError, r"x must be \[b, c, h, w\]"),
        (lambda: mix_colors(np.zeros((1, 3, 2, 2), int)), TypeError, "x must be an array of a real floating dtype"),
        (lambda: mix_patches(GOOD, size=3), ValueError, "size must divide the height and width of x, 4 and 4, not 3"),
        (lambda: patch_means(GOOD, size=3), ValueError, "size must divide"),
        (lambda: mix_patches(GOOD, size=0), ValueError, "size must be >= 1"),
        (lambda: inpaint(dream, GOOD, GOOD, [GOOD], [1.0]), TypeError, "known must be an array of bool"),
        (lambda: inpaint(dream, GOOD, MASK[..., :2], [GOOD], [1.0]), ValueError, "known must have the shape of y"),
        (lambda: inpaint(dream, GOOD, MASK, [GOOD], [1.0, 0.5]), ValueError, "one array a level: 2, not 1"),
        (lambda: inpaint(dream, GOOD, MASK, [GOOD[..., :2]], [1.0]), ValueError, r"noises\[0\] must have the shape"),
        (lambda: inpaint(dream, GOOD, MASK, [GOOD] * 2, [0.5, 1.0]), ValueError, "sigmas must fall"),
        (lambda: colorize(dream, GOOD[:, :1], [GOOD], [1.0]), ValueError, "y must have 3 channels, not 1"),
        (lambda: super_resolve(dream, GOOD, [GOOD], [1.0], size=2), ValueError, r"noises\[0\] must have the shape"),
        (lambda: denoise(dream, GOOD, np.ones(2)), ValueError, r"sigma must be \[b\]"),
        (lambda: interpolate_noise(GOOD, GOOD[..., :2], [0.5]), ValueError, "b must have the shape of a"),
        (lambda: interpolate_noise(GOOD, GOOD, ["x"]), TypeError, "fractions must be a number"),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], object], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call()


def test_nothing_is_promoted(dtype: str) -> None:
    y, z = images(NUMPY, 0, (1, 3, 4, 4), dtype), NUMPY.normal(0, (1, 3, 4, 4), other_float(dtype))
    with pytest.raises(TypeError, match=r"noises\[0\] must have the dtype of the images"):
        stroke(dream, y, [z], [1.0])
