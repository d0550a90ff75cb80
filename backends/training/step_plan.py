"""What one training step is going to do, decided on the host from (seed, step): the same for every backend."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ict_backends.randomness import batch_indices, step_generator
from ict_core import Config, Grid, Levels, NoiseConfig, Stage, adaptive_decay, discretization_steps, make_grid, stages


class StepPlan(NamedTuple):
    """The host's part of one training step.

    Attributes:
        n: number of noise levels, N(k).
        indices: [b] images.
        flips: [b] bool, mirror left to right.
        levels: the drawn levels and weights, float64.
        row_seeds: [b] uint64, the seeds of each image's noise and dropout masks (`ict_core.key_words`): so neither
            depends on the backend, nor on how a batch is split over devices, processes and micro-batches.
        teacher_decay: mu, of the teacher's average after the step.
    """

    n: int
    indices: np.ndarray
    flips: np.ndarray
    levels: Levels
    row_seeds: np.ndarray
    teacher_decay: float = 0.0

    def rows(self, chosen: slice) -> StepPlan:
        """The plan of a part of the batch."""
        levels = Levels(*(values[chosen] for values in self.levels))
        return self._replace(
            indices=self.indices[chosen], flips=self.flips[chosen], levels=levels, row_seeds=self.row_seeds[chosen]
        )

    def parts(self, count: int) -> list[StepPlan]:
        """The plans of `count` equal parts of the batch, which it divides by."""
        size = len(self.indices) // count
        return [self.rows(slice(i * size, (i + 1) * size)) for i in range(count)]


@lru_cache(maxsize=2)
def _grid(n: int, noise: NoiseConfig, weighting: str) -> Grid:
    return make_grid(n, **dataclasses.asdict(noise), weighting=weighting)


def grid_of(config: Config, n: int) -> Grid:
    """The grid of a run's stage with n levels."""
    return _grid(n, config.noise, config.loss.weighting)


def stages_of(config: Config) -> list[Stage]:
    """The stages of a run."""
    return stages(config.train.total_steps, **dataclasses.asdict(config.curriculum))


def some_stages(config: Config, most: int) -> list[Stage]:
    """Those of a run's stages that are shown: all, or `most` of them from the first to the last."""
    found = stages_of(config)
    if len(found) <= most:
        return found
    return [found[i * (len(found) - 1) // (most - 1)] for i in range(most)]


def teacher_decay(config: Config, n: int) -> float:
    """mu, of the teacher's average after a step with n levels; 0 where the teacher is the student."""
    if config.teacher.schedule == "constant":
        return config.teacher.decay
    return adaptive_decay(n, mu0=config.teacher.decay, s0=config.curriculum.s0)


def is_due(step: int, every: int, total_steps: int) -> bool:
    """Whether what happens every so many steps, and at the end, happens after `step` of them; 0 is never but then."""
    return step == total_steps or (every > 0 and step % every == 0)


def plan_step(config: Config, step: int, count: int) -> StepPlan:
    """The plan of step `step` in 0..total_steps-1, over a data set of `count` images."""
    train = config.train
    rng = step_generator(train.seed, step)
    n = discretization_steps(step, train.total_steps, **dataclasses.asdict(config.curriculum))
    levels = grid_of(config, n).draw(rng, train.batch_size)
    flips = rng.random(train.batch_size) < (0.5 if config.data.flip else 0.0)
    indices = batch_indices(train.seed, step, train.batch_size, count)
    row_seeds = rng.integers(2**63, size=train.batch_size, dtype=np.uint64)
    return StepPlan(n, indices, flips, levels, row_seeds, teacher_decay(config, n))
