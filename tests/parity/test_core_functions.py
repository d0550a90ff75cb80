"""Each array function of `ict_core` computes the same in every library, compiled or not, as NumPy in float64 does.

What the functions of numbers return (`karras_sigmas`, `discretization_steps`, `make_grid`, ...) is NumPy or Python
whatever the backend, and tests/core checks it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import array_api_compat.torch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import JAX, NUMPY, STRICT, TORCH, Library, assert_same, eps, log_uniform, rhos, seeds, sigma_datas
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_profile import COMPILED

from ict_core import (
    Gap,
    colorize,
    consistency_loss,
    consistency_output,
    denoise,
    guided,
    heun_sample,
    heun_sigmas,
    inpaint,
    interpolate_noise,
    interval_probabilities,
    karras_sigmas,
    l1,
    loss_weight,
    mix_colors,
    mix_patches,
    multistep_sample,
    pseudo_huber,
    pseudo_huber_elementwise,
    repeat_pixels,
    scalings,
    squared_l2,
    stroke,
    super_resolve,
    teacher_level,
)
from ict_core.loss import DISTANCES, WEIGHTINGS

Array = Any
EVERY_LIBRARY = (NUMPY, STRICT, TORCH, JAX)


class Case(NamedTuple):
    """A call of a core function.

    Attributes:
        function: of (xp, *arrays), returning a list of arrays.
        arrays: its arguments, in float64.
        scales: the size of the numbers that each result is the difference or the product of: what its rounding
            is relative to.
    """

    function: Callable[..., list[Array]]
    arrays: list[np.ndarray]
    scales: list[float]


# Each number of axes, with one and several rows. No more, since JAX compiles each operation anew for a shape.
shapes = st.sampled_from([(3,), (1, 2), (2, 3), (2, 1, 3), (1, 2, 3, 2), (3, 3, 1, 2)])
sigma_mins = log_uniform(1e-3, 0.05)


def rising_levels(rng: np.random.Generator, batch: int, sigma_min: float) -> tuple[np.ndarray, np.ndarray]:
    """[b] lower and upper levels, at least 10% apart."""
    low = sigma_min * (40.0 / sigma_min) ** rng.random(batch)
    return low, low * (1.1 + rng.random(batch))


def network(xp: Any) -> Callable[..., Array]:
    """A smooth function of all that a network is given."""

    def call(x_in: Array, c_noise: Array, labels: Array | None) -> Array:
        weight = c_noise if labels is None else c_noise + labels
        return x_in / (1.0 + x_in * x_in) - xp.reshape(weight, (-1, *[1] * (x_in.ndim - 1)))

    return call


@st.composite
def scalings_case(draw: st.DrawFn) -> Case:
    rng, sd, smin = np.random.default_rng(draw(seeds)), draw(sigma_datas), draw(sigma_mins)
    sigma = np.asarray(smin * (80.0 / smin) ** rng.random(draw(shapes)[1:]))
    return Case(lambda xp, s: list(scalings(s, sigma_data=sd, sigma_min=smin, xp=xp)), [sigma], [1, 1, 1 / sd, 1])


@st.composite
def output_case(draw: st.DrawFn) -> Case:
    rng, sd, smin, shape = np.random.default_rng(draw(seeds)), draw(sigma_datas), draw(sigma_mins), draw(shapes)
    sigma, _ = rising_levels(rng, shape[0], smin)
    x = rng.standard_normal(shape) * np.sqrt(sd**2 + sigma.reshape(-1, *[1] * (len(shape) - 1)) ** 2)
    labels = [rng.random(shape[0])] if draw(st.booleans()) else []

    def call(xp: Any, x: Array, sigma: Array, labels: Array | None = None) -> list[Array]:
        return [consistency_output(network(xp), x, sigma, labels, sigma_data=sd, sigma_min=smin, xp=xp)]

    return Case(call, [x, sigma, *labels], [4 + 4 * sd])


@st.composite
def distance_case(draw: st.DrawFn, name: str) -> Case:
    rng, shape, c = np.random.default_rng(draw(seeds)), draw(shapes), draw(log_uniform(1e-3, 10.0))
    scale, dim = draw(log_uniform(1e-3, 1e2)), math.prod(shape[1:])
    a, b = scale * rng.standard_normal((2, *shape))
    size = {"pseudo_huber": scale * dim**0.5, "l2": scale**2 * dim}.get(name, scale * dim)
    return Case(lambda xp, a, b: [DISTANCES[name](c)(a, b, xp=xp)], [a, b], [size])


@st.composite
def weight_case(draw: st.DrawFn) -> Case:
    low, high = rising_levels(np.random.default_rng(draw(seeds)), draw(shapes)[0], draw(sigma_mins))
    weighting, sigma_data = draw(st.sampled_from(sorted(WEIGHTINGS))), draw(sigma_datas)
    size = float((high / (high - low) ** 2).max() if weighting == "inverse_gap" else 0.0)

    def call(xp: Any, lo: Array, hi: Array) -> list[Array]:
        return [loss_weight(lo, hi, weighting=weighting, sigma_data=sigma_data, xp=xp)]

    return Case(call, [low, high], [size])


@st.composite
def loss_case(draw: st.DrawFn) -> Case:
    rng, shape, c = np.random.default_rng(draw(seeds)), draw(shapes), draw(log_uniform(1e-3, 1.0))
    x, z = rng.uniform(-1, 1, shape), rng.standard_normal(shape)
    low, high = rising_levels(rng, shape[0], 0.002)
    weight = 1 / (high - low)

    def call(xp: Any, *arrays: Array) -> list[Array]:
        f = partial(consistency_output, network(xp), xp=xp)
        return list(consistency_loss(f, f, *arrays, c=c, xp=xp))

    scale = 8 * float(weight.max()) * math.prod(shape[1:]) ** 0.5
    return Case(call, [x, z, low, high, weight], [scale, scale])


@st.composite
def sampling_case(draw: st.DrawFn) -> Case:
    rng, shape, steps = np.random.default_rng(draw(seeds)), draw(shapes), draw(st.integers(1, 4))
    levels = [80.0, *sorted((0.002 * (39_000 * rng.random(steps - 1) + 1)).tolist(), reverse=True)]
    clip = draw(st.booleans())

    def call(xp: Any, noises: Array) -> list[Array]:
        f = partial(consistency_output, network(xp), xp=xp)
        return [multistep_sample(f, noises, levels, clip=clip, xp=xp)]

    return Case(call, [rng.standard_normal((steps, *shape))], [20.0])


@st.composite
def teacher_case(draw: st.DrawFn) -> Case:
    """The teacher's level relative to the student's."""
    rng, share, smin = np.random.default_rng(draw(seeds)), draw(log_uniform(1e-3, 1.0)), draw(sigma_mins)
    k, b = draw(st.floats(0, 20)), draw(log_uniform(0.1, 10.0))
    sigma = smin * 1.01 + np.exp(-1.1 + 2.0 * rng.standard_normal(draw(shapes)))

    def call(xp: Any, sigma: Array) -> list[Array]:
        return [teacher_level(sigma, share, k=k, b=b, sigma_min=smin, xp=xp) / sigma]

    return Case(call, [sigma], [1 + k])


@st.composite
def gap_case(draw: st.DrawFn) -> Case:
    """Levels and weights, where the weight and the upper level give the gap relative to it."""
    rng, weighting = np.random.default_rng(draw(seeds)), draw(st.sampled_from(sorted(WEIGHTINGS)))
    gap = Gap(share=draw(log_uniform(1e-3, 1.0)), sigma_min=draw(sigma_mins), weighting=weighting)
    normals = rng.standard_normal(draw(shapes)[0])

    def call(xp: Any, normals: Array) -> list[Array]:
        low, high, weight = gap.levels(normals, xp=xp)
        return [low / high, high, weight * high]

    low, high, _ = gap.levels(normals)
    return Case(call, [normals], [10, 0, float((high / (high - low)).max() ** 2)])


@st.composite
def heun_case(draw: st.DrawFn) -> Case:
    rng, shape, end = np.random.default_rng(draw(seeds)), draw(shapes), draw(st.sampled_from([0.0, 0.002]))
    levels, clip = heun_sigmas(draw(st.integers(1, 5)), sigma_min=draw(log_uniform(0.003, 0.1))), draw(st.booleans())

    def call(xp: Any, noise: Array) -> list[Array]:
        f = partial(consistency_output, network(xp), xp=xp)
        return [heun_sample(f, noise, levels, sigma_end=end, clip=clip, xp=xp)]

    return Case(call, [rng.standard_normal(shape)], [100.0])


@st.composite
def guided_case(draw: st.DrawFn) -> Case:
    rng, shape, scale = np.random.default_rng(draw(seeds)), draw(shapes), draw(st.floats(0, 5))
    sigma, _ = rising_levels(rng, shape[0], 0.002)

    def call(xp: Any, x: Array, sigma: Array, labels: Array) -> list[Array]:
        f, f_null = (partial(consistency_output, network(xp), condition=given, xp=xp) for given in (labels, None))
        return [guided(f, f_null, scale)(x, sigma)]

    return Case(call, [rng.standard_normal(shape), sigma, rng.random(shape[0])], [20 * (1 + scale)])


@st.composite
def edit_case(draw: st.DrawFn, function: Callable[..., Array]) -> Case:
    """Images, noise of two levels, and where the images are known."""
    rng, b, c, size = np.random.default_rng(draw(seeds)), draw(st.integers(1, 2)), 3, 2
    y, levels = rng.uniform(-1, 1, (b, c, 2, 3)), [80.0, 0.3]
    larger = size if function is super_resolve else 1
    noises, share = rng.standard_normal((2, b, c, 2 * larger, 3 * larger)), rng.uniform(-1, 1, y.shape)

    def call(xp: Any, y: Array, noises: Array, share: Array) -> list[Array]:
        f = partial(consistency_output, network(xp), xp=xp)
        if function is mix_colors:
            return [mix_colors(y, xp=xp)]
        if function is mix_patches:
            return [mix_patches(repeat_pixels(y, size=size, xp=xp), size=size, xp=xp)]
        if function is denoise:
            return [denoise(f, y + noises[0, ...], xp.ones_like(y[:, 0, 0, 0]), xp=xp)]
        if function is interpolate_noise:
            return [interpolate_noise(noises[0, ...], noises[1, ...], [0.0, 0.3], xp=xp)]
        known = (share > 0,) if function is inpaint else ()
        sizes = {"size": size} if function is super_resolve else {}
        return [function(f, y, *known, noises, levels, xp=xp, **sizes)]

    return Case(call, [y, noises, share], [20.0])


EDITS = (inpaint, colorize, super_resolve, stroke, denoise, interpolate_noise, mix_colors, mix_patches)
EDIT_CASES = {function: edit_case(function) for function in EDITS}
CASES = {
    scalings: scalings_case(),
    consistency_output: output_case(),
    pseudo_huber: distance_case("pseudo_huber"),
    squared_l2: distance_case("l2"),
    l1: distance_case("l1"),
    pseudo_huber_elementwise: distance_case("pseudo_huber_elementwise"),
    loss_weight: weight_case(),
    consistency_loss: loss_case(),
    multistep_sample: sampling_case(),
    teacher_level: teacher_case(),
    Gap: gap_case(),
    heun_sample: heun_case(),
    guided: guided_case(),
}
functions = pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
dtypes = st.sampled_from(["float32", "float64"])


def reference(case: Case, dtype: str) -> list[np.ndarray]:
    """The results in float64 for the arguments as rounded to `dtype`."""
    return case.function(NUMPY.xp, *(a.astype(dtype).astype(np.float64) for a in case.arrays))


def assert_agrees(
    lib: Library, dtype: str, case: Case, actual: Sequence[Array], expected: Sequence[np.ndarray]
) -> None:
    """Kind, shape, dtype and values, to some roundings of the numbers that went in."""
    assert len(actual) == len(expected), f"count: {len(actual)}, expected {len(expected)}"
    for ours, theirs, scale in zip(actual, expected, case.scales, strict=True):
        assert_same(ours, lib.asarray(theirs, dtype), rtol=64 * eps(dtype), atol=32 * scale * eps(dtype))


@functions
@given(data=st.data(), dtype=dtypes)
def test_every_library_agrees(function: Callable[..., Any], data: st.DataObject, dtype: str) -> None:
    check_every_library(data.draw(CASES[function]), dtype)


def check_every_library(case: Case, dtype: str) -> None:
    expected = reference(case, dtype)
    with jax.enable_x64(dtype == "float64"):
        for lib in EVERY_LIBRARY:
            arrays = [lib.asarray(a, dtype) for a in case.arrays]
            assert_agrees(lib, dtype, case, case.function(lib.xp, *arrays), expected)


@functions
@settings(COMPILED)
@given(data=st.data(), dtype=dtypes)
def test_jit_and_vmap_agree(function: Callable[..., Any], data: st.DataObject, dtype: str) -> None:
    check_jit_and_vmap(data.draw(CASES[function]), dtype)


def check_jit_and_vmap(case: Case, dtype: str) -> None:
    """Over a new first axis of every argument: two calls in one."""
    with jax.enable_x64(dtype == "float64"):
        twice = [jnp.stack([JAX.asarray(a, dtype)] * 2) for a in case.arrays]
        found = jax.jit(jax.vmap(partial(case.function, jnp)))(*twice)
        for row in (0, 1):
            assert_agrees(JAX, dtype, case, [result[row] for result in found], reference(case, dtype))


@functions
@settings(COMPILED)
@given(data=st.data(), dtype=dtypes)
def test_torch_compile_agrees_without_a_break(function: Callable[..., Any], data: st.DataObject, dtype: str) -> None:
    check_torch_compile(data.draw(CASES[function]), dtype)


def check_torch_compile(case: Case, dtype: str) -> None:
    """One graph each, as it is traced: what generates code from it is torch's own affair."""
    torch.compiler.reset()
    compiled = torch.compile(partial(case.function, array_api_compat.torch), fullgraph=True, backend="eager")
    arrays = [TORCH.asarray(a, dtype) for a in case.arrays]
    assert_agrees(TORCH, dtype, case, compiled(*arrays), reference(case, dtype))


@pytest.mark.parametrize("function", EDIT_CASES, ids=lambda function: function.__name__)
@settings(max_examples=COMPILED.max_examples // 5 + 2)
@given(data=st.data(), dtype=dtypes)
def test_edits_agree_in_every_library_compiled_and_not(
    function: Callable[..., Any], data: st.DataObject, dtype: str
) -> None:
    """Of few shapes, since what they compute does not depend on those, and each has to be compiled anew."""
    case = data.draw(EDIT_CASES[function])
    check_every_library(case, dtype)
    check_jit_and_vmap(case, dtype)
    check_torch_compile(case, dtype)


@given(n=st.integers(2, 60), rho=rhos, p_mean=st.floats(-3, 2), p_std=st.floats(0.5, 4), dtype=dtypes)
def test_the_noise_law_of_every_library_agrees(n: int, rho: float, p_mean: float, p_std: float, dtype: str) -> None:
    """It is host arithmetic, cast once, and so not meant to be compiled."""
    sigmas = karras_sigmas(n, rho=rho).astype(dtype)
    expected = interval_probabilities(sigmas.astype(np.float64), p_mean=p_mean, p_std=p_std)
    with jax.enable_x64(dtype == "float64"):
        for lib in EVERY_LIBRARY:
            actual = interval_probabilities(lib.asarray(sigmas, dtype), p_mean=p_mean, p_std=p_std)
            assert_same(actual, lib.asarray(expected, dtype), rtol=eps(dtype))


def elementwise_huber(xp: Any, a: Array, b: Array) -> list[Array]:
    """The fault of the open implementations."""
    return [xp.sum(xp.reshape(xp.sqrt((a - b) ** 2 + 0.01) - 0.1, (a.shape[0], -1)), axis=1)]


A, B = np.random.default_rng(0).standard_normal((2, 3, 3, 3))
HUBER = Case(lambda xp, a, b: [pseudo_huber(a, b, c=0.1, xp=xp)], [A, B], [5.0])
OUTPUT = Case(lambda xp, x, s: [consistency_output(network(xp), x, s, xp=xp)], [A, np.ones(3)], [5.0])


@pytest.mark.parametrize("lib", EVERY_LIBRARY, ids=lambda lib: lib.name)
@pytest.mark.parametrize(
    ("case", "wrong", "message"),
    [
        (HUBER, elementwise_huber, "Not equal to tolerance"),
        (HUBER, lambda xp, a, b: [pseudo_huber(a, b, c=0.1001, xp=xp)], "Not equal to tolerance"),
        (HUBER, lambda xp, a, b: [xp.astype(pseudo_huber(a, b, c=0.1, xp=xp), xp.complex64)], "dtype"),
        (HUBER, lambda xp, a, b: [pseudo_huber(a, b, c=0.1, xp=xp)[:, None]], "shape"),
        (HUBER, lambda xp, a, b: [np.asarray(HUBER.function(NUMPY.xp, A, B)[0], str(a.dtype)[-7:])], "kind"),
        (HUBER, lambda xp, a, b: [], "count"),
        (OUTPUT, lambda xp, x, s: [OUTPUT.function(xp, xp.permute_dims(x, (0, 2, 1)), s)[0]], "Not equal"),
        (OUTPUT, lambda xp, x, s: [OUTPUT.function(xp, x[:2, ...], s[:2])[0]], "shape"),
    ],
    ids=["elementwise Huber", "value", "dtype", "shape", "kind", "count", "transposed axes", "batch"],
)
def test_the_comparison_of_functions_can_fail(
    lib: Library, case: Case, wrong: Callable[..., Any], message: str
) -> None:
    if lib is NUMPY and message == "kind":
        lib = STRICT  # NumPy's own kind is right for NumPy
    arrays, expected = [lib.asarray(a, "float32") for a in case.arrays], reference(case, "float32")
    assert_agrees(lib, "float32", case, case.function(lib.xp, *arrays), expected)
    with pytest.raises(AssertionError, match=message):
        assert_agrees(lib, "float32", case, wrong(lib.xp, *arrays), expected)
