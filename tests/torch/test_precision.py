"""A network that computes in bfloat16 learns as well as one that computes in float32."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

from ict_backends.data.dataset import load_data
from ict_backends.images import to_float
from ict_backends.measuring.distances import frechet_distance, moments
from ict_backends.sampling.batches import sample_images
from ict_backends.torch.batch import make_batch, to_device
from ict_backends.torch.parallel import Processes
from ict_backends.torch.sample import LoadedModel
from ict_backends.torch.state import init_state
from ict_backends.torch.step import train_step
from ict_backends.training.step_plan import plan_step
from ict_core import load_preset
from ict_core.settings import replace

STEPS, SEEDS = 90, (0, 1)


@lru_cache
def digits_distance(precision: str, seed: int, steps: int = STEPS) -> float:
    """The pixels' Frechet distance of 1,000 one-step samples from the digits, after so many steps of one stage."""
    data = load_data("digits")
    config = replace(
        load_preset("digits"),
        network={"channels": 12},
        curriculum={"s0": 10, "s1": 10},
        train={
            "precision": precision,
            "seed": seed,
            "total_steps": steps,
            "batch_size": 32,
            "learning_rate": 5e-3,
            "ema_decay": 0.95,
        },
    )
    state, images = init_state(config, Processes(torch.device("cpu"))), torch.from_numpy(data.images)
    for step in range(steps):
        plan = plan_step(config, step, len(images))
        train_step(state, config, [make_batch(config, to_device(plan, images.device), images, None)])
    assert {p.dtype for p in (*state.params.network.parameters(), *state.ema.network.parameters())} == {torch.float32}
    samples = sample_images(LoadedModel(config, state.ema.network), 1000, sigmas=[80.0], seed=0)
    assert samples.dtype == np.float32
    features = (images.reshape(len(images), -1) for images in (samples, to_float(data.images)))
    return frechet_distance(*map(moments, features))


def assert_as_good(found: list[float], expected: list[float]) -> None:
    """The means differ by no more than the noise of seeds: two standard deviations, or a twentieth of the mean."""
    spread = np.sqrt((np.var(found, ddof=1) + np.var(expected, ddof=1)) / 2)
    bound = max(2 * spread, 0.05 * np.mean(expected))
    assert abs(np.mean(found) - np.mean(expected)) < bound, f"{found} is not {expected} but for {bound:.3g}"


def test_bf16_reaches_the_same_distance_from_the_digits() -> None:
    found, expected = ([digits_distance(p, seed) for seed in SEEDS] for p in ("bf16", "float32"))
    print(f"bf16 {found}, float32 {expected}")
    assert found != expected
    assert_as_good(found, expected)


def test_a_third_of_the_steps_would_be_noticed() -> None:
    found = [digits_distance("bf16", seed, STEPS // 3) for seed in SEEDS]
    print(f"a third: {found}")
    with pytest.raises(AssertionError, match="but for"):
        assert_as_good(found, [digits_distance("float32", seed) for seed in SEEDS])
