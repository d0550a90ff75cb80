"""Sampling many images: their noise, labels and batches, the same for every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from ict_backends.errors import OutOfMemoryError
from ict_backends.images import to_uint8
from ict_backends.randomness import image_noises
from ict_core import Config, multistep_sample


class Model(Protocol):
    """What `load_model` gives: NumPy in and out, NCHW float32."""

    config: Config

    def consistency(self, x: np.ndarray, sigma: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
        """[b, c, h, w] noisy images and their [b] levels to clean ones."""
        ...

    def sample(self, noises: np.ndarray, sigmas: Sequence[float], labels: np.ndarray | None) -> np.ndarray:
        """[steps, b, c, h, w] noise to [b, c, h, w] images in [-1, 1]."""
        ...


def sample_images(
    model: Model,
    num: int,
    *,
    sigmas: Sequence[float],
    seed: int,
    labels: np.ndarray | None = None,
    batch: int = 256,
    on_batch: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Sample images 0..num-1 of a seed: [num, c, h, w] float32 in [-1, 1].

    Image i depends on (seed, i) and its label alone, not on the batch it is in.

    Args:
        sigmas: falling levels, the first one the model's sigma_max.
        labels: [num] for a conditional model.
        on_batch: called with the number of images that each batch adds.
    """
    parts = []
    for images in sample_batches(model, range(num), sigmas=sigmas, seed=seed, labels=labels, batch=batch):
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
) -> Iterator[np.ndarray]:
    """The images of a seed with these numbers, [b, c, h, w] a batch, one batch after the other.

    Where a batch does not fit into the device's memory, it and those after it are halved until they do.

    Args:
        labels: those of all numbers from 0 on, for a conditional model.
        sigmas, seed, batch: as for `sample_images`.
    """

    def draw(rows: slice) -> np.ndarray:
        chosen = indices[rows]
        noises = image_noises(seed, chosen, len(sigmas), model.config.data.shape)
        return model.sample(noises, sigmas, None if labels is None else np.asarray(labels)[list(chosen)])

    return fitting_batches(draw, len(indices), batch)


def fitting_batches(compute: Callable[[slice], np.ndarray], count: int, batch: int) -> Iterator[np.ndarray]:
    """What `compute` makes of rows 0..count-1, a batch at a time, in halves where one does not fit into memory."""
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


def padded(array: np.ndarray | None, size: int) -> np.ndarray | None:
    """The first axis made `size` long by repeating the last element."""
    if array is None:
        return None
    array = np.asarray(array)
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def compiled_size(batch: int) -> int:
    """The power of two that a batch is padded to where each size is compiled by itself."""
    return 1 << (batch - 1).bit_length()


def consistency_in_batches(
    model: Model, x: np.ndarray, sigma: float, labels: np.ndarray | None, *, batch: int
) -> np.ndarray:
    """The consistency function of any number of images, [n, c, h, w], that have one noise level."""

    def clean(rows: slice) -> np.ndarray:
        levels = np.full(len(x[rows]), sigma, dtype=np.float32)
        return model.consistency(x[rows], levels, None if labels is None else labels[rows])

    return np.concatenate(list(fitting_batches(clean, len(x), batch)))


def trajectory(
    model: Model,
    num: int,
    *,
    sigmas: Sequence[float],
    seed: int,
    labels: np.ndarray | None = None,
    batch: int = 256,
) -> np.ndarray:
    """What each step of sampling is given and what it makes of it: [2 steps, num, c, h, w] float32, in turn."""
    seen: list[np.ndarray] = []

    def f(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        clean = consistency_in_batches(model, x, float(sigma[0]), labels, batch=batch)
        seen.extend((x, clean))
        return clean

    noises = image_noises(seed, range(num), len(sigmas), model.config.data.shape)
    multistep_sample(f, noises, sigmas, sigma_min=model.config.noise.sigma_min)
    return np.stack(seen)


def preview(model: Model, num: int = 64) -> np.ndarray:
    """[num, c, h, w] uint8 one-step samples from noise that is always the same; classes take turns."""
    classes = model.config.network.num_classes
    labels = np.arange(num) % classes if classes else None
    return to_uint8(sample_images(model, num, sigmas=[model.config.noise.sigma_max], seed=0, labels=labels))
