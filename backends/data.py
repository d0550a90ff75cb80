"""Images to train on, from wherever they are: uint8 NCHW in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ict_backends.errors import DataError, UsageError
from PIL import Image, UnidentifiedImageError

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_CHANNELS = (1, 3)


class Dataset(NamedTuple):
    """A set of images.

    Attributes:
        images: [n, c, h, w] uint8.
        labels: [n] int64, or None.
    """

    images: np.ndarray
    labels: np.ndarray | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """[channels, height, width]."""
        return self.images.shape[1:]


Fit = Callable[[np.ndarray], np.ndarray]


def load_data(source: str, *, unreadable: list[Path] | None = None, fit: Fit | None = None) -> Dataset:
    """Read a data set.

    Args:
        source: "digits" for the embedded ones; or the path of an `.npz` (`images` or `arr_0`, and
            optionally `labels` or `arr_1`) or `.npy` file of uint8 images, [n, h, w], [n, h, w, c] or
            [n, c, h, w] with 1 or 3 channels; or of a folder of equally large images, searched to any
            depth, where each folder directly inside it is a class if no image lies outside of them.
        unreadable: takes the files of a folder that are no images, which are then left out; without it they
            are an error.
        fit: makes of each image, [c, h, w] uint8, one of the wanted shape; without it all must be alike.

    Raises:
        DataError: in one line, what is missing, empty, unreadable, of mixed sizes or of a wrong type.
        UsageError: the embedded digits are asked for and scikit-learn is not installed.
    """
    if source == "digits":
        return _fitted(_load_digits(), fit)
    path = Path(source)
    if not path.exists():
        raise DataError(f'data {source} does not exist; give a folder, an .npz or .npy file, or "digits"')
    try:
        if path.is_dir():
            return _load_folder(path, unreadable, fit)
        if path.suffix in (".npz", ".npy"):
            return _fitted(_load_arrays(path), fit)
    except OSError as error:
        raise DataError(f"data {source} cannot be read: {error.strerror or error}") from error
    raise DataError(f'data {source} is of an unknown kind; give a folder, an .npz or .npy file, or "digits"')


def _fitted(dataset: Dataset, fit: Fit | None) -> Dataset:
    return dataset if fit is None else dataset._replace(images=np.stack([fit(image) for image in dataset.images]))


def _load_digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("data digits needs scikit-learn: pip install 'ict[digits]'") from error
    digits = load_digits()
    # Sixteen grey levels and white; 255/16 is not whole, so the values are off by up to 1/510 of the range.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Dataset(images[:, None], digits.target.astype(np.int64))


def _load_arrays(path: Path) -> Dataset:
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {name: loaded[name] for name in loaded.files} if path.suffix == ".npz" else {"images": loaded}
    except (AttributeError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"data {path} is not a readable {path.suffix} file of plain arrays: {error}") from error
    images = next((arrays[name] for name in ("images", "arr_0") if name in arrays), None)
    if images is None:
        raise DataError(f"data {path} has no array `images` or `arr_0`; it has {', '.join(arrays) or 'none'}")
    labels = next((arrays[name] for name in ("labels", "arr_1") if name in arrays), None)
    images = _to_nchw(path, images)
    return Dataset(images, None if labels is None else _check_labels(path, labels, len(images)))


def _to_nchw(path: Path, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise DataError(f"data {path}: images must be uint8 in 0..255, not {images.dtype}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in _CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in _CHANNELS:
        found = list(images.shape)
        raise DataError(
            f"data {path}: images must be [n, h, w], [n, h, w, c] or [n, c, h, w] with c 1 or 3, not {found}"
        )
    if 0 in images.shape:
        raise DataError(f"data {path} holds no images: their shape is {list(images.shape)}")
    return np.ascontiguousarray(images)


def _check_labels(path: Path, labels: np.ndarray, count: int) -> np.ndarray:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        found = f"{list(labels.shape)} {labels.dtype}"
        raise DataError(f"data {path}: labels must be [{count}] integers >= 0, one an image, not {found}")
    return labels.astype(np.int64)


def _load_folder(folder: Path, unreadable: list[Path] | None, fit: Fit | None) -> Dataset:
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"data {folder} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    images, read = np.empty(0), list[Path]()
    for path, image in _readable(paths, unreadable, fit):
        if not read:
            images = np.empty((len(paths), *image.shape), dtype=np.uint8)
        if image.shape != images.shape[1:]:
            raise DataError(
                f"data {folder}: all images must be alike, but {read[0].name} is {describe_shape(images.shape[1:])} "
                f"and {path.relative_to(folder)} is {describe_shape(image.shape)}"
            )
        images[len(read)] = image
        read.append(path)
    if not read:
        raise DataError(f"data {folder} holds no image that can be read; {len(paths)} cannot")
    images = images[: len(read)]
    tops = [path.relative_to(folder).parts[0] for path in read]
    if any((folder / top).is_file() for top in tops):
        return Dataset(images, None)
    classes = {name: i for i, name in enumerate(sorted(set(tops)))}
    return Dataset(images, np.array([classes[top] for top in tops], dtype=np.int64))


def _readable(
    paths: Sequence[Path], unreadable: list[Path] | None, fit: Fit | None
) -> Iterator[tuple[Path, np.ndarray]]:
    """The images that can be read; the others go into the list, or are an error where there is none."""
    for path in paths:
        try:
            image = read_image(path)
            yield path, image if fit is None else fit(image)
        except DataError:
            if unreadable is None:
                raise
            unreadable.append(path)


def read_image(path: Path) -> np.ndarray:
    """[c, h, w] uint8: grey images stay grey, all others become RGB. Raises DataError where it cannot be read."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} cannot be read: {error}") from error
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def describe_shape(shape: Sequence[int]) -> str:
    """[channels, height, width] in words: "32x32 RGB"."""
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"
