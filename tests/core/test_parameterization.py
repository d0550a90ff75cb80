from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    NUMPY,
    TORCH,
    Library,
    assert_same,
    batch_shapes,
    eps,
    event_shapes,
    log_uniform,
    other_float,
    seeds,
    sigma_datas,
    to_numpy,
)
from hypothesis import given
from hypothesis import strategies as st

from ict_core import consistency_output, make_grid, multistep_sample, scalings

Array = Any
EVERY_DTYPE = [
    *[(NUMPY, name) for name in ("float16", "float32", "float64")],
    *[(TORCH, name) for name in ("bfloat16", "float16", "float32", "float64")],
]
every_dtype = pytest.mark.parametrize(("lib", "dtype"), EVERY_DTYPE, ids=lambda value: getattr(value, "name", value))
sigma_mins = log_uniform(1e-4, 0.1)


def zero(x_in: Array, c_noise: Array, labels: Array | None) -> Array:
    return 0.0 * x_in


def random_network(lib: Library, seed: int, scale: float) -> Any:
    """Unrelated to its input: nothing that the wrapper could be told by accident."""

    def network(x_in: Array, c_noise: Array, labels: Array | None) -> Array:
        dtype = str(x_in.dtype).rpartition(".")[2]
        return lib.normal(seed, tuple(x_in.shape), dtype, scale)

    return network


class Recorder:
    """A network that keeps what it is fed and returns a fixed function of all of it."""

    def __init__(self) -> None:
        self.calls: list[tuple[Array, Array, Array | None]] = []

    def __call__(self, x_in: Array, c_noise: Array, labels: Array | None) -> Array:
        self.calls.append((x_in, c_noise, labels))
        return x_in * x_in - 0.5


def levels_above(seed: int, count: int, sigma_min: float) -> np.ndarray:
    """[count] float64 levels in [sigma_min, 80], the first one sigma_min."""
    u = np.random.default_rng(seed).random(count)
    u[:1] = 0.0
    return sigma_min * (80.0 / sigma_min) ** u


@every_dtype
@given(sigma_min=sigma_mins, sigma_data=sigma_datas)
def test_boundary_coefficients_are_exact(lib: Library, dtype: str, sigma_min: float, sigma_data: float) -> None:
    sigma = lib.asarray([sigma_min, sigma_min], dtype)
    found = scalings(sigma, sigma_data=sigma_data, sigma_min=sigma_min)
    assert_same(found.c_skip, lib.asarray([1.0, 1.0], dtype))
    assert_same(found.c_out, lib.asarray([0.0, 0.0], dtype))


@every_dtype
@given(shape=batch_shapes, seed=seeds, sigma_min=sigma_mins, sigma_data=sigma_datas, scale=log_uniform(1e-3, 1e3))
def test_identity_at_sigma_min_for_any_network(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, sigma_min: float, sigma_data: float, scale: float
) -> None:
    x = lib.normal(seed, shape, dtype)
    sigma = lib.asarray(np.full(shape[0], sigma_min), dtype)
    network = random_network(lib, seed + 1, scale)
    assert_same(consistency_output(network, x, sigma, sigma_data=sigma_data, sigma_min=sigma_min), x)


@every_dtype
def test_identity_at_the_lowest_level_that_is_trained(lib: Library, dtype: str) -> None:
    """The grid's float64 level, cast once, is the default sigma_min in each dtype."""
    x = lib.normal(0, (3, 4), dtype)
    sigma = lib.asarray(np.full(3, make_grid(11).sigmas[0]), dtype)
    assert_same(consistency_output(random_network(lib, 1, 10.0), x, sigma), x)


def test_identity_at_the_sampler_s_last_level(lib: Library, dtype: str) -> None:
    z = lib.normal(0, (3, 4), dtype, 0.01)
    found = multistep_sample(lambda x, s: consistency_output(random_network(lib, 1, 10.0), x, s), [z], [0.002])
    assert_same(found, 0.002 * z)


@given(shape=event_shapes, seed=seeds, sigma_min=sigma_mins, sd=sigma_datas)
def test_scalings_match_the_formulas(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, sigma_min: float, sd: float
) -> None:
    """Written as in the paper, in float64; sigma of any shape."""
    size = int(np.prod(shape))
    sigma = lib.asarray(levels_above(seed, size, sigma_min).reshape(shape), dtype)
    s = to_numpy(sigma)
    c_skip, c_out, c_in, c_noise = scalings(sigma, sigma_data=sd, sigma_min=sigma_min)
    rtol = 8 * eps(dtype)
    expected = sd**2 / ((s - sigma_min) ** 2 + sd**2)
    assert_same(c_skip, lib.asarray(expected, dtype), rtol=rtol)
    expected = sd * (s - sigma_min) / np.sqrt(s**2 + sd**2)
    # s - sigma_min cancels: casting sigma_min costs half an eps of sigma_min, absolutely
    assert_same(c_out, lib.asarray(expected, dtype), rtol=rtol, atol=2 * eps(dtype) * sigma_min)
    assert_same(c_in, lib.asarray(1 / np.sqrt(s**2 + sd**2), dtype), rtol=rtol)
    assert_same(c_noise, lib.asarray(np.log(s) / 4, dtype), rtol=rtol, atol=eps(dtype))


@given(seed=seeds, sigma_min=sigma_mins, sd=sigma_datas)
def test_c_in_normalises_the_variance(lib: Library, dtype: str, seed: int, sigma_min: float, sd: float) -> None:
    """Squared, once: c_in without its root, or applied twice, fails."""
    sigma = lib.asarray(levels_above(seed, 9, sigma_min), dtype)
    c_in = to_numpy(scalings(sigma, sigma_data=sd, sigma_min=sigma_min).c_in)
    np.testing.assert_allclose(c_in**2 * (to_numpy(sigma) ** 2 + sd**2), 1.0, rtol=8 * eps(dtype))


def test_official_scalings(lib: Library, dtype: str, schedules: Mapping[str, np.ndarray]) -> None:
    found = scalings(lib.asarray(schedules["scalings/sigma"], dtype))
    for name in ("c_skip", "c_out", "c_in"):
        reference = lib.asarray(schedules[f"scalings/boundary/{name}_from_float64"], dtype)
        # float32 levels and results: rounding relative to s near sigma_min, where s - sigma_min cancels
        assert_same(getattr(found, name), reference, rtol=5e-7, atol=5e-10)


@given(shape=batch_shapes, seed=seeds, sigma_min=sigma_mins, sd=sigma_datas)
def test_output_matches_the_formula(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, sigma_min: float, sd: float
) -> None:
    """One sample at a time, in float64, with a network that sees its input."""
    x = lib.normal(seed, shape, dtype)
    sigma = lib.asarray(levels_above(seed, shape[0], sigma_min), dtype)
    expected = np.empty(shape)
    for i, (x_i, s) in enumerate(zip(to_numpy(x), to_numpy(sigma), strict=True)):
        x_in = x_i / np.sqrt(s**2 + sd**2)
        network_output = x_in * x_in - 0.5
        c_skip = sd**2 / ((s - sigma_min) ** 2 + sd**2)
        c_out = sd * (s - sigma_min) / np.sqrt(s**2 + sd**2)
        expected[i] = c_skip * x_i + c_out * network_output
    actual = consistency_output(Recorder(), x, sigma, sigma_data=sd, sigma_min=sigma_min)
    size = 1 + np.abs(to_numpy(x)).max() ** 2 * (1 + 1 / sd)
    assert_same(actual, lib.asarray(expected, dtype), rtol=0, atol=32 * eps(dtype) * size)


@given(shape=batch_shapes, seed=seeds, sd=sigma_datas)
def test_network_is_fed_the_scaled_input_and_a_quarter_of_log_sigma(
    lib: Library, dtype: str, shape: tuple[int, ...], seed: int, sd: float
) -> None:
    x = lib.normal(seed, shape, dtype, 10.0)
    sigma = lib.asarray(levels_above(seed, shape[0], 0.002), dtype)
    recorder = Recorder()
    consistency_output(recorder, x, sigma, sigma_data=sd)
    ((x_in, c_noise, labels),) = recorder.calls
    s = to_numpy(sigma)
    scale = np.sqrt(s**2 + sd**2).reshape(-1, *[1] * (len(shape) - 1))
    assert_same(x_in, lib.asarray(to_numpy(x) / scale, dtype), rtol=8 * eps(dtype))
    assert_same(c_noise, lib.asarray(np.log(s) / 4, dtype), rtol=8 * eps(dtype), atol=eps(dtype))
    assert labels is None


@pytest.mark.parametrize("level", [0.002, 0.1, 0.5, 3.0, 80.0])
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_network_input_has_unit_variance(lib: Library, level: float, sigma_data: float) -> None:
    """For data of standard deviation sigma_data; 0.5% is four standard errors of 400,000 values."""
    shape = (4, 100_000)
    data, z = (np.random.default_rng(seed).standard_normal(shape) for seed in (1, 2))
    recorder = Recorder()
    x = lib.asarray(sigma_data * data + level * z, "float64")
    consistency_output(recorder, x, lib.asarray(np.full(4, level), "float64"), sigma_data=sigma_data)
    assert np.std(to_numpy(recorder.calls[0][0])) == pytest.approx(1.0, rel=0.005)


@pytest.mark.parametrize(
    "labels",
    [None, np.arange(3), torch.tensor([1, 2, 3]), "anything", object()],
    ids=["none", "numpy", "torch", "string", "object"],
)
def test_labels_are_passed_on_unread(lib: Library, dtype: str, labels: object) -> None:
    recorder = Recorder()
    consistency_output(recorder, lib.normal(0, (3, 2), dtype), lib.asarray([1.0, 2.0, 3.0], dtype), labels)
    assert recorder.calls[0][2] is labels


@given(shape=event_shapes)
def test_an_empty_batch_stays_empty(lib: Library, dtype: str, shape: tuple[int, ...]) -> None:
    x = lib.asarray(np.zeros((0, *shape)), dtype)
    assert_same(consistency_output(zero, x, lib.asarray(np.zeros(0), dtype)), x)


def narrow_zero(x_in: Array, c_noise: Array, labels: Array | None) -> Array:
    return 0.0 * (x_in.astype(np.float16) if isinstance(x_in, np.ndarray) else x_in.to(torch.bfloat16))


@pytest.mark.parametrize("lib", [NUMPY, TORCH], ids=lambda library: library.name)
def test_a_narrow_network_leaves_the_affine_part_in_float32(lib: Library) -> None:
    """What a bf16 network returns is cast; c_skip x keeps all the digits of x."""
    x = lib.normal(0, (3, 1, 4, 4), "float32")
    s = np.array([0.002, 0.3, 5.0])
    c_skip = (0.25 / ((s - 0.002) ** 2 + 0.25)).reshape(3, 1, 1, 1)
    actual = consistency_output(narrow_zero, x, lib.asarray(s, "float32"))
    assert_same(actual, lib.asarray(c_skip * to_numpy(x), "float32"), rtol=1e-6)


def test_a_network_of_another_dtype_does_not_change_the_output_s(lib: Library, dtype: str) -> None:
    def network(x_in: Array, c_noise: Array, labels: Array | None) -> Array:
        return lib.asarray(np.ones(x_in.shape), other_float(dtype))

    x = lib.asarray(np.zeros((2, 3)), dtype)
    s = np.array([1.0, 10.0])
    c_out = 0.5 * (s - 0.002) / np.sqrt(s**2 + 0.25)
    expected = lib.asarray(np.repeat(c_out[:, None], 3, axis=1), dtype)
    assert_same(consistency_output(network, x, lib.asarray(s, dtype)), expected, rtol=8 * eps(dtype))


@pytest.mark.parametrize("name", ["sigma_data", "sigma_min"])
def test_numpy_scalar_settings_promote_nothing(lib: Library, dtype: str, name: str) -> None:
    """np.std(images) is the natural sigma_data, and a float; unlike Python's, NumPy's floats promote."""
    value = {"sigma_data": 0.5, "sigma_min": 0.002}[name]
    sigma = lib.asarray([0.002, 1.0, 80.0], dtype)
    for actual, expected in zip(scalings(sigma, **{name: np.float64(value)}), scalings(sigma), strict=True):
        assert_same(actual, expected)
    x = lib.normal(0, (3, 2), dtype)
    expected = consistency_output(Recorder(), x, sigma)
    assert_same(consistency_output(Recorder(), x, sigma, **{name: np.float64(value)}), expected)


def test_namespace_can_be_given(lib: Library, dtype: str) -> None:
    x, sigma = lib.normal(0, (3, 2), dtype), lib.asarray([1.0, 2.0, 3.0], dtype)
    assert_same(consistency_output(Recorder(), x, sigma, xp=lib.xp), consistency_output(Recorder(), x, sigma))
    for actual, expected in zip(scalings(sigma, xp=lib.xp), scalings(sigma), strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("shape", [(3,), (3, 2, 1), (1, 2), (3, 1), (2, 3)])
def test_a_network_that_changes_the_shape_is_named(lib: Library, dtype: str, shape: tuple[int, ...]) -> None:
    x, sigma = lib.normal(0, (3, 2), dtype), lib.asarray([1.0, 2.0, 3.0], dtype)
    with pytest.raises(ValueError, match=r"^network must return .*\(3, 2\), not "):
        consistency_output(lambda *_: lib.asarray(np.ones(shape), dtype), x, sigma)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 1), (3, 2), (1, 3)])
def test_a_sigma_of_the_wrong_shape_is_named(lib: Library, dtype: str, shape: tuple[int, ...]) -> None:
    """Nothing is broadcast: [1] and [b, 1] would be."""
    with pytest.raises(ValueError, match=r"^sigma must be \[b\]"):
        consistency_output(zero, lib.normal(0, (3, 2), dtype), lib.asarray(np.ones(shape), dtype))


def test_a_sigma_of_the_wrong_type_is_named(lib: Library, dtype: str) -> None:
    x = lib.normal(0, (3, 2), dtype)
    ones = np.ones(3)
    for sigma in (lib.asarray(ones, other_float(dtype)), lib.asarray(ones, "int32"), 1.0, [1.0, 1.0, 1.0], None):
        with pytest.raises(TypeError, match="^sigma must have the dtype of x"):
            consistency_output(zero, x, sigma)
    for sigma in (lib.asarray(ones, "int32"), lib.asarray(ones, "bool"), 1.0, [1.0], None):
        with pytest.raises(TypeError, match="^sigma must be an array"):
            scalings(sigma)


def test_an_x_of_the_wrong_type_is_named(lib: Library, dtype: str) -> None:
    sigma = lib.asarray(np.ones(3), dtype)
    for x in (lib.asarray(np.ones((3, 2)), "int32"), 1.0, [[1.0, 2.0]] * 3, None):
        with pytest.raises(TypeError, match="^x must be an array"):
            consistency_output(zero, x, sigma)
    with pytest.raises(ValueError, match="^x must be .* not a scalar"):
        consistency_output(zero, lib.asarray(1.0, dtype), sigma)


@pytest.mark.parametrize("name", ["sigma_data", "sigma_min"])
@pytest.mark.parametrize(
    ("value", "error"),
    [
        *[(value, ValueError) for value in (0.0, -1.0, np.nan, np.inf)],
        *[(value, TypeError) for value in (None, "0.5", True, np.ones(1))],
    ],
)
def test_bad_settings_are_named(name: str, value: object, error: type[Exception]) -> None:
    sigma = np.ones(3)
    with pytest.raises(error, match=f"^{name} must be"):
        scalings(sigma, **{name: value})
    with pytest.raises(error, match=f"^{name} must be"):
        consistency_output(zero, np.ones((3, 2)), sigma, **{name: value})


@given(value=st.floats(-80.0, 80.0))
def test_the_sample_axis_is_never_mixed(value: float) -> None:
    """A sample's output depends on no other sample's input or level."""
    x = np.random.default_rng(0).standard_normal((3, 5))
    sigma = np.array([0.1, 1.0, 10.0])
    changed_x, changed_sigma = x.copy(), sigma.copy()
    changed_x[1], changed_sigma[1] = value, 1.0 + abs(value)
    before, after = consistency_output(Recorder(), x, sigma), consistency_output(Recorder(), changed_x, changed_sigma)
    assert_same(after[[0, 2]], before[[0, 2]])
