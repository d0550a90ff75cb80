"""Randomness is a function of its key, and the plan of a step a function of seed and step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ict_backends.randomness import batch_indices, image_noises, step_generator
from ict_backends.training.step_plan import plan_step
from ict_core import Config, discretization_steps, karras_sigmas

SEEDS = st.integers(0, 2**63 - 1)


@given(seed=SEEDS, count=st.integers(1, 50), batch=st.integers(1, 30), steps=st.integers(1, 12))
def test_every_epoch_has_every_image_once(seed: int, count: int, batch: int, steps: int) -> None:
    order = np.concatenate([batch_indices(seed, step, batch, count) for step in range(steps)])
    assert len(order) == steps * batch
    for first in range(0, len(order) - count + 1, count):
        assert np.array_equal(np.sort(order[first : first + count]), np.arange(count))


@given(seed=SEEDS, step=st.integers(0, 10**9))
def test_streams_repeat_and_differ(seed: int, step: int) -> None:
    draw = step_generator(seed, step).random(4)
    assert np.array_equal(draw, step_generator(seed, step).random(4))
    assert not np.array_equal(draw, step_generator(seed, step + 1).random(4))
    assert not np.array_equal(draw, step_generator(seed ^ 1, step).random(4))


@given(seed=SEEDS, first=st.integers(0, 10**6), batch=st.integers(1, 5), steps=st.integers(1, 3))
def test_noise_of_an_image_depends_on_seed_and_index_alone(seed: int, first: int, batch: int, steps: int) -> None:
    together = image_noises(seed, range(first, first + batch), steps, (2, 3, 3))
    assert together.shape == (steps, batch, 2, 3, 3)
    assert together.dtype == np.float32
    for i in range(batch):
        assert np.array_equal(image_noises(seed, [first + i], steps, (2, 3, 3))[:, 0], together[:, i])
    assert np.array_equal(image_noises(seed, [first], steps + 1, (2, 3, 3))[:steps, 0], together[:, 0])


def test_sampling_noise_is_standard_normal_and_not_the_training_stream() -> None:
    noise = image_noises(0, range(2000), 1, (8, 8)).ravel()
    assert abs(noise.mean()) < 5 / len(noise) ** 0.5
    assert abs(noise.var() - 1) < 5 * (2 / len(noise)) ** 0.5
    assert not np.allclose(
        step_generator(0, 0).standard_normal(4, dtype=np.float32), image_noises(0, [0], 1, (4,))[0, 0]
    )


def test_a_plan_repeats_and_draws_from_its_stage(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config()
    for step in range(10):
        a, b = plan_step(config, step, 10), plan_step(config, step, 10)
        assert np.array_equal(a.row_seeds, b.row_seeds)
        assert all(np.array_equal(x, y) for x, y in zip(a.levels, b.levels, strict=True))
        assert a.n == discretization_steps(step, 10, s0=2, s1=8)
        grid = karras_sigmas(a.n)
        index = np.searchsorted(grid, a.levels.sigma_lo)
        assert np.array_equal(grid[index], a.levels.sigma_lo)
        assert np.array_equal(grid[index + 1], a.levels.sigma_hi)
    first, second = (plan_step(config, step, 10).row_seeds for step in (0, 1))
    assert len({*first, *second}) == len(first) + len(second)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_parts_of_a_plan_are_the_plan(tiny_config: Callable[..., Config], count: int) -> None:
    plan = plan_step(tiny_config(train={"batch_size": 8, "label_dropout": 0.5}), 3, 10)
    parts = plan.parts(count)
    assert len(parts) == count
    for name in ("indices", "flips", "row_seeds", "unlabelled"):
        assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(plan, name))
    for i, whole in enumerate(plan.levels):
        assert np.array_equal(np.concatenate([part.levels[i] for part in parts]), whole)
    assert {part.n for part in parts} == {plan.n}


def test_flips_happen_half_of_the_time_or_never(tiny_config: Callable[..., Config]) -> None:
    flips = plan_step(tiny_config(train={"batch_size": 4000}), 0, 10).flips
    assert abs(flips.mean() - 0.5) < 0.05
    assert not plan_step(tiny_config(data={"flip": False}, train={"batch_size": 4000}), 0, 10).flips.any()


def test_labels_are_dropped_at_their_rate_and_change_no_other_choice(tiny_config: Callable[..., Config]) -> None:
    size = {"batch_size": 4000}
    plain, dropped = (plan_step(tiny_config(train=size | more), 2, 10) for more in ({}, {"label_dropout": 0.2}))
    assert (plain.unlabelled.dtype, plain.unlabelled.any()) == (bool, False)
    assert abs(dropped.unlabelled.mean() - 0.2) < 0.03
    for a, b in zip(plain._replace(unlabelled=0), dropped._replace(unlabelled=0), strict=True):
        np.testing.assert_array_equal(a, b)
    other = plan_step(tiny_config(train=size | {"label_dropout": 0.2}), 3, 10)
    assert (other.unlabelled != dropped.unlabelled).any()
