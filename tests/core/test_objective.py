"""The objective of a batch: what each network is given, and what is made of their answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from array_api_compat import torch as torch_xp
from helpers import Library, assert_same, eps, seeds, to_numpy
from hypothesis import given

from ict_core import (
    Batch,
    Config,
    batch_loss,
    consistency_function,
    consistency_output,
    distance_of,
    huber_constant,
    teacher_of,
)
from ict_core.loss import DISTANCES
from ict_core.settings import build_config, replace

Array = Any
CONFIG = build_config({"data": {"shape": [2, 3, 3]}, "network": {"channel_mult": [1]}})
SHAPE = (4, 2, 3, 3)


def unchanged(f: Any) -> Any:
    return f


def make_batch(lib: Library, dtype: str, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0.1, 2.0, SHAPE[0])
    images = [lib.normal(seed + i, SHAPE, dtype) for i in range(2)]
    levels = (low, low + rng.uniform(0.1, 1.0, SHAPE[0]), rng.uniform(0.5, 2.0, SHAPE[0]))
    masks = [lib.asarray(rng.uniform(0, 2, SHAPE), dtype) for _ in range(2)]
    return Batch(*images, *(lib.asarray(a, dtype) for a in levels), "labels", masks[:1], masks[1:])


def network(factor: float) -> Callable[..., Array]:
    """Scales its input, and multiplies by a mask where it is given one."""
    return lambda x_in, c_noise, labels, masks: factor * x_in * (1.0 if masks is None else masks[0])


def written_out(batch: Batch, distance: Callable[[Array, Array], Array], xp: Any) -> Array:
    """The weighted distances of a student that scales by 0.5 and a teacher that scales by 0.2, [b]."""

    def clean(factor: float, mask: Array, sigma: Array) -> Array:
        noisy = batch.x + xp.reshape(sigma, (-1, 1, 1, 1)) * batch.z
        return consistency_output(lambda x, c, y: factor * x * mask, noisy, sigma, xp=xp)

    y_hi, y_lo = clean(0.5, batch.masks[0], batch.sigma_hi), clean(0.2, batch.teacher_masks[0], batch.sigma_lo)
    return batch.weight * distance(y_hi, y_lo)


@pytest.mark.parametrize("distance", DISTANCES)
@given(seed=seeds)
def test_the_loss_is_the_weighted_distance_of_student_and_teacher(
    lib: Library, dtype: str, distance: str, seed: int
) -> None:
    config, batch = replace(CONFIG, loss={"distance": distance}), make_batch(lib, dtype, seed)
    loss = batch_loss(network(0.5), config, batch, without_gradient=unchanged, teacher=network(0.2), xp=lib.xp)
    expected = written_out(batch, distance_of(config), lib.xp)
    assert_same(loss.per_sample, expected, rtol=16 * eps(dtype))
    assert_same(loss.mean, lib.asarray(to_numpy(expected).mean(), dtype), rtol=16 * eps(dtype))


def test_a_distance_of_ones_own_takes_the_place_of_the_named_one(lib: Library, dtype: str) -> None:
    batch = make_batch(lib, dtype)

    def largest(a: Array, b: Array) -> Array:
        return lib.xp.max(lib.xp.reshape(lib.xp.abs(a - b), (SHAPE[0], -1)), axis=1)

    networks = {"student": network(0.5), "teacher": network(0.2)}
    loss = batch_loss(**networks, config=CONFIG, batch=batch, without_gradient=unchanged, distance=largest, xp=lib.xp)
    assert_same(loss.per_sample, written_out(batch, largest, lib.xp), rtol=16 * eps(dtype))


@pytest.mark.parametrize(("one", "other"), [("masks", "teacher_masks"), ("sigma_lo", "sigma_hi"), ("x", "z")])
def test_the_comparison_with_the_formula_can_fail(lib: Library, dtype: str, one: str, other: str) -> None:
    batch = make_batch(lib, dtype)
    swapped = batch._replace(**{one: getattr(batch, other), other: getattr(batch, one)})
    loss = batch_loss(network(0.5), CONFIG, swapped, without_gradient=unchanged, teacher=network(0.2), xp=lib.xp)
    with pytest.raises(AssertionError):
        assert_same(loss.per_sample, written_out(batch, distance_of(CONFIG), lib.xp), rtol=16 * eps(dtype))


def test_each_network_is_given_the_labels_and_its_own_masks(lib: Library) -> None:
    batch, calls = make_batch(lib, "float64"), []

    def recording(name: str) -> Callable[..., Array]:
        def call(x_in: Array, c_noise: Array, labels: Any, masks: Any) -> Array:
            calls.append((name, labels, masks is batch.masks, masks is batch.teacher_masks))
            return x_in

        return call

    student, teacher = recording("student"), recording("teacher")
    batch_loss(student, CONFIG, batch, without_gradient=unchanged, teacher=teacher, xp=lib.xp)
    batch_loss(student, CONFIG, batch, without_gradient=unchanged, xp=lib.xp)
    assert calls[:2] == [("teacher", "labels", False, True), ("student", "labels", True, False)]
    assert calls[2:] == [("student", "labels", False, True), ("student", "labels", True, False)]


def test_only_the_teacher_is_without_gradient() -> None:
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    images = [torch.randn(SHAPE, dtype=torch.float64) for _ in range(2)]
    levels = [torch.rand(4, dtype=torch.float64) + i + 0.1 for i in range(3)]
    batch = Batch(*images, *levels, None, None, None)

    def gradient(without_gradient: Any = teacher_of, teacher: Any = None) -> float:
        def student(x_in: Any, c_noise: Any, labels: Any, masks: Any) -> Any:
            return weight * x_in

        loss = batch_loss(student, CONFIG, batch, without_gradient=without_gradient, teacher=teacher, xp=torch_xp)
        return float(torch.autograd.grad(loss.mean, weight)[0])

    stopped = gradient(torch.no_grad())
    assert stopped == gradient()
    assert stopped == gradient(unchanged, teacher=lambda x_in, *_: 0.5 * x_in)
    assert stopped != gradient(unchanged)


def test_a_configuration_names_its_distance_and_constant() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, *SHAPE))
    for name, make in DISTANCES.items():
        config = replace(CONFIG, loss={"distance": name, "huber_factor": 0.1})
        expected = make(huber_constant(math.prod(SHAPE[1:]), factor=0.1))(a, b)
        np.testing.assert_array_equal(distance_of(config)(a, b), expected)


def test_a_consistency_function_has_the_scalings_of_the_noise() -> None:
    config: Config = replace(CONFIG, noise={"sigma_data": 0.7, "sigma_min": 0.01})
    x, sigma = np.ones(SHAPE), np.full(4, 2.0)
    f = consistency_function(network(0.3), config.noise, masks=[np.full(SHAPE, 2.0)])
    expected = consistency_output(lambda x_in, c, y: 0.6 * x_in, x, sigma, sigma_data=0.7, sigma_min=0.01)
    np.testing.assert_allclose(f(x, sigma), expected, rtol=1e-12)


@given(seed=seeds)
def test_diffusion_training_takes_the_image_for_the_teachers_output(lib: Library, dtype: str, seed: int) -> None:
    """At sigma_min, f(x, sigma_min) = x: the loss is that of a teacher's pass there, which is not made."""
    diffusion = replace(CONFIG, curriculum={"schedule": "diffusion"}, loss={"distance": "l2", "weighting": "edm"})
    batch, asked = make_batch(lib, dtype, seed), []
    batch = batch._replace(sigma_lo=0.0 * batch.sigma_lo + CONFIG.noise.sigma_min)
    plain = replace(diffusion, curriculum={"schedule": "doubling"})

    def student(x_in: Array, c_noise: Array, labels: Any, masks: Any) -> Array:
        asked.append(c_noise)
        return network(0.5)(x_in, c_noise, labels, masks)

    expected = batch_loss(student, plain, batch, without_gradient=unchanged, xp=lib.xp)
    assert len(asked) == 2
    found = batch_loss(student, diffusion, batch, without_gradient=unchanged, xp=lib.xp)
    assert len(asked) == 3
    assert_same(found.per_sample, expected.per_sample, rtol=32 * eps(dtype), atol=32 * eps(dtype))
