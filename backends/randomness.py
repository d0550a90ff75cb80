"""Host randomness: every stream is a function of its key, so nothing has to be saved to repeat it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

# The streams of one seed; the number goes into the Philox counter, so that streams never overlap.
_STEP, _EPOCH, _IMAGE, _LABEL = 1, 2, 3, 4


def _philox(stream: int, seed: int, index: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, stream]))


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The host generator of one training step."""
    return _philox(_STEP, seed, step)


@lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """[count] the order of the images in one epoch."""
    return _philox(_EPOCH, seed, epoch).permutation(count)


def batch_indices(seed: int, step: int, batch: int, count: int) -> np.ndarray:
    """[batch] the images of one step: epochs without replacement, one after the other, as a function of the step."""
    position = np.arange(step * batch, (step + 1) * batch)
    epoch, within = np.divmod(position, count)
    return np.concatenate([epoch_permutation(seed, int(e), count)[within[epoch == e]] for e in np.unique(epoch)])


def image_noises(seed: int, indices: Sequence[int], steps: int, shape: Sequence[int]) -> np.ndarray:
    """Sampling noise: [steps, b, *shape] float32, each image's a function of (seed, its index) alone.

    The noise of the first step does not depend on how many steps follow.
    """
    drawn = [_philox(_IMAGE, seed, i).standard_normal((steps, *shape), dtype=np.float32) for i in indices]
    return np.stack(drawn, axis=1)


def image_labels(seed: int, indices: Sequence[int], classes: int) -> np.ndarray:
    """[b] int64 random classes, each image's a function of (seed, its index) alone."""
    return np.array([_philox(_LABEL, seed, i).integers(classes) for i in indices], dtype=np.int64)
