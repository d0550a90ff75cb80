"""What every reader of encoded images gives: names, classes, and the content of the files in any order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ict_backends.decoding import decode, prepare
from ict_backends.errors import DataError

# What is given to a thread at a time: enough to outweigh the handing over, and never many large files.
_CHUNK_IMAGES, _CHUNK_BYTES = 64, 2**22

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


Prepare = Callable[[np.ndarray, str], np.ndarray]


def decoded(source: Source, prepared: Prepare = prepare) -> Iterator[tuple[int, np.ndarray | DataError]]:
    """Each (index, [c, h, w] uint8), or (index, why it cannot be read), decoded on all cores.

    Threads, not processes: Pillow and NumPy release the lock while they work, files of 32x32 gain as much from them as
    from processes that are sent their content, and a process that has loaded a framework is not forked safely.

    Args:
        prepared: what is made of the pixels of an image with a name; what it raises ends the iteration.
    """

    def work(chunk: Sequence[tuple[int, Content]]) -> list[tuple[int, np.ndarray | DataError]]:
        return [(i, _decode(content, f"{source.where}/{source.names[i]}", prepared)) for i, content in chunk]

    workers = available_cores()
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[list[tuple[int, np.ndarray | DataError]]]] = deque()
        for chunk in _chunks(source.read()):
            waiting.append(pool.submit(work, chunk))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _decode(content: Content, name: str, prepared: Prepare) -> np.ndarray | DataError:
    if isinstance(content, bytes):
        try:
            content = decode(content, name)
        except DataError as error:
            return error
    return content if isinstance(content, DataError) else prepared(content, name)


def _chunks(items: Iterator[tuple[int, Content]]) -> Iterator[list[tuple[int, Content]]]:
    chunk: list[tuple[int, Content]] = []
    held = 0
    for i, content in items:
        chunk.append((i, content))
        held += 0 if isinstance(content, DataError) else len(content)
        if len(chunk) == _CHUNK_IMAGES or held > _CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
