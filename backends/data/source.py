"""The records that readers of encoded images return: names, classes, and the content of the files in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ict_backends.data.decode import Preparation, decode, prepare
from ict_backends.data.labels import Labels
from ict_backends.errors import DataError

# The content of an image file; or its pixels, [c, h, w] uint8; or the error of an unreadable one.
Content = bytes | np.ndarray | DataError


class Source(NamedTuple):
    """A data set whose images are listed but not decoded yet.

    Attributes:
        where: the user's name for the set.
        names: [n] unique names of the images, in the order of the data set.
        labels: [n] int64 >= 0, or None.
        classes: the names of the labels, by number; empty where they have none.
        notes: what was left out or chosen, in words that go on after the name of the set, such as "leaves out ...".
        read: yields each (index, content) once, in the order that is fastest.
    """

    where: str
    names: Sequence[str]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    read: Callable[[], Iterator[tuple[int, Content]]]
    notes: tuple[str, ...] = ()


def source_of(
    where: str,
    names: Sequence[str],
    labels: Labels,
    read: Callable[[], Iterator[tuple[int, Content]]],
    notes: Sequence[str] = (),
) -> Source:
    """Make a source of a set's labels; a note on these goes after the others, and names must cover every label."""
    named = labels.numbers is not None and len(labels.classes) > labels.numbers.max(initial=0)
    every_note = tuple(filter(None, [*notes, labels.note]))
    return Source(where, names, labels.numbers, labels.classes if named else (), read, every_note)


class Located(NamedTuple):
    """A data set that was found but not opened yet.

    Attributes:
        files: (name, path) of each file that the content of the set depends on.
        note: everything else that the content depends on.
        open: reads the names and classes.
    """

    files: Sequence[tuple[str, Path]]
    note: str
    open: Callable[[], Source]


# The bytes of decoded images from which on no more of a chunk are decoded at once.
_HELD = 2**26
# The pixels of an image, [c, h, w] uint8, or the error of an unreadable one.
Decoded = np.ndarray | DataError


class Chunk(NamedTuple):
    """Some images to decode: (index, name, content) of each, and how they are cropped and resampled, if at all."""

    images: list[tuple[int, str, Content]]
    preparation: Preparation | None


def decode_chunk(chunk: Chunk) -> list[tuple[int, Decoded]]:
    """Decode the images from the first on: (index, [c, h, w] uint8), or (index, the error of an unreadable one).

    It ends after the image with which they take more than `_HELD` bytes, since a few kilobytes can unpack to any size.
    Raises DataError where the preparation does not fit an image.
    """
    done: list[tuple[int, Decoded]] = []
    held = 0
    for i, name, content in chunk.images:
        image = _decode(content, name, chunk.preparation)
        done.append((i, image))
        held += 0 if isinstance(image, DataError) else image.nbytes
        if held > _HELD:
            break
    return done


def _decode(content: Content, name: str, preparation: Preparation | None) -> Decoded:
    if isinstance(content, bytes):
        try:
            content = decode(content, name)
        except DataError as error:
            return error
    if isinstance(content, DataError) or preparation is None:
        return content
    return prepare(content, name, size=preparation.size, crop=preparation.crop)
