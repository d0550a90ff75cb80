"""CIFAR-10 and CIFAR-100 as their authors publish them: pickles, read without running any code in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ict_backends.data.labels import printable
from ict_backends.data.pickles import PickledArray, unpickle
from ict_backends.data.source import Source
from ict_backends.data.tar import read_tar_file, tar_members
from ict_backends.errors import DataError

_PIXELS = 3 * 32 * 32


class _Kind(NamedTuple):
    """The file names of a set and the keys in its pickles.

    Attributes:
        batches: the names of the files of training images.
        meta: the name of the file with the names of classes.
        labels: the key of the labels in a batch.
        names: the key of the names of classes in `meta`.
    """

    batches: tuple[str, ...]
    meta: str
    labels: bytes
    names: bytes


_KINDS = (
    _Kind(tuple(f"data_batch_{i}" for i in range(1, 6)), "batches.meta", b"labels", b"label_names"),
    _Kind(("train",), "meta", b"fine_labels", b"fine_label_names"),
)


class CifarFiles(NamedTuple):
    """The names of a set's files in a folder or an archive; `meta` is None where there are no names of classes."""

    kind: _Kind
    batches: list[str]
    meta: str | None


def find_cifar(names: Sequence[str]) -> CifarFiles | None:
    """Find the training batches of CIFAR among the names a/b/c of files; None where there are none."""
    for kind in _KINDS:
        anchor = kind.batches[0] if len(kind.batches) > 1 else kind.meta
        folders = [n.removesuffix(anchor) for n in names if n.rpartition("/")[2] == anchor]
        if len(folders) != 1 or len(names) > 20:  # a folder of images may have a file `meta`, too
            continue
        batches = [folders[0] + name for name in kind.batches]
        if not set(batches) & set(names):
            continue
        meta = folders[0] + kind.meta
        return CifarFiles(kind, batches, meta if meta in names else None)
    return None


def open_cifar_folder(folder: Path, files: CifarFiles) -> Source:
    """Open the training images of an unpacked set, in the order of the batches. Raises DataError if damaged."""

    def read(name: str) -> bytes:
        path = folder / name
        if not path.is_file():
            raise DataError(f"data {folder} has no file {name}, which is one of {len(files.batches)} batches")
        return path.read_bytes()

    return _open(folder, files, read)


def open_cifar_tar(path: Path, files: CifarFiles) -> Source:
    """Open the training images of a file like `cifar-10-python.tar.gz`, in the order of the batches.

    Raises DataError where the file is damaged.
    """
    wanted = {*files.batches, files.meta}
    members = tar_members(path)
    content = {n: read_tar_file(path, n, info, file) for n, info, file in members if file and n in wanted}

    def read(name: str) -> bytes:
        if name not in content:
            raise DataError(f"data {path} has no file {name}, which is one of {len(files.batches)} batches")
        return content.pop(name)

    return _open(path, files, read)


def _open(where: Path, files: CifarFiles, read: Callable[[str], bytes]) -> Source:
    batches = [_batch(where, name, read(name), files.kind.labels) for name in files.batches]
    images = np.concatenate([images for images, _ in batches])
    labels = np.concatenate([labels for _, labels in batches])
    heads = ((name.rpartition("/")[2], len(labels)) for name, (_, labels) in zip(files.batches, batches, strict=True))
    names = [f"{head}[{i}]" for head, count in heads for i in range(count)]
    classes = () if files.meta is None else _class_names(unpickle(where, files.meta, read(files.meta)), files.kind)
    return Source(str(where), names, labels, classes if len(classes) > labels.max() else (), lambda: enumerate(images))


def _batch(where: Path, name: str, content: bytes, key: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The images [n, 3, 32, 32] uint8 and labels [n] int64 of a batch, whose rows are planes of R, G, B."""
    members = unpickle(where, name, content)
    data, labels = members.get(b"data"), members.get(key)
    ok = isinstance(labels, list) and len(labels) > 0 and all(type(i) is int and 0 <= i < 100 for i in labels)
    if not ok or not isinstance(data, PickledArray) or labels is None:
        raise DataError(f"data {where}: {name} is no batch of CIFAR: it needs `data` and `{key.decode()}`")
    return data.bytes_of(where, name, (len(labels), _PIXELS)).reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _class_names(meta: dict[bytes, Any], kind: _Kind) -> tuple[str, ...]:
    names = meta.get(kind.names)
    if not isinstance(names, list) or not all(isinstance(name, bytes | str) for name in names):
        return ()
    return tuple(printable(n.decode("utf-8", "surrogateescape") if isinstance(n, bytes) else n) for n in names)
