"""The plan of a training step, made on the host from (seed, step): the same for every backend."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ict_backends.randomness import batch_indices, step_generator
from ict_core import (
    Config,
    ConfigError,
    Gap,
    Grid,
    Levels,
    NoiseConfig,
    Stage,
    adaptive_decay,
    discretization_steps,
    gap_share,
    gap_stages,
    learning_rate_factor,
    power_decay,
    stages,
)

# Without a grid, so large a part of the law's levels must lie between sigma_min and sigma_max; 99% of the recipe's do.
_LEAST_SHARE = 0.01


class StepPlan(NamedTuple):
    """The random choices of one training step with b images.

    Attributes:
        n: number of noise levels, N(k), or what stands for it (`levels_at`).
        indices: [b] int64, positions of the images in the data set.
        flips: [b] bool, True to mirror the image left to right.
        levels: the drawn levels and weights, [b] float64 each.
        row_seeds: [b] uint64, the seed of each image's noise and dropout masks (`ict_core.key_words`). These depend
            neither on the backend nor on how a batch is split over devices, processes and micro-batches.
        learning_rate: the learning rate of the step.
        teacher_decay: mu, the decay of the teacher's average after the step.
        unlabelled: [b] bool, True for the images whose label is dropped (`train.label_dropout`).
        average_decays: the decay of each average of `train.ema_sigma_rel` after the step, by the average's name.
    """

    n: int
    indices: np.ndarray
    flips: np.ndarray
    levels: Levels
    row_seeds: np.ndarray
    learning_rate: float
    teacher_decay: float
    unlabelled: np.ndarray
    average_decays: dict[str, float]

    def rows(self, chosen: slice) -> StepPlan:
        """The plan of the chosen rows of the batch."""
        levels = Levels(*(values[chosen] for values in self.levels))
        return self._replace(
            indices=self.indices[chosen],
            flips=self.flips[chosen],
            levels=levels,
            row_seeds=self.row_seeds[chosen],
            unlabelled=self.unlabelled[chosen],
        )

    def parts(self, count: int) -> list[StepPlan]:
        """The plans of `count` equal parts of the batch; `count` divides b."""
        size = len(self.indices) // count
        return [self.rows(slice(i * size, (i + 1) * size)) for i in range(count)]


@lru_cache(maxsize=2)
def _grid(n: int, noise: NoiseConfig, weighting: str) -> Grid:
    return noise.grid(n, weighting=weighting)


def levels_of(config: Config, step: int) -> Grid | Gap:
    """What the noise levels of a step are drawn from."""
    noise, curriculum, weighting = config.noise, config.curriculum, config.loss.weighting
    if curriculum.has_grid:
        return _grid(levels_at(config, step), noise, weighting)
    return noise.gap(share_at(config, step), k=curriculum.gap_k, b=curriculum.gap_b, weighting=weighting)


def check_levels(config: Config) -> None:
    """Raise ConfigError if the last stage has more levels than are distinct, or the law reaches none of them.

    Without a grid, levels are drawn from all of the law, of which a part must lie between the run's levels.
    """
    if not config.curriculum.has_grid:
        _check_law(config.noise)
        return
    try:
        _grid(config.curriculum.s1 + 1, config.noise, config.loss.weighting)
    except ValueError as error:
        raise ConfigError(f"noise with curriculum.s1 = {config.curriculum.s1}: {error}") from error


def _check_law(noise: NoiseConfig) -> None:
    law = NormalDist(noise.p_mean, noise.p_std)
    share = law.cdf(math.log(noise.sigma_max)) - law.cdf(math.log(noise.sigma_min))
    if share < _LEAST_SHARE:
        raise ConfigError(
            f"noise.p_mean = {noise.p_mean:g} with noise.p_std = {noise.p_std:g}: {share:.2g} of the levels lie "
            f"between noise.sigma_min and noise.sigma_max; it must be {_LEAST_SHARE:g} or more"
        )


def stages_of(config: Config) -> list[Stage]:
    """The stages of a run, in order."""
    steps, total = _curriculum_steps(config), config.train.total_steps
    *before, last = [stage for stage in _stages(config, steps) if stage.first < total]
    return [*before, last._replace(last=total - 1 if steps <= total else min(last.last, total - 1))]


def _stages(config: Config, steps: int) -> list[Stage]:
    """The stages of a curriculum of so many steps; without a grid, n is the inverse of the gap's share."""
    curriculum = config.curriculum
    if curriculum.has_grid:
        return stages(steps, s0=curriculum.s0, s1=curriculum.s1, schedule=curriculum.schedule)
    parts = gap_stages(steps, curriculum.gap_stages if curriculum.has_teacher else 1)
    return [Stage(first, last, levels_at(config, first)) for first, last in parts]


def levels_at(config: Config, step: int) -> int:
    """N(k) of a step in 0..total_steps-1: the number of levels, or the inverse of the gap's share, rounded.

    Both double as the gap halves. Diffusion training has N = 1.
    """
    curriculum, steps = config.curriculum, _curriculum_steps(config)
    if not curriculum.has_grid:
        return round(1 / share_at(config, step))
    at = min(step, steps - 1)
    return discretization_steps(at, steps, s0=curriculum.s0, s1=curriculum.s1, schedule=curriculum.schedule)


def share_at(config: Config, step: int) -> float:
    """The share of a large level by which the teacher's is lower: 1 in diffusion training, else as of the stage."""
    curriculum = config.curriculum
    if not curriculum.has_teacher:
        return 1.0
    parts = gap_stages(_curriculum_steps(config), curriculum.gap_stages)
    stage = sum(step > last for _, last in parts[:-1])
    return gap_share(stage, q=curriculum.gap_q, limit=curriculum.gap_limit)


def _curriculum_steps(config: Config) -> int:
    """The number of steps over which levels are added."""
    return config.curriculum.steps or config.train.total_steps


def late_step(config: Config) -> int:
    """The first step that is computed in `train.late_precision`; 0 if there is none."""
    return next((stage.first for stage in stages_of(config) if config.in_stage(stage.n) is not config), 0)


def some_stages(config: Config, most: int) -> list[Stage]:
    """The stages of a run to be shown: all, or else `most` (>= 2) of them, evenly from the first to the last."""
    every = stages_of(config)
    if len(every) <= most:
        return every
    return [every[i * (len(every) - 1) // (most - 1)] for i in range(most)]


def teacher_decay(config: Config, n: int) -> float:
    """The decay mu of the teacher's average after a step with n levels; 0 if the teacher is the student."""
    if config.teacher.schedule == "constant":
        return config.teacher.decay
    return adaptive_decay(n, mu0=config.teacher.decay, s0=config.curriculum.s0)


def average_decays(config: Config, step: int) -> dict[str, float]:
    """The decay of each average of `train.ema_sigma_rel` after step number `step`: 0 after step 0, a run's first."""
    return {name: power_decay(step + 1, gamma) for name, gamma in config.train.average_exponents.items()}


def learning_rate(config: Config, step: int) -> float:
    """The learning rate of step number `step`, in 0..total_steps-1."""
    train = config.train
    return train.learning_rate * learning_rate_factor(
        step,
        train.total_steps,
        warmup_steps=train.warmup_steps,
        decay=train.rate_decay,
        decay_from=train.rate_decay_from,
    )


def is_due(step: int, every: int, total_steps: int) -> bool:
    """True if `step` is a multiple of `every`, or the last step; with `every` = 0 only for the last step."""
    return step == total_steps or (every > 0 and step % every == 0)


def plan_step(config: Config, step: int, count: int) -> StepPlan:
    """The plan of step number `step`, in 0..total_steps-1, for a data set of `count` images."""
    train = config.train
    rng = step_generator(train.seed, step)
    n = levels_at(config, step)
    levels = levels_of(config, step).draw(rng, train.batch_size)
    flips = rng.random(train.batch_size) < (0.5 if config.data.flip else 0.0)
    indices = batch_indices(train.seed, step, train.batch_size, count)
    row_seeds = rng.integers(2**63, size=train.batch_size, dtype=np.uint64)
    # Drawn last, and only where it is asked for: all other choices of a step are the same with and without it.
    unlabelled = np.zeros(train.batch_size, bool)
    if train.label_dropout:
        unlabelled = rng.random(train.batch_size) < train.label_dropout
    return StepPlan(
        n,
        indices,
        flips,
        levels,
        row_seeds,
        learning_rate(config, step),
        teacher_decay(config, n),
        unlabelled,
        average_decays(config, step),
    )
