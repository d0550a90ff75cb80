"""Good noise levels for sampling in several steps: found one after the other, by ternary search."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ict_backends.errors import CheckpointError
from ict_backends.files import write_atomically
from ict_backends.images import to_uint8
from ict_backends.randomness import image_noises
from ict_backends.runs.checkpoint import read_step
from ict_backends.runs.folder import RunDir
from ict_backends.sampling.batches import Model, consistency_in_batches
from ict_core.sampling import check_falling_sigmas


class Point(NamedTuple):
    """A level that was tried, and what the metric made of it; smaller is better."""

    sigma: float
    value: float


class Step(NamedTuple):
    """A step of sampling: its level, the metric of the samples up to it, and all that was tried."""

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
    tolerance: float = 0.02,
    on_point: Callable[[int, Point], object] = lambda step, point: None,
) -> list[Step]:
    """Find levels greedily: the best second one, then with it the best third, and so on.   CM algorithm 1, sec. 6.2

    Each is found by ternary search on the scale of sigma^(1 / rho), between sigma_min and the level before, with the
    same noise for all that is tried; what came before is computed once.

    Args:
        steps: >= 2, how many levels in all; the first is sigma_max.
        measure: from images, uint8 [num, c, h, w], to a number that is smaller for better ones.
        num, seed, labels, batch: of the samples.
        tolerance: where the search stops, as a share of the whole scale.
        on_point: called with the number of the step and each point.

    Returns:
        A `Step` for each level, the first one included.
    """
    noise = model.config.noise
    noises = image_noises(seed, range(num), steps, model.config.data.shape)

    def evaluate(step: int, before: np.ndarray, std: float, sigma: float) -> tuple[Point, np.ndarray]:
        noisy = before + np.float32(std) * noises[step]
        images = consistency_in_batches(model, noisy, sigma, labels, batch=batch)
        point = Point(sigma, measure(to_uint8(images)))
        on_point(step + 1, point)
        return point, images

    point, images = evaluate(0, np.zeros_like(noises[0]), noise.sigma_max, noise.sigma_max)
    found = [Step(point.sigma, point.value, (point,))]
    low, top = (sigma ** (1 / noise.rho) for sigma in (noise.sigma_min, noise.sigma_max))
    for step in range(1, steps):
        before, best, tried = images, math.inf, dict[float, Point]()

        def value(place: float, step: int = step, before: np.ndarray = before, tried: dict = tried) -> float:
            nonlocal images, best
            sigma = float(place**noise.rho)
            if sigma not in tried:
                tried[sigma], made = evaluate(step, before, math.sqrt(sigma**2 - noise.sigma_min**2), sigma)
                if tried[sigma].value < best:  # of all that is tried, only the best images are held
                    best, images = tried[sigma].value, made
            return tried[sigma].value

        _ternary_search(value, low, found[-1].sigma ** (1 / noise.rho), width=tolerance * (top - low))
        point = min(tried.values(), key=lambda point: point.value)
        found.append(Step(point.sigma, point.value, tuple(tried.values())))
    return found


def _ternary_search(value: Callable[[float], float], low: float, high: float, *, width: float) -> None:
    """Close in on the minimum of a function that falls and then rises; its last evaluation is within `width` of it."""
    while high - low > width:
        third = (high - low) / 3
        low, high = (low, high - third) if value(low + third) <= value(high - third) else (low + third, high)
    value((low + high) / 2)


def save_search(run: RunDir, steps: Sequence[Step], *, metric: str, num: int, weights: str) -> None:
    """Keep what was found with the run, for sampling in as many steps, and what it was found with."""
    record = {
        "metric": metric,
        "num": num,
        "weights": weights,
        "step": read_step(run.checkpoint_of(weights)),
        "sigmas": [step.sigma for step in steps],
        "values": [step.value for step in steps],
        "tried": [step.tried for step in steps],
    }
    write_atomically(run.sigmas_file, (json.dumps(record, indent=2) + "\n").encode())


def found_sigmas(run: RunDir) -> list[float]:
    """The levels that were found for a run, falling; none where nothing was searched for.

    Raises:
        CheckpointError: the file is damaged.
    """
    if not run.sigmas_file.is_file():
        return []
    try:
        return check_falling_sigmas(json.loads(run.sigmas_file.read_text())["sigmas"], sigma_min=1e-12)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"run {run.path}: {run.sigmas_file.name} cannot be read ({error})") from error
