"""Edits of images with a trained model, in Python: those of `ict edit`, on uint8 images [n, h, w, c]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from einops import rearrange

from ict_backends.data.decode import fit_image
from ict_backends.data.npz import to_nchw
from ict_backends.errors import UsageError
from ict_backends.images import to_float, to_uint8
from ict_backends.protocols import Model
from ict_backends.python.words import in_python_words
from ict_backends.runs.folder import RunDir, class_counts
from ict_backends.sampling.choices import (
    Labels,
    as_labels,
    check_at_least,
    check_colours,
    check_guidance,
    check_level,
    check_seed,
    check_small,
    edit_sigmas,
    resolve_labels,
    resolve_sigmas,
    small_factor,
    warn_of_edits,
)
from ict_backends.sampling.editing import Editor, edit_levels, interpolate, lower
from ict_core import Config


class Edits(NamedTuple):
    """The edits of a model, each with the parameters that the options of `ict edit` have.

    Images are uint8 [n, h, w, c], of the model's size; what is given may also be [n, h, w] or [n, c, h, w]. All edits
    return [n, h, w, c]. `labels` are the classes of the images, in turn, and `guidance` is how strongly they are of
    them, as for `TrainedModel.sample`; `seed` is that of the noise; `steps` is the number of evaluations of the model,
    >= 1, and `sigmas` are their falling noise levels instead. With `resize`, images of another size or other colours
    are cropped, resampled and converted. What is not allowed raises UsageError or DataError, whose message says what
    is.

    Attributes:
        model: the model, for float32 arrays.
        run: the run that it is from.
        classes: the names of its classes, or None.
    """

    model: Model
    run: RunDir
    classes: list[str] | None

    @in_python_words
    def inpaint(
        self,
        images: np.ndarray,
        mask: np.ndarray,
        *,
        steps: int = 40,
        sigmas: Sequence[float] | None = None,
        labels: Labels | np.ndarray | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        resize: bool = False,
    ) -> np.ndarray:
        """Fill in the masked part of images; the rest stays as it is.

        Args:
            images: uint8; the values of what is filled in do not matter.
            mask: [h, w] or [n, h, w] bool, True where to fill in. Of a mask picture, that is `picture >= 128`.
            steps, sigmas, labels, guidance, seed, resize: as the class says.
        """
        given = self._given(images, resize=resize)
        known = ~np.broadcast_to(_mask(mask, given.shape), given.shape)
        edit = self._editor(len(given), labels, guidance, seed, edit_sigmas(self._config, steps, sigmas))
        return _returned(edit.inpaint(given, known))

    @in_python_words
    def colorize(
        self,
        images: np.ndarray,
        *,
        steps: int = 40,
        sigmas: Sequence[float] | None = None,
        labels: Labels | np.ndarray | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        resize: bool = False,
    ) -> np.ndarray:
        """Give images new colours, but keep their luma.

        Args:
            images: uint8, grey or RGB; the colours of RGB images do not matter.
            steps, sigmas, labels, guidance, seed, resize: as the class says.
        """
        check_colours(self._config)
        pixels = to_nchw("images", np.asarray(images))
        given = self._given(pixels.repeat(3, axis=1) if pixels.shape[1] == 1 else pixels, resize=resize)
        edit = self._editor(len(given), labels, guidance, seed, edit_sigmas(self._config, steps, sigmas))
        return _returned(edit.colorize(given))

    @in_python_words
    def super_resolve(
        self,
        images: np.ndarray,
        *,
        factor: int | None = None,
        steps: int = 40,
        sigmas: Sequence[float] | None = None,
        labels: Labels | np.ndarray | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        resize: bool = False,
    ) -> np.ndarray:
        """Enlarge images to the model's size. Each pixel becomes a patch that has the pixel as its mean.

        Args:
            images: uint8 [n, h / factor, w / factor, c]; or of the model's size, to be reduced by `factor` first.
            factor: how many times larger the result is; by default the model's size divided by the images'.
            steps, sigmas, labels, guidance, seed, resize: as the class says.
        """
        small = self._small(to_nchw("images", np.asarray(images)), factor, resize=resize)
        edit = self._editor(len(small), labels, guidance, seed, edit_sigmas(self._config, steps, sigmas))
        return _returned(edit.super_resolve(small))

    @in_python_words
    def denoise(
        self,
        images: np.ndarray,
        sigma: float,
        *,
        add_noise: bool = False,
        labels: Labels | np.ndarray | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        resize: bool = False,
    ) -> np.ndarray:
        """Remove noise of a known level from images, in one evaluation of the model.

        Args:
            images: uint8.
            sigma: the standard deviation of the noise, where pixels range from -1 to 1.
            add_noise: add this noise first, because the images are clean.
            labels, guidance, seed, resize: as the class says.
        """
        given = self._given(images, resize=resize)
        check_level(self._config, sigma)
        edit = self._editor(len(given), labels, guidance, seed, [self._config.noise.sigma_max])
        return _returned(edit.denoise(edit.add_noise(given, sigma) if add_noise else given, sigma))

    @in_python_words
    def stroke(
        self,
        drawings: np.ndarray,
        *,
        sigma: float = 5.0,
        steps: int = 40,
        labels: Labels | np.ndarray | None = None,
        guidance: float = 1.0,
        seed: int = 0,
        resize: bool = False,
    ) -> np.ndarray:
        """Turn coarse drawings into images.

        Args:
            drawings: uint8.
            sigma: the first noise level; a larger one keeps less of the drawing.
            steps, labels, guidance, seed, resize: as the class says.
        """
        given = self._given(drawings, resize=resize)
        check_level(self._config, sigma)
        check_at_least("steps", steps, 1)
        edit = self._editor(len(given), labels, guidance, seed, edit_levels(self._config, steps, below=sigma))
        return _returned(edit.stroke(given))

    @in_python_words
    def interpolate(
        self,
        first: int = 0,
        last: int = 1,
        *,
        num: int = 8,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        labels: Labels | np.ndarray | None = None,
        guidance: float = 1.0,
        seed: int = 0,
    ) -> np.ndarray:
        """Draw images that lead from one sample to another.

        Args:
            first, last: the numbers of the samples at the ends, as `TrainedModel.sample` draws them in this class.
            num: the number of images, >= 2, both ends included.
            steps, sigmas: the sampling steps or their noise levels, as for `TrainedModel.sample`.
            labels: as for `TrainedModel.sample`; by default class 0 for all images.
            guidance: as for `TrainedModel.sample`.
            seed: of the noise.

        Returns:
            [num, h, w, c] uint8.
        """
        for option, value, least in (("first", first, 0), ("last", last, 0), ("num", num, 2)):
            check_at_least(option, value, least)
        check_seed(seed)
        if first == last:
            raise UsageError(f"first = {first} and last = {last} are the same image")
        chosen = 0 if labels is None and self._config.network.num_classes else labels
        classes = self._labels(num, chosen)
        levels = resolve_sigmas(self._config, steps, sigmas, run=self.run)
        check_guidance(self._config, guidance)
        images = interpolate(self.model, first, last, num, sigmas=levels, seed=seed, labels=classes, guidance=guidance)
        return _returned(images)

    @property
    def _config(self) -> Config:
        return self.model.config

    def _given(self, images: np.ndarray, *, resize: bool) -> np.ndarray:
        """The images at the model's size, [n, c, h, w] float32 in [-1, 1]."""
        pixels, shape = to_nchw("images", np.asarray(images)), self._config.data.shape
        fitted = [fit_image(each, shape, resize=resize, what=f"images[{i}]") for i, each in enumerate(pixels)]
        return to_float(np.stack(fitted))

    def _small(self, pixels: np.ndarray, factor: int | None, *, resize: bool) -> np.ndarray:
        """The images to enlarge, [n, c, h / factor, w / factor] float32 in [-1, 1]."""
        size = pixels.shape[2]
        check_at_least("factor", 2 if factor is None else factor, 2)
        if resize or size == self._config.data.shape[1]:
            if factor is None:
                raise UsageError("images come to have the model's size: say by --factor how small to make them")
            return lower(self._given(pixels, resize=resize), factor)
        factor = small_factor(self._config, size, factor)
        check_small(self._config, pixels.shape[1:], factor, "images[0]")
        return to_float(pixels)

    def _editor(
        self, count: int, labels: Labels | np.ndarray | None, guidance: float, seed: int, levels: Sequence[float]
    ) -> Editor:
        check_seed(seed)
        check_guidance(self._config, guidance)
        warn_of_edits(self._config)
        return Editor(self.model, levels, seed=seed, labels=self._labels(count, labels), guidance=guidance)

    def _labels(self, count: int, labels: Labels | np.ndarray | None) -> np.ndarray | None:
        """The classes of `count` images, as `resolve_labels` returns them."""
        counts = class_counts(self.run, self._config)
        return resolve_labels(self._config, as_labels(labels), count, counts=counts, names=self.classes)


def _mask(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A mask as [n or 1, 1, h, w] bool, for images of a shape [n, c, h, w]."""
    given = np.asarray(mask)
    sizes = (shape[2:], (shape[0], *shape[2:]))
    if given.dtype != bool or given.shape not in sizes:
        wanted = " or ".join(str(list(size)) for size in sizes)
        raise UsageError(f"mask must be {wanted} bool, True where to fill in, not {list(given.shape)} {given.dtype}")
    if given.all() or not given.any():
        raise UsageError(f"mask is all {bool(given.all())}; True is filled in, False stays")
    return given.reshape(-1, 1, *shape[2:])


def _returned(images: np.ndarray) -> np.ndarray:
    return rearrange(to_uint8(images), "n c h w -> n h w c")
