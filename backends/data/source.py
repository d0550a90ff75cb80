"""What every reader of encoded images gives: names, classes, and the content of the files in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ict_backends.data.decode import Preparation, decode, prepare
from ict_backends.errors import DataError

# The content of an image file; or its pixels, [c, h, w] uint8; or why there are none.
Content = bytes | np.ndarray | DataError


class Source(NamedTuple):
    """Images that are there and not decoded yet.

    Attributes:
        where: what the user calls it.
        names: [n], unique, in the order of the data set.
        labels: [n] int64 >= 0, or None.
        classes: their names, by label; empty where they have none.
        read: gives each (index, content) once, in the order in which it is fast.
    """

    where: str
    names: Sequence[str]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    read: Callable[[], Iterator[tuple[int, Content]]]


class Located(NamedTuple):
    """A data set that was found and not opened yet.

    Attributes:
        files: (name, path) of all that its content depends on.
        note: what it depends on besides.
        open: reads what there is of names and classes.
    """

    files: Sequence[tuple[str, Path]]
    note: str
    open: Callable[[], Source]


Decoded = np.ndarray | DataError


class Chunk(NamedTuple):
    """Some images to decode: (index, name, content) of each, and what is made of their pixels."""

    images: list[tuple[int, str, Content]]
    preparation: Preparation | None


def decode_chunk(chunk: Chunk) -> list[tuple[int, Decoded]]:
    """(index, pixels or why there are none) of each image. Raises DataError where the preparation does not fit one."""
    return [(i, _decode(content, name, chunk.preparation)) for i, name, content in chunk.images]


def _decode(content: Content, name: str, preparation: Preparation | None) -> Decoded:
    if isinstance(content, bytes):
        try:
            content = decode(content, name)
        except DataError as error:
            return error
    if isinstance(content, DataError) or preparation is None:
        return content
    return prepare(content, name, size=preparation.size, crop=preparation.crop)
