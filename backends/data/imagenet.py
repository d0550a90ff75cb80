"""Downsampled ImageNet as it is published: a folder of .npz batches, or one such batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ict_backends.data.npz import IMAGE_ARRAYS, npz_names, read_member
from ict_backends.data.source import Content, Source
from ict_backends.errors import DataError

_CLASSES = 1000
_BATCH = re.compile(r"train_data_batch_(\d+)\.npz")


def is_imagenet_batch(path: Path) -> bool:
    """True if an .npz file is a batch of ImageNet, by the names of its arrays. Raises DataError where it is damaged."""
    names = set(npz_names(path))
    return "data" in names and not names & set(IMAGE_ARRAYS)


def imagenet_batches(names: Sequence[str]) -> list[str]:
    """The names of the training batches among the names of a folder's files, ordered by their numbers."""
    numbers = {name: int(match[1]) for name in names if (match := _BATCH.fullmatch(name))}
    return sorted(numbers, key=numbers.__getitem__)


def open_imagenet(folder: Path, batches: Sequence[str]) -> Source:
    """Open the images of a folder of batches, one batch in memory at a time. Raises DataError if damaged."""
    paths = [folder / name for name in batches]
    labels = [_batch_labels(path) for path in paths]
    names = [f"{path.name}[{i}]" for path, known in zip(paths, labels, strict=True) for i in range(len(known))]

    def read() -> Iterator[tuple[int, Content]]:
        images = (image for path in paths for image in read_imagenet_batch(path)[0])
        return enumerate(images)

    return Source(str(folder), names, np.concatenate(labels), (), read)


def read_imagenet_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a batch: images [n, 3, s, s] uint8, and labels [n] int64 in 0..999.

    The file has the images as `data` [n, 3 s s], planes of R, G and B, and `labels` [n] in 1..1000.
    Raises DataError where it has anything else.
    """
    data, labels = read_member(path, "data"), _batch_labels(path)
    side = round((data.shape[-1] / 3) ** 0.5) if data.ndim == 2 else 0
    if data.dtype != np.uint8 or data.ndim != 2 or side < 1 or data.shape != (len(labels), 3 * side * side):
        actual = f"{list(data.shape)} {data.dtype}"
        raise DataError(f"data {path}: `data` must be [{len(labels)}, 3 s s] uint8, one row a label, not {actual}")
    return data.reshape(-1, 3, side, side), labels


def _batch_labels(path: Path) -> np.ndarray:
    missing = {"data", "labels"} - set(npz_names(path))
    if missing:
        raise DataError(f"data {path} has no array `{missing.pop()}`, which batches of ImageNet have")
    labels = read_member(path, "labels")
    ok = labels.ndim == 1 and len(labels) > 0 and labels.dtype.kind in "iu"
    if not ok or labels.min() < 1 or labels.max() > _CLASSES:
        raise DataError(f"data {path}: `labels` of batches of ImageNet must be [n] integers in 1..{_CLASSES}")
    return labels.astype(np.int64) - 1
