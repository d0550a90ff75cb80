"""Editing images with a trained model: `ict_core.editing` on NumPy arrays, the same for every backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from einops import rearrange

from ict_backends.errors import UsageError
from ict_backends.images import to_uint8
from ict_backends.randomness import image_noises
from ict_backends.sampling.batches import Model
from ict_core import Config, editing, karras_sigmas
from ict_core.loss import ConsistencyFunction

Images = np.ndarray


def edit_levels(config: Config, steps: int, *, below: float | None = None) -> list[float]:
    """`steps` falling levels: of the Karras schedule from sigma_max, or from another level, without sigma_min."""
    noise = config.noise
    top = noise.sigma_max if below is None else below
    return [float(s) for s in karras_sigmas(steps + 1, sigma_min=noise.sigma_min, sigma_max=top, rho=noise.rho)[:0:-1]]


def consistency_of(model: Model, labels: np.ndarray | None) -> ConsistencyFunction:
    """The model's f(x, sigma) for given labels."""
    return lambda x, sigma: model.consistency(x, sigma, labels)


class Editor:
    """A model at work on images [b, c, h, w] float32 in [-1, 1]; image number i gets noise that is a function of
    (seed, i) alone.

    Args:
        levels: falling noise levels, each one evaluation; for `denoise` they are not used.
        labels: [b] classes for a conditional model.
    """

    def __init__(
        self, model: Model, levels: Sequence[float], *, seed: int = 0, labels: np.ndarray | None = None
    ) -> None:
        self._f, self._config = consistency_of(model, labels), model.config
        self._levels, self._seed = list(levels), seed

    def inpaint(self, images: Images, known: np.ndarray) -> Images:
        """The images with what is not known, bool [b, c, h, w], filled in."""
        return editing.inpaint(self._f, images, known, *self._path(images), sigma_min=self._sigma_min)

    def colorize(self, images: Images) -> Images:
        """RGB images of the same luma with other colours."""
        return editing.colorize(self._f, images, *self._path(images), sigma_min=self._sigma_min)

    def super_resolve(self, images: Images) -> Images:
        """Images of the model's size whose patches have the pixels of these, [b, c, h / p, w / p], as means."""
        size = self._config.data.shape[1] // images.shape[2]
        return editing.super_resolve(self._f, images, *self._path(images), size=size, sigma_min=self._sigma_min)

    def stroke(self, drawings: Images) -> Images:
        """Images that have the masses and colours of drawings: the more freely, the larger the first level."""
        return editing.stroke(self._f, drawings, *self._path(drawings), sigma_min=self._sigma_min)

    def denoise(self, images: Images, sigma: float) -> Images:
        """Images without their noise, which has standard deviation sigma."""
        return editing.denoise(self._f, images, np.full(len(images), sigma, dtype=np.float32))

    def add_noise(self, images: Images, sigma: float) -> Images:
        """The images with noise of standard deviation sigma: something to `denoise`."""
        return images + np.float32(sigma) * self._noises(len(images), 1)[0]

    @property
    def _sigma_min(self) -> float:
        return self._config.noise.sigma_min

    def _noises(self, batch: int, steps: int) -> np.ndarray:
        return image_noises(self._seed, range(batch), steps, self._config.data.shape)

    def _path(self, images: Images) -> tuple[np.ndarray, list[float]]:
        return self._noises(len(images), len(self._levels)), self._levels


def interpolate(
    model: Model, a: int, b: int, num: int, *, sigmas: Sequence[float], seed: int = 0, label: int | None = None
) -> Images:
    """[num, c, h, w] images from number a of a seed to its number b, their noise turned from one to the other."""
    noises = image_noises(seed, [a, b], len(sigmas), model.config.data.shape)
    between = [editing.interpolate_noise(z[0], z[1], np.linspace(0, 1, num).tolist()) for z in noises]
    return model.sample(np.stack(between), sigmas, None if label is None else np.full(num, label))


def lower(images: Images, factor: int) -> Images:
    """The means of factor x factor patches: [b, c, h, w] to [b, c, h / factor, w / factor]."""
    if images.shape[2] % factor:
        raise UsageError(f"--factor {factor} must divide the image's size, {images.shape[2]}")
    return editing.patch_means(images, size=factor)


def enlarge(images: Images, factor: int) -> Images:
    """Each pixel repeated: [b, c, h, w] to [b, c, factor h, factor w]."""
    return editing.repeat_pixels(images, size=factor)


def side_by_side(*columns: Images) -> np.ndarray:
    """[b, c, h, w] images of several kinds as [b * kinds, c, h, w] uint8, a row of kinds each."""
    return rearrange(to_uint8(np.stack(columns)), "k b c h w -> (b k) c h w")
