"""Random numbers of the host: every stream is a function of its key, so nothing has to be saved to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# The streams of one seed; the number goes into the Philox counter, so that streams never overlap.
_STEP, _EPOCH, _IMAGE, _LABEL, _SUBSET = 1, 2, 3, 4, 5


def _philox(stream: int, seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The host's random generator for one training step."""
    return _philox(_STEP, seed, step)


@lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of the images in one epoch: their numbers, [count] int64."""
    return _philox(_EPOCH, seed, epoch).permutation(count)


def batch_indices(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """The numbers of the images of one step, [batch] int64, as a function of the step.

    Epochs of `count` images follow one after the other, each a permutation.
    """
    position = np.arange(step * batch, (step + 1) * batch)
    epoch, within = np.divmod(position, count)
    return np.concatenate([epoch_permutation(seed, int(e), count)[within[epoch == e]] for e in np.unique(epoch)])


def image_noises(seed: int, indices: Sequence[int], steps: int, shape: Sequence[int]) -> np.ndarray:
    """Sampling noise, [steps, b, *shape] float32: that of each image is a function of (seed, its index) only.

    The noise of the first step does not depend on how many steps follow.
    """
    drawn = [_philox(_IMAGE, seed, i).standard_normal((steps, *shape), dtype=np.float32) for i in indices]
    return np.stack(drawn, axis=1)


def image_labels(seed: int, indices: Sequence[int], classes: int) -> np.ndarray:
    """Random classes in 0..classes-1, [b] int64: that of each image is a function of (seed, its index) only."""
    return np.array([_philox(_LABEL, seed, i).integers(classes) for i in indices], dtype=np.int64)


def random_subset(count: int, size: int) -> np.ndarray:
    """Which of `count` images to measure if only `size` are: their numbers, [size] int64, rising; always the same.

    The first ones would be of the first classes where the images are sorted by class.
    """
    return np.sort(_philox(_SUBSET, 0, 0).choice(count, size, replace=False))
