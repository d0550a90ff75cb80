"""Downsampled ImageNet as it is published: batches as .npz files or pickles, in a folder or in .zip files."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ict_backends.data.labels import Labels
from ict_backends.data.limits import check_ratio
from ict_backends.data.listing import ARCHIVE_ERRORS, archive_damage, safe_name
from ict_backends.data.npz import IMAGE_ARRAYS, npz_names, read_member
from ict_backends.data.pickles import PickledArray, unpickle
from ict_backends.data.source import Content, Source, source_of
from ict_backends.errors import DataError

_CLASSES, _BATCHES = 1000, 10
_BATCH = re.compile(r"train_data_batch_(\d{1,6})(\.npz)?")
_PART = re.compile(r"imagenet\d+.*train.*\.zip", re.IGNORECASE)
# The most bytes of a batch, of which those of 64x64 pixels have 1.6 GB.
_MOST_BYTES = 2**32


class Batch(NamedTuple):
    """A batch of training images.

    Attributes:
        number: its number, from 1.
        name: the name of its file.
        file: a context with its file.
    """

    number: int
    name: str
    file: Callable[[], AbstractContextManager[Path]]


def is_imagenet_batch(path: Path) -> bool:
    """True if a file is a batch of ImageNet, by its name or the names of its arrays. Raises DataError if damaged."""
    if path.suffix.lower() != ".npz":
        return _BATCH.fullmatch(path.name) is not None
    names = set(npz_names(path))
    return "data" in names and not names & set(IMAGE_ARRAYS)


def batches_in_folder(folder: Path, names: Sequence[str]) -> list[Batch]:
    """The training batches among the names a/b/c of a folder's files, also within .zip files of ImageNet."""
    found = [_batch(name, partial(_in_place, folder / name)) for name in _batch_names(names)]
    if found:
        return found
    parts = [folder / name for name in names if _PART.fullmatch(name.rpartition("/")[2])]
    return [batch for part in parts for batch in batches_in_zip(part)]


def batches_in_zip(path: Path) -> list[Batch]:
    """The training batches in a .zip file; none if it has none, or is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()]
    except (*ARCHIVE_ERRORS, OSError):  # whatever reads it next says so
        return []
    return [_batch(name, partial(_unpacked, path, name)) for name in _batch_names(names)]


def _batch(name: str, file: Callable[[], AbstractContextManager[Path]]) -> Batch:
    match = _BATCH.fullmatch(name.rpartition("/")[2])
    assert match is not None  # by `_batch_names`
    return Batch(int(match[1]), match[0], file)


def _batch_names(names: Sequence[str]) -> list[str]:
    return [name for name in names if _BATCH.fullmatch(name.rpartition("/")[2])]


@contextlib.contextmanager
def _in_place(path: Path) -> Iterator[Path]:
    yield path


@contextlib.contextmanager
def _unpacked(path: Path, name: str) -> Iterator[Path]:
    """A context with a temporary file of a member of a .zip file, since arrays are read in any order of their bytes."""
    with archive_damage(path), zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
        info = archive.getinfo(name)
        if info.file_size > _MOST_BYTES:
            raise DataError(f"data {path}: {name} unpacks to more than the {_MOST_BYTES >> 30} GiB that are read")
        check_ratio(path, sum(member.file_size for member in archive.infolist()))
        unpacked = Path(folder) / safe_name(path, name).rpartition("/")[2]
        with archive.open(info) as member, open(unpacked, "wb") as file:
            shutil.copyfileobj(member, file, 2**20)
        yield unpacked


def open_imagenet(where: Path, batches: Sequence[Batch]) -> Source:
    """Open the images of batches, one of them in memory at a time. Raises DataError if damaged.

    Args:
        where: the folder or file.
        batches: the batches, in any order.
    """
    ordered = sorted(batches, key=lambda batch: batch.number)
    numbers = [batch.number for batch in ordered]
    twice = next((n for n in numbers if numbers.count(n) > 1), None)
    if twice is not None:
        raise DataError(f"data {where} has batch {twice} twice")
    labels = [_read(where, batch, labels_only=True)[1] for batch in ordered]
    names = [f"{batch.name}[{i}]" for batch, known in zip(ordered, labels, strict=True) for i in range(len(known))]
    missing = sorted(set(range(1, _BATCHES + 1)) - set(numbers))
    note = [f"has {len(numbers)} of the {_BATCHES} batches: {', '.join(map(str, missing))} are missing"]

    def read() -> Iterator[tuple[int, Content]]:
        return enumerate(image for batch in ordered for image in _read(where, batch)[0])

    return source_of(str(where), names, Labels(np.concatenate(labels)), read, note if missing else [])


def read_imagenet_batch(path: Path) -> tuple[np.ndarray, Labels]:
    """Read a batch: its images, [n, 3, s, s] uint8, and labels in 0..999.

    The file has the images as `data` [n, 3 s s], planes of R, G and B, and `labels` [n] in 1..1000.
    Raises DataError where it has anything else.
    """
    images, labels = _read(path, Batch(1, path.name, partial(_in_place, path)))
    return images, Labels(labels)


def _read(where: Path, batch: Batch, *, labels_only: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The images of a batch, [n, 3, s, s] uint8 (of no images where only labels are asked for), and labels [n]."""
    with batch.file() as path:
        try:
            data, labels = (_read_npz if path.suffix == ".npz" else _read_pickle)(path, labels_only=labels_only)
        except DataError as error:
            named = str(where) if where == path else f"{where}/{batch.name}"
            raise DataError(str(error).replace(str(path), named)) from error
    side = round((data.shape[-1] / 3) ** 0.5)
    return data.reshape(-1, 3, side, side), labels


def _read_npz(path: Path, *, labels_only: bool) -> tuple[np.ndarray, np.ndarray]:
    missing = {"data", "labels"} - set(npz_names(path))
    if missing:
        raise DataError(f"data {path} has no array `{missing.pop()}`, which batches of ImageNet have")
    labels = _check_labels(path, read_member(path, "labels"))
    data = np.empty((0, 3), np.uint8) if labels_only else read_member(path, "data")
    if not labels_only:
        _check_shape(path, data.shape, str(data.dtype), len(labels))
    return data, labels


def _read_pickle(path: Path, *, labels_only: bool) -> tuple[np.ndarray, np.ndarray]:
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(f"data {path} is larger than the {_MOST_BYTES >> 30} GiB that are read of a batch")
    members = unpickle(path, path.name, path.read_bytes())
    data, listed = members.get(b"data"), members.get(b"labels")
    if not isinstance(listed, list) or not isinstance(data, PickledArray) or not all(type(i) is int for i in listed):
        raise DataError(f"data {path} is no batch of ImageNet: it needs `data` and a list `labels`")
    labels = _check_labels(path, np.array(listed, dtype=np.int64) if max(listed, default=0) <= _CLASSES else np.ones(0))
    shape = data.shape
    if not isinstance(shape, tuple) or not all(type(side) is int for side in shape):
        shape = ()
    _check_shape(path, shape, "uint8", len(labels))
    return data.bytes_of(path, path.name, (shape[0], shape[1])), labels


def _check_shape(path: Path, shape: tuple[int, ...], kind: str, count: int) -> None:
    """Raise DataError unless an array is [count, 3 s s] uint8."""
    side = round((shape[-1] / 3) ** 0.5) if len(shape) == 2 else 0
    if kind != "uint8" or side < 1 or shape != (count, 3 * side * side):
        raise DataError(
            f"data {path}: `data` must be [{count}, 3 s s] uint8, one row a label, not {list(shape)} {kind}"
        )


def _check_labels(path: Path, labels: np.ndarray) -> np.ndarray:
    ok = labels.ndim == 1 and len(labels) > 0 and labels.dtype.kind in "iu"
    if not ok or labels.min() < 1 or labels.max() > _CLASSES:
        raise DataError(f"data {path}: `labels` of batches of ImageNet must be [n] integers in 1..{_CLASSES}")
    return labels.astype(np.int64) - 1
