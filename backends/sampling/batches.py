"""Sampling many images in batches, with the same noise for every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np

from ict_backends.errors import OutOfMemoryError
from ict_backends.images import to_uint8
from ict_backends.protocols import Model
from ict_backends.randomness import image_noises
from ict_core import Config, heun_sigmas, multistep_sample


def sample_images(
    model: Model,
    num: int,
    *,
    sigmas: Sequence[float],
    seed: int,
    labels: np.ndarray | None = None,
    batch: int = 256,
    clip_steps: bool = False,
    guidance: float = 1.0,
    solver: str = "multistep",
    on_batch: Callable[[int], object] = lambda done: None,
) -> np.ndarray:
    """Sample images 0..num-1 of a seed: [num, c, h, w] float32 in [-1, 1].

    Image i depends only on the model, the seed, i, its label and `sigmas`, not on the batch that it is in.

    Args:
        model: the trained model.
        num: the number of images, >= 1.
        sigmas: falling noise levels, one a step; the first one is the model's sigma_max.
        seed: of the noise.
        labels: [num] classes for a conditional model.
        batch: images that are computed at a time, >= 1; halved where so many do not fit into the device's memory.
        clip_steps: clip to [-1, 1] after each step, as released samplers do, and not only at the end.
        guidance: the scale of classifier-free guidance (`ict_core.guided`); 1 is none.
        solver: "multistep" for `ict_core.multistep_sample`; "heun" for `ict_core.heun_sample`.
        on_batch: called after each batch with the number of its images.

    Raises:
        OutOfMemoryError: the device cannot hold even one image.
    """
    parts = []
    drawn = sample_batches(
        model,
        range(num),
        sigmas=sigmas,
        seed=seed,
        labels=labels,
        batch=batch,
        clip_steps=clip_steps,
        guidance=guidance,
        solver=solver,
    )
    for images in drawn:
        parts.append(images)
        on_batch(len(images))
    return np.concatenate(parts)


def sample_batches(
    model: Model,
    indices: Sequence[int],
    *,
    sigmas: Sequence[float],
    seed: int,
    labels: np.ndarray | None = None,
    batch: int = 256,
    clip_steps: bool = False,
    guidance: float = 1.0,
    solver: str = "multistep",
) -> Iterator[np.ndarray]:
    """Sample the images of a seed that have these numbers, and yield batches [b, c, h, w] float32 in [-1, 1].

    Args:
        model: the trained model.
        indices: numbers of images, >= 0.
        labels: classes for a conditional model, [n] with n > max(indices): image i has class labels[i].
        sigmas, seed, batch, clip_steps, guidance, solver: as for `sample_images`, whose errors are raised here, too.
    """

    def draw(rows: slice) -> np.ndarray:
        chosen = indices[rows]
        noises = image_noises(seed, chosen, 1 if solver == "heun" else len(sigmas), model.config.data.shape)
        classes = None if labels is None else np.asarray(labels)[list(chosen)]
        return model.sample(noises, sigmas, classes, clip_steps=clip_steps, guidance=guidance, solver=solver)

    return fitting_batches(draw, len(indices), batch)


def proportional_labels(counts: np.ndarray, num: int) -> np.ndarray:
    """Classes of images 0..num-1, [num] int64, in the proportions of a data set.

    The first n are in these proportions to within two images, for every n; classes of equal frequency take turns.

    Args:
        counts: [classes] integers >= 0, how many images of each class the data set has; not all 0.
        num: >= 1.
    """
    counts = np.asarray(counts, dtype=np.int64)
    credit, labels = np.zeros(len(counts), np.int64), np.empty(num, np.int64)
    for i in range(num):
        credit += counts
        labels[i] = chosen = credit.argmax()
        credit[chosen] -= counts.sum()
    return labels


def fitting_batches(compute: Callable[[slice], np.ndarray], count: int, batch: int) -> Iterator[np.ndarray]:
    """Compute rows 0..count-1 and yield the results in batches, [b, ...].

    Where a batch does not fit into the device's memory, it and all later batches are halved until they fit.

    Args:
        compute: returns the result of a slice of the rows, [b, ...].
        count: the number of rows.
        batch: rows that are computed at a time, >= 1.

    Raises:
        OutOfMemoryError: a single row does not fit either.
    """
    first = 0
    while first < count:
        rows = slice(first, min(first + batch, count))
        try:
            images = compute(rows)
        except OutOfMemoryError:
            if rows.stop - first == 1:
                raise
            batch = (rows.stop - first) // 2
            continue
        first = rows.stop
        yield images


@overload
def padded(array: np.ndarray, size: int) -> np.ndarray: ...
@overload
def padded(array: None, size: int) -> None: ...
def padded(array: np.ndarray | None, size: int) -> np.ndarray | None:
    """Extend the first axis of an array to `size` by repeating its last element; None stays None.

    Args:
        array: [b, ...] with 1 <= b <= size.

    Returns:
        [size, ...] of the same dtype.
    """
    if array is None:
        return None
    array = np.asarray(array)
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def compiled_size(batch: int) -> int:
    """The smallest power of two >= `batch`. Batches are padded to such sizes, so that few sizes are compiled."""
    return 1 << (batch - 1).bit_length()


def consistency_in_batches(
    model: Model, x: np.ndarray, sigma: float, labels: np.ndarray | None, *, batch: int, guidance: float = 1.0
) -> np.ndarray:
    """Evaluate the consistency function for any number of images that have the same noise level.

    Args:
        model: the trained model.
        x: [n, c, h, w] noisy images, n >= 1.
        sigma: their noise level.
        labels: [n] classes for a conditional model.
        batch, guidance: as for `sample_images`.

    Returns:
        [n, c, h, w] float32 clean images.
    """

    def clean(rows: slice) -> np.ndarray:
        levels = np.full(len(x[rows]), sigma, dtype=np.float32)
        return model.consistency(x[rows], levels, None if labels is None else labels[rows], guidance=guidance)

    return np.concatenate(list(fitting_batches(clean, len(x), batch)))


def trajectory(
    model: Model,
    num: int,
    *,
    sigmas: Sequence[float],
    seed: int,
    labels: np.ndarray | None = None,
    batch: int = 256,
    clip_steps: bool = False,
    guidance: float = 1.0,
) -> np.ndarray:
    """Sample images, and return the input and the output of each step in turn.

    Args:
        model, num, sigmas, seed, labels, batch, clip_steps, guidance: as for `sample_images`.

    Returns:
        [2 * steps, num, c, h, w] float32; the outputs are not clipped yet.
    """
    inputs_and_outputs: list[np.ndarray] = []

    def f(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        clean = consistency_in_batches(model, x, float(sigma[0]), labels, batch=batch, guidance=guidance)
        inputs_and_outputs.extend((x, clean))
        return clean

    noises = image_noises(seed, range(num), len(sigmas), model.config.data.shape)
    multistep_sample(f, noises, sigmas, sigma_min=model.config.noise.sigma_min, clip_steps=clip_steps)
    return np.stack(inputs_and_outputs)


def usual_solver(config: Config) -> tuple[str, list[float]]:
    """How a model is sampled where nobody says how, and the levels: in one step; a diffusion model in 18 of Heun."""
    noise = config.noise
    if config.curriculum.has_teacher:
        return "multistep", [noise.sigma_max]
    return "heun", heun_sigmas(sigma_min=noise.sigma_min, sigma_max=noise.sigma_max, rho=noise.rho)


def preview(model: Model, num: int = 64) -> np.ndarray:
    """Samples of seed 0 by `usual_solver`, [num, c, h, w] uint8, to show a run's progress; all classes in turn."""
    classes = model.config.network.num_classes
    labels = np.arange(num) % classes if classes else None
    solver, sigmas = usual_solver(model.config)
    return to_uint8(sample_images(model, num, sigmas=sigmas, seed=0, labels=labels, solver=solver))
