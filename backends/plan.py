"""What one training step is going to do, decided on the host from (seed, step): the same for every backend."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from ict_backends.randomness import batch_indices, step_generator

from ict_core import Config, Grid, Levels, discretization_steps, make_grid


class StepPlan(NamedTuple):
    """The host's part of one training step.

    Attributes:
        n: number of noise levels, N(k).
        indices: [b] images.
        flips: [b] bool, mirror left to right.
        levels: the drawn levels and weights, float64.
        row_seeds: [b] uint64, of the backend's own generators, for the noise and the dropout masks of each image: so
            neither depends on how a batch is split over devices, processes and micro-batches.
    """

    n: int
    indices: np.ndarray
    flips: np.ndarray
    levels: Levels
    row_seeds: np.ndarray

    def rows(self, chosen: slice) -> StepPlan:
        """The plan of a part of the batch."""
        levels = Levels(*(values[chosen] for values in self.levels))
        return StepPlan(self.n, self.indices[chosen], self.flips[chosen], levels, self.row_seeds[chosen])

    def parts(self, count: int) -> list[StepPlan]:
        """The plans of `count` equal parts of the batch, which it divides by."""
        size = len(self.indices) // count
        return [self.rows(slice(i * size, (i + 1) * size)) for i in range(count)]


@lru_cache(maxsize=2)
def _grid(n: int, noise: object) -> Grid:
    return make_grid(
        n,
        sigma_min=noise.sigma_min,
        sigma_max=noise.sigma_max,
        rho=noise.rho,
        p_mean=noise.noise_mean,
        p_std=noise.noise_std,
    )


def is_due(step: int, every: int, total_steps: int) -> bool:
    """Whether what happens every so many steps, and at the end, happens after `step` of them; 0 is never but then."""
    return step == total_steps or (every > 0 and step % every == 0)


def plan_step(config: Config, step: int, count: int) -> StepPlan:
    """The plan of step `step` in 0..total_steps-1, over a data set of `count` images."""
    train = config.train
    rng = step_generator(train.seed, step)
    n = discretization_steps(step, train.total_steps, s0=config.curriculum.s0, s1=config.curriculum.s1)
    levels = _grid(n, config.noise).draw(rng, train.batch_size)
    flips = rng.random(train.batch_size) < (0.5 if config.data.flip else 0.0)
    indices = batch_indices(train.seed, step, train.batch_size, count)
    return StepPlan(n, indices, flips, levels, rng.integers(2**63, size=train.batch_size, dtype=np.uint64))
