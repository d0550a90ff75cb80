"""Searching for good noise levels for sampling in several steps, one level after the other, by ternary search."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from ict_backends.errors import CheckpointError
from ict_backends.files import write_atomically
from ict_backends.images import to_uint8
from ict_backends.protocols import Model
from ict_backends.randomness import image_noises
from ict_backends.runs.checkpoint import read_step
from ict_backends.runs.folder import RunDir
from ict_backends.runs.state import read_json
from ict_backends.sampling.batches import consistency_in_batches
from ict_core.sampling import check_falling_sigmas


class Point(NamedTuple):
    """A noise level that was tried, and the metric of its samples; smaller is better."""

    sigma: float
    value: float


class Step(NamedTuple):
    """A step of sampling: its noise level, the metric of the samples after it, and all points tried for the step."""

    sigma: float
    value: float
    tried: tuple[Point, ...]


def search_sigmas(
    model: Model,
    steps: int,
    measure: Callable[[np.ndarray], float],
    *,
    num: int,
    seed: int = 0,
    labels: np.ndarray | None = None,
    batch: int = 256,
    clip_steps: bool = False,
    truncate: bool = False,
    guidance: float = 1.0,
    tolerance: float = 0.02,
    on_point: Callable[[int, Point], object] = lambda step, point: None,
) -> list[Step]:
    """Find levels greedily: the best second one, then with it the best third, and so on.   CM algorithm 1, sec. 6.2

    Each level is found by ternary search over sigma^(1 / rho), between sigma_min and the level before. All levels that
    are tried for a step start from the same images and add the same noise; only that step is computed for each level.

    Args:
        model: the trained model.
        steps: the number of levels, >= 2; the first one is always sigma_max.
        measure: maps images, [num, c, h, w] uint8, to a number that is smaller for better images.
        num, seed, labels, batch, clip_steps, guidance: as for `sample_images`.
        truncate: as for `to_uint8`.
        tolerance: the search for a level ends when its interval is this share of the whole range of sigma^(1 / rho).
        on_point: called for each level that is tried, with the number of the step, from 1, and the point.

    Returns:
        `steps` steps with falling levels, the step at sigma_max included.
    """
    noise = model.config.noise
    noises = image_noises(seed, range(num), steps, model.config.data.shape)

    def evaluate(step: int, before: np.ndarray, sigma: float) -> tuple[Point, np.ndarray]:
        std = math.sqrt(sigma**2 - noise.sigma_min**2) if step else sigma
        before = before.clip(-1, 1) if clip_steps else before
        noisy = before + np.float32(std) * noises[step]
        images = consistency_in_batches(model, noisy, sigma, labels, batch=batch, guidance=guidance)
        point = Point(sigma, measure(to_uint8(images, truncate=truncate)))
        on_point(step + 1, point)
        return point, images

    point, images = evaluate(0, np.zeros_like(noises[0]), noise.sigma_max)
    chosen = [Step(point.sigma, point.value, (point,))]
    low, top = (sigma ** (1 / noise.rho) for sigma in (noise.sigma_min, noise.sigma_max))
    for step in range(1, steps):
        trials = _Trials(partial(evaluate, step, images), images, noise.rho)
        _ternary_search(trials.value, low, chosen[-1].sigma ** (1 / noise.rho), width=tolerance * (top - low))
        point, images = trials.best(), trials.images
        chosen.append(Step(point.sigma, point.value, tuple(trials.points.values())))
    return chosen


class _Trials:
    """The levels that were tried for one step, each evaluated once.

    Args:
        evaluate: maps a level to its point and images.
        before: [num, c, h, w] float32, the images of the step before.
        rho: the search runs over sigma^(1 / rho).

    Attributes:
        points: the points by level, in the order in which they were tried.
        images: [num, c, h, w] float32, the images of the best level so far; at first, `before`. Only these are kept.
    """

    def __init__(self, evaluate: Callable[[float], tuple[Point, np.ndarray]], before: np.ndarray, rho: float) -> None:
        self._evaluate, self._rho, self._smallest = evaluate, rho, math.inf
        self.points: dict[float, Point] = {}
        self.images = before

    def value(self, place: float) -> float:
        """The metric at the level `place` ** rho."""
        sigma = float(place**self._rho)
        if sigma not in self.points:
            self.points[sigma], images = self._evaluate(sigma)
            if self.points[sigma].value < self._smallest:
                self._smallest, self.images = self.points[sigma].value, images
        return self.points[sigma].value

    def best(self) -> Point:
        """The point with the smallest value; the first of several equal ones."""
        return min(self.points.values(), key=lambda point: point.value)


def _ternary_search(value: Callable[[float], float], low: float, high: float, *, width: float) -> None:
    """Narrow [low, high] down to `width` around the minimum of a function that falls and then rises.

    The last evaluation is at the middle of the interval. The caller finds the minimum among the evaluated values.
    """
    while high - low > width:
        third = (high - low) / 3
        low, high = (low, high - third) if value(low + third) <= value(high - third) else (low + third, high)
    value((low + high) / 2)


def save_search(
    run: RunDir, steps: Sequence[Step], *, metric: str, num: int, weights: str, guidance: float = 1.0
) -> None:
    """Write the result of a search into the run's folder, where `load_sigmas` reads its levels.

    Args:
        run: the run's folder.
        steps: the result of `search_sigmas`.
        metric: the name of the metric.
        num: the number of samples.
        weights: the weights that were sampled from: "ema", "raw", "best" or the name of an average.
        guidance: the scale of guidance that the samples were drawn with.
    """
    record = {
        "metric": metric,
        "num": num,
        "weights": weights,
        "guidance": guidance,
        "step": read_step(run.checkpoint_of(weights)),
        "sigmas": [step.sigma for step in steps],
        "values": [step.value for step in steps],
        "tried": [step.tried for step in steps],
    }
    write_atomically(run.sigmas_file, (json.dumps(record, indent=2) + "\n").encode())


def load_sigmas(run: RunDir) -> list[float]:
    """Read the falling levels that `save_search` wrote for a run; an empty list where there was no search.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not run.sigmas_file.is_file():
        return []
    record = read_json(run.sigmas_file, f"run {run.path}: {run.sigmas_file.name}")
    try:
        return check_falling_sigmas(record["sigmas"], sigma_min=1e-12)
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"run {run.path}: {run.sigmas_file.name} cannot be read ({error})") from error
