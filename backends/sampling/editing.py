"""Editing images with a trained model: `ict_core.editing` on NumPy arrays, the same for every backend."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from einops import rearrange

from ict_backends.errors import UsageError
from ict_backends.images import to_uint8
from ict_backends.protocols import Model
from ict_backends.randomness import image_noises
from ict_core import Config, editing, karras_sigmas

# [b, c, h, w] float32 in [-1, 1].
Images = np.ndarray


def edit_levels(config: Config, steps: int, *, below: float | None = None) -> list[float]:
    """The `steps` falling noise levels of an edit: a Karras schedule without its last level, sigma_min.

    Args:
        config: the configuration of the model.
        steps: the number of evaluations, >= 1.
        below: the first level, > sigma_min; by default sigma_max.
    """
    noise = config.noise
    top = noise.sigma_max if below is None else below
    return [float(s) for s in karras_sigmas(steps + 1, sigma_min=noise.sigma_min, sigma_max=top, rho=noise.rho)[:0:-1]]


class Editor:
    """Edits images, [b, c, h, w] float32 in [-1, 1], with a trained model.

    The noise of image i depends on the seed and on i only, as in sampling.

    Args:
        model: the trained model.
        levels: falling noise levels, each of which costs one evaluation; `denoise` does not use them.
        seed: of the noise.
        labels: [b] classes for a conditional model.
        guidance: the scale of classifier-free guidance (`ict_core.guided`); 1 is none.
    """

    def __init__(
        self,
        model: Model,
        levels: Sequence[float],
        *,
        seed: int = 0,
        labels: np.ndarray | None = None,
        guidance: float = 1.0,
    ) -> None:
        self._f, self._config = partial(model.consistency, labels=labels, guidance=guidance), model.config
        self._levels, self._seed = list(levels), seed

    def inpaint(self, images: Images, known: np.ndarray) -> Images:
        """Fill in the pixels that are not known.

        Args:
            images: [b, c, h, w]; the values of unknown pixels do not matter.
            known: [b, c, h, w] bool, True where `images` is to be kept.

        Returns:
            [b, c, h, w] float32, equal to `images` where `known` is True.
        """
        return editing.inpaint(self._f, images, known, *self._path(images), sigma_min=self._sigma_min)

    def colorize(self, images: Images) -> Images:
        """Give RGB images, [b, 3, h, w], new colours with the same luma: [b, 3, h, w] float32."""
        return editing.colorize(self._f, images, *self._path(images), sigma_min=self._sigma_min)

    def super_resolve(self, images: Images) -> Images:
        """Enlarge images to the model's size: [b, c, h / p, w / p] to [b, c, h, w] float32.

        The mean of each p x p patch of the result is the pixel of `images` that it comes from.
        """
        size = self._config.data.shape[1] // images.shape[2]
        return editing.super_resolve(self._f, images, *self._path(images), size=size, sigma_min=self._sigma_min)

    def stroke(self, drawings: Images) -> Images:
        """Turn coarse drawings, [b, c, h, w], into images of the same shape, layout and colours.

        The larger the first level is, the less is kept of the drawings.
        """
        return editing.stroke(self._f, drawings, *self._path(drawings), sigma_min=self._sigma_min)

    def denoise(self, images: Images, sigma: float) -> Images:
        """Remove noise of standard deviation `sigma`, in (0, sigma_max], from images [b, c, h, w] in one evaluation."""
        return editing.denoise(self._f, images, np.full(len(images), sigma, dtype=np.float32))

    def add_noise(self, images: Images, sigma: float) -> Images:
        """Add noise of standard deviation `sigma`, which `denoise` removes, to images [b, c, h, w]."""
        return images + np.float32(sigma) * self._noises(len(images), 1)[0]

    @property
    def _sigma_min(self) -> float:
        return self._config.noise.sigma_min

    def _noises(self, batch: int, steps: int) -> np.ndarray:
        return image_noises(self._seed, range(batch), steps, self._config.data.shape)

    def _path(self, images: Images) -> tuple[np.ndarray, list[float]]:
        return self._noises(len(images), len(self._levels)), self._levels


def interpolate(
    model: Model,
    a: int,
    b: int,
    num: int,
    *,
    sigmas: Sequence[float],
    seed: int = 0,
    labels: np.ndarray | None = None,
    guidance: float = 1.0,
) -> Images:
    """Sample images between two others of the same seed, by rotating the noise of one into that of the other.

    Args:
        model: the trained model.
        a, b: numbers of the images at the ends, as in `sample_images`.
        num: the number of images, >= 2, both ends included.
        sigmas: falling noise levels, one a step; the first one is the model's sigma_max.
        seed: of the noise.
        labels: [num] classes, for a conditional model.
        guidance: as for `Editor`.

    Returns:
        [num, c, h, w] float32 in [-1, 1].
    """
    noises = image_noises(seed, [a, b], len(sigmas), model.config.data.shape)
    between = [editing.interpolate_noise(z[0], z[1], np.linspace(0, 1, num).tolist()) for z in noises]
    return model.sample(np.stack(between), sigmas, labels, guidance=guidance)


def lower(images: Images, factor: int) -> Images:
    """Shrink images to the means of their factor x factor patches: [b, c, h, w] to [b, c, h / factor, w / factor].

    Raises:
        UsageError: the factor does not divide height and width.
    """
    height, width = images.shape[2:]
    if height % factor or width % factor:
        sides = height if height == width else f"{height}x{width}"
        raise UsageError(f"--factor {factor} must divide the image's size, {sides}")
    return editing.patch_means(images, size=factor)


def enlarge(images: Images, factor: int) -> Images:
    """Enlarge images by repeating each pixel: [b, c, h, w] to [b, c, factor h, factor w]."""
    return editing.repeat_pixels(images, size=factor)


def side_by_side(*columns: Images) -> np.ndarray:
    """Interleave several versions of the same images, for a grid with a row an image.

    Args:
        columns: k arrays [b, c, h, w] in [-1, 1].

    Returns:
        [b * k, c, h, w] uint8: all versions of the first image, then those of the second, ...
    """
    return rearrange(to_uint8(np.stack(columns)), "k b c h w -> (b k) c h w")
