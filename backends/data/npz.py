"""Images that are stored as arrays: .npz and .npy files."""

from __future__ import annotations

import contextlib
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ict_backends.data.labels import NO_LABELS, Labels, number_labels, printable
from ict_backends.data.source import Content, Source, source_of
from ict_backends.data.zips import check_directory
from ict_backends.errors import DataError

_CHANNELS = (1, 3)
# The names that an array of images can have; the first one that a file has counts.
IMAGE_ARRAYS = ("images", "arr_0")
# A file of more than LARGE bytes is read in pieces of about _PIECE bytes. An array of more than LARGE bytes that was
# packed to less than 1 / _PACKED of its size is refused: it may be meant to fill the memory.
LARGE, _PACKED, _PIECE = 2**30, 100, 2**22
# The errors that NumPy and zipfile raise for a damaged file.
_NPZ_ERRORS = (
    AttributeError,
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)

# Images [n, c, h, w] uint8, and their labels.
LabelledImages = tuple[np.ndarray, Labels]


def read_npy(path: Path) -> LabelledImages:
    """Read the images, [n, c, h, w] uint8, of an .npy file, which has no labels. Raises DataError."""
    return to_nchw(f"data {path}", read_member(path, "")), NO_LABELS


def read_npz(path: Path) -> LabelledImages:
    """Read the images, [n, c, h, w] uint8, and the labels of an .npz file.

    The images are its `images` or `arr_0`, the labels its `labels` or `arr_1`, and the names its `classes`.
    Raises DataError where the file is damaged or an array is none of these.
    """
    images = to_nchw(f"data {path}", read_member(path, _images_name(path)))
    return images, _labels(path, len(images))


def _images_name(path: Path) -> str:
    """The name of the array of images; for an .npy file, ""."""
    if path.suffix.lower() == ".npy":
        return ""
    names = npz_names(path)
    member = next((name for name in IMAGE_ARRAYS if name in names), None)
    if member is None:
        raise DataError(f"data {path} has no array `images` or `arr_0`; it has {', '.join(names) or 'none'}")
    return member


def _labels(path: Path, count: int) -> Labels:
    names = npz_names(path)
    label = next((name for name in ("labels", "arr_1") if name in names), None)
    if label is None:
        return NO_LABELS
    labels = check_labels(f"data {path}: labels", read_member(path, label), count)
    if labels.classes or "classes" not in names:
        return labels
    return labels._replace(classes=tuple(printable(str(name)) for name in read_member(path, "classes").ravel()))


def is_too_large(path: Path) -> bool:
    """True if a file of arrays is so large that `open_array` must read it in pieces."""
    if path.stat().st_size <= LARGE:
        return False
    return path.suffix.lower() == ".npy" or bool(set(IMAGE_ARRAYS) & set(npz_names(path)))


def open_array(path: Path) -> Source:
    """Open the images of an .npz or .npy file, which may be larger than the memory: they are read a few at a time.

    Raises DataError where the file is damaged or holds no images.
    """
    name = _images_name(path)
    with _open_member(path, name) as file:
        shape = _read_shape(path, file)
    to_nchw(f"data {path}", np.empty((min(1, shape[0]), *shape[1:]), dtype=np.uint8))
    labels = _labels(path, shape[0]) if name else NO_LABELS
    step = max(1, _PIECE // int(np.prod(shape[1:])))

    def read() -> Iterator[tuple[int, Content]]:
        with _open_member(path, name) as file:
            _read_shape(path, file)
            for first in range(0, shape[0], step):
                part = (min(step, shape[0] - first), *shape[1:])
                pixels = np.frombuffer(file.read(int(np.prod(part))), dtype=np.uint8).reshape(part)
                yield from enumerate(to_nchw(f"data {path}", pixels), start=first)
            _check_end(file)

    return source_of(str(path), [f"number {i}" for i in range(shape[0])], labels, read)


def _read_shape(path: Path, file: IO[bytes]) -> tuple[int, ...]:
    """The shape of an array of uint8, from the head of its file."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, kind = read(file)
    if kind != np.uint8 or by_columns or not shape:
        raise DataError(f"data {path}: images must be uint8 in 0..255, row by row, not {kind}")
    return shape


def npz_names(path: Path) -> list[str]:
    """The names of the arrays of an .npz file. Raises DataError where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            check_directory(archive, archive.infolist())
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _NPZ_ERRORS as error:
        raise _damaged(path, error) from error


def read_member(path: Path, name: str) -> np.ndarray:
    """Read the array `name` of an .npz file, or that of an .npy file (`name` ""), and check its checksum if it has one.

    Raises DataError where that fails.
    """
    with _open_member(path, name) as file:
        array = np.lib.format.read_array(file, allow_pickle=False)
        _check_end(file)
        return array


@contextlib.contextmanager
def _open_member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """A context with the file of an array: a member of an .npz file or, without a name, the .npy file itself.

    The errors that a damaged file raises in the context become DataError.
    """
    try:
        if not name:
            with open(path, "rb") as file:
                yield file
            return
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(f"{name}.npy")
            if info.file_size > max(LARGE, _PACKED * info.compress_size):
                raise ValueError(f"{name} unpacks to {info.file_size >> 30} GiB, more than {_PACKED} times its size")
            with archive.open(info) as file:
                yield file
    except _NPZ_ERRORS as error:
        raise _damaged(path, error) from error


def _check_end(file: IO[bytes]) -> None:
    if file.read(1):  # in a zip, this also checks the checksum
        raise ValueError("it goes on after its array")


def _damaged(path: Path, error: Exception) -> DataError:
    reason = str(error) or type(error).__name__
    return DataError(f"data {path} is not a readable {path.suffix} file of plain arrays: {reason}")


def to_nchw(what: str, images: np.ndarray) -> np.ndarray:
    """Bring images into the layout [n, c, h, w].

    Args:
        what: names the images in the error, such as "data x.npz".
        images: [n, h, w], [n, h, w, c] or [n, c, h, w] uint8, c = 1 or 3.

    Raises:
        DataError: the images are of another type or shape, or there are none.
    """
    if images.dtype != np.uint8:
        raise DataError(f"{what}: images must be uint8 in 0..255, not {images.dtype}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in _CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in _CHANNELS:
        actual = list(images.shape)
        raise DataError(f"{what}: images must be [n, h, w], [n, h, w, c] or [n, c, h, w] with c 1 or 3, not {actual}")
    if 0 in images.shape:
        raise DataError(f"{what} holds no images: their shape is {list(images.shape)}")
    return np.ascontiguousarray(images)


def check_labels(what: str, labels: np.ndarray, count: int) -> Labels:
    """Number labels, [count] integers or names, one an image. Raises DataError, naming them, if they are no such."""
    if labels.shape != (count,) or labels.dtype.kind not in "biuUS":
        actual = f"{list(labels.shape)} {labels.dtype}"
        raise DataError(f"{what} must be [{count}] integers >= 0 or names, one an image, not {actual}")
    names = labels.dtype.kind == "S"
    return number_labels(what, [name.decode("utf-8", "surrogateescape") for name in labels] if names else labels)
