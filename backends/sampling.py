"""Sampling many images: their noise, labels and batches, the same for every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from ict_backends.images import to_uint8
from ict_backends.randomness import image_noises

from ict_core import Config


class Model(Protocol):
    """What `load_model` gives: NumPy in and out, NCHW float32."""

    config: Config

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
    for images in sample_batches(model, num, sigmas=sigmas, seed=seed, labels=labels, batch=batch):
        parts.append(images)
        on_batch(len(images))
    return np.concatenate(parts)


def sample_batches(
    model: Model,
    num: int,
    *,
    sigmas: Sequence[float],
    seed: int,
    labels: np.ndarray | None = None,
    batch: int = 256,
) -> Iterator[np.ndarray]:
    """The images of `sample_images`, [b, c, h, w] a batch, one batch after the other."""
    for first in range(0, num, batch):
        indices = range(first, min(first + batch, num))
        noises = image_noises(seed, indices, len(sigmas), model.config.data.shape)
        yield model.sample(noises, sigmas, None if labels is None else labels[first : indices.stop])


def preview(model: Model, num: int = 64) -> np.ndarray:
    """[num, c, h, w] uint8 one-step samples from noise that is always the same; classes take turns."""
    classes = model.config.network.num_classes
    labels = np.arange(num) % classes if classes else None
    return to_uint8(sample_images(model, num, sigmas=[model.config.noise.sigma_max], seed=0, labels=labels))
