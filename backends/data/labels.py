"""The classes of images: their labels as numbers, given by folders, by files beside the images, or by a column."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ict_backends.errors import DataError

# The format of EDM and StyleGAN: {"labels": [["00000/img00000000.png", 6], ...]}
LABELS_FILE = "dataset.json"
# The files of WebDataset that hold the class of the image of the same name.
CLASS_SUFFIX = ".cls"
# Labels are below this number; larger ones are no classes but, for example, the ids of records.
MAX_CLASSES = 10**6
# Folders of the systems that keep files, without a dot: archivers of macOS, and the storage of Synology, QNAP, Windows.
_SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information"}


class Labels(NamedTuple):
    """The labels of a set.

    Attributes:
        numbers: [n] int64 in 0..MAX_CLASSES-1, or None where the set has no classes.
        classes: the names of the labels, by number; empty where they have none.
        note: why there are no classes, where that may surprise; or "".
    """

    numbers: np.ndarray | None
    classes: tuple[str, ...] = ()
    note: str = ""


NO_LABELS = Labels(None)


def is_hidden(name: str) -> bool:
    """True if the name a/b/c of a file or folder has a part that begins with a dot, or is a system's own."""
    return any(part.startswith(".") or part in _SYSTEM for part in name.split("/"))


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names a/b/c of files part by part: the order of every folder and archive."""
    return sorted(names, key=lambda name: name.split("/"))


def number_labels(what: str, values: np.ndarray | Sequence[object]) -> Labels:
    """Turn the labels of a set into numbers: integers stay, and names are numbered in their order.

    Where a label is missing (None or -1, as test sets have it), the set has no classes, and the note says so.

    Args:
        what: names the labels in errors, such as "data x.npz: its labels".
        values: [n] integers or booleans >= -1; or n of int, str, bool or None.

    Raises:
        DataError: the values are of another kind, below -1 or above MAX_CLASSES - 1.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "biu":
        numbers, missing = values, int((values == -1).sum()) if values.dtype.kind == "i" else 0
    else:
        known = [value for value in map(_plain, values) if value is not None and value != -1]
        missing = len(values) - len(known)
        kinds = {type(value) for value in known}
        if kinds == {str}:
            classes = tuple(sorted(set(map(str, known))))
            places = {name: i for i, name in enumerate(classes)}
            known = [places[str(name)] for name in known]
            if not missing:
                return Labels(np.array(known, dtype=np.int64), tuple(map(printable, classes)))
        elif kinds - {int, bool}:
            odd = next(value for value in known if type(value) not in (int, bool))
            raise DataError(f"{what} must be integers >= 0 or names, one an image, not {odd!r:.40}")
        # Python's integers have no bounds, those of NumPy do.
        numbers = np.array([min(max(int(n), -2), MAX_CLASSES) for n in known], dtype=np.int64)  # type: ignore[call-overload]
    if missing:
        return Labels(None, (), f"it has no classes: {missing:,} of {len(values):,} labels are -1 or missing")
    if numbers.min(initial=0) < 0 or numbers.max(initial=0) >= MAX_CLASSES:
        worst = values[int(np.argmin(numbers) if numbers.min() < 0 else np.argmax(numbers))]
        raise DataError(f"{what} must be in 0..{MAX_CLASSES - 1}, not {worst}; ids of records are no classes")
    return Labels(numbers.astype(np.int64))


def _plain(value: object) -> object:
    """A label without NumPy's types around it."""
    return value.item() if isinstance(value, np.generic) else value


def printable(name: str) -> str:
    """Write a name with escapes for what is no text: bytes that are not UTF-8, and control characters."""
    return "".join(c if c.isprintable() else _escape(c) for c in name)


def _escape(character: str) -> str:
    """An escape such as \\xe9; a byte that is not UTF-8 stands in a name as one of U+DC80 to U+DCFF."""
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else character.encode("unicode_escape").decode()


def classes_by_folder(names: Sequence[str], folders: Iterable[str]) -> Labels:
    """The classes of images by their folders: each folder at the top is a class.

    Where a single folder holds everything in folders of its own, the inner ones are the classes. Where an image lies
    outside of the folders, there are no classes.

    Args:
        names: [n] names a/b/c of the images.
        folders: the names of all folders, also of those without images.

    Raises:
        DataError: a class has no images.
    """
    paths = [name.split("/") for name in names]
    known = {tuple(folder.split("/")) for folder in folders} | {tuple(p[:i]) for p in paths for i in range(1, len(p))}
    top: tuple[str, ...] = ()
    while True:
        inside = sorted({f[len(top)] for f in known if len(f) > len(top) and f[: len(top)] == top})
        outside = next((name for name, path in zip(names, paths, strict=True) if len(path) == len(top) + 1), None)
        if outside is not None:
            return Labels(None, (), f"it has no classes: {outside} lies beside its folders" if inside else "")
        if len(inside) > 1 or any(len(path) == len(top) + 2 for path in paths):
            break
        top = (*top, inside[0])
    labels = {name: i for i, name in enumerate(inside)}
    numbers = np.array([labels[path[len(top)]] for path in paths], dtype=np.int64)
    empty = np.flatnonzero(np.bincount(numbers, minlength=len(inside)) == 0)
    if len(empty):
        folder = "/".join((*top, inside[empty[0]]))
        raise DataError(f"class folder {folder} holds no images; each folder is a class, so fill it or take it away")
    return Labels(numbers, tuple(map(printable, inside)))


def classes_by_file(content: bytes, names: Sequence[str]) -> Labels:
    """The classes of images by a `dataset.json`.

    Args:
        content: the bytes of the file.
        names: [n] names of the images, as the file has them.

    Raises:
        DataError: the file is damaged, or an image or a class does not match.
    """
    try:
        entries = json.loads(content)["labels"]
        if entries is None:
            return NO_LABELS
        labels = dict(entries)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f'{LABELS_FILE} must be {{"labels": [[NAME, CLASS], ...]}} or {{"labels": null}}; it is not: {error!r:.300}'
        ) from error
    if len(labels) < len(entries):
        raise DataError(f"{LABELS_FILE} names an image twice")
    for what, missing in (
        ("has no class for", set(names) - set(labels)),
        ("names what is not there:", set(labels) - set(names)),
    ):
        if missing:
            raise DataError(f"{LABELS_FILE} {what} {min(map(str, missing))} ({len(missing)} of {len(names)} images)")
    return number_labels(f"{LABELS_FILE}: the classes", [labels[name] for name in names])


def classes_by_class_files(files: Mapping[str, str], fetch: Callable[[str], bytes], names: Sequence[str]) -> Labels:
    """The classes of images by files beside them, as WebDataset has them: 000.cls holds the class of 000.jpg.

    Args:
        files: the names of the class files, by their keys (`sample_key`).
        fetch: returns the content of the file of a name.
        names: [n] names of the images.

    Raises:
        DataError: an image has no such file, or what it holds is no class.
    """
    missing = [name for name in names if sample_key(name) not in files]
    if missing:
        raise DataError(
            f"{missing[0]} has no {CLASS_SUFFIX} file, which other images have ({len(missing)} of {len(names)})"
        )
    texts = [fetch(files[sample_key(name)]).decode("utf-8", "surrogateescape").strip() for name in names]
    whole = all(re.fullmatch(r"-?[0-9]{1,30}", text) for text in texts)
    return number_labels(f"the {CLASS_SUFFIX} files' classes", [int(text) if whole else text for text in texts])


def sample_key(name: str) -> str:
    """The part of a name a/b/c that the files of one sample of WebDataset share: up to the first dot of c."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]
