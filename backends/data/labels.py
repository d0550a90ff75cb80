"""The classes of image files, given by their folders or by a `dataset.json` beside them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np

from ict_backends.errors import DataError

# The format of EDM and StyleGAN: {"labels": [["00000/img00000000.png", 6], ...]}
LABELS_FILE = "dataset.json"


def is_hidden(name: str) -> bool:
    """True if the name a/b/c of a file or folder has a part that begins with a dot, or is a Mac archiver's."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names a/b/c of files part by part: the order of every folder and archive."""
    return sorted(names, key=lambda name: name.split("/"))


def classes_by_folder(names: Sequence[str], folders: Iterable[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The classes of images by their folders: each folder at the top is a class.

    Where a single folder holds everything in folders of its own, the inner ones are the classes. Where an image lies
    outside of the folders, there are no classes.

    Args:
        names: [n] names a/b/c of the images.
        folders: the names of all folders, also of those without images.

    Returns:
        [n] int64 labels, and the names of the classes, by label; or None and ().

    Raises:
        DataError: a class has no images.
    """
    paths = [name.split("/") for name in names]
    known = {tuple(folder.split("/")) for folder in folders} | {tuple(p[:i]) for p in paths for i in range(1, len(p))}
    top: tuple[str, ...] = ()
    while True:
        inside = sorted({f[len(top)] for f in known if len(f) > len(top) and f[: len(top)] == top})
        if any(len(path) == len(top) + 1 for path in paths):
            return None, ()
        if len(inside) > 1 or any(len(path) == len(top) + 2 for path in paths):
            break
        top = (*top, inside[0])
    labels = {name: i for i, name in enumerate(inside)}
    numbers = np.array([labels[path[len(top)]] for path in paths], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(numbers, minlength=len(inside)) == 0)
    if len(empty):
        folder = "/".join((*top, inside[empty[0]]))
        raise DataError(f"class folder {folder} holds no images; each folder is a class, so fill it or take it away")
    return numbers, tuple(inside)


def classes_by_file(content: bytes, names: Sequence[str]) -> np.ndarray | None:
    """The classes of images by a `dataset.json`; None where it says that there are none.

    Args:
        content: the bytes of the file.
        names: [n] names of the images, as the file has them.

    Returns:
        [n] int64 labels.

    Raises:
        DataError: the file is damaged, or an image or a class does not match.
    """
    try:
        entries = json.loads(content)["labels"]
        if entries is None:
            return None
        labels = dict(entries)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f'{LABELS_FILE} must be {{"labels": [[NAME, CLASS], ...]}} or {{"labels": null}}; it is not: {error!r}'
        ) from error
    if len(labels) < len(entries):
        raise DataError(f"{LABELS_FILE} names an image twice")
    for what, missing in (
        ("has no class for", set(names) - set(labels)),
        ("names what is not there:", set(labels) - set(names)),
    ):
        if missing:
            raise DataError(f"{LABELS_FILE} {what} {min(map(str, missing))} ({len(missing)} of {len(names)} images)")
    for name in names:
        if type(labels[name]) is not int or not 0 <= labels[name] < 2**31:
            raise DataError(f"{LABELS_FILE}: the class of {name} must be an integer >= 0, not {labels[name]!r:.40}")
    return np.array([labels[name] for name in names], dtype=np.int64)
