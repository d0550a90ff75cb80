"""What every reader of encoded images gives: names, classes, and the content of the files in any order."""

from __future__ import annotations

import contextlib
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ict_backends.data.decode import Preparation, decode, prepare
from ict_backends.environment import available_cores
from ict_backends.errors import DataError

# Sets of more images are worth the start of other processes.
MANY = 2000
# What is decoded at a time: enough to outweigh the handing over, and never many large files.
_CHUNK_IMAGES, _CHUNK_BYTES = 256, 2**22

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


def decoded(source: Source, preparation: Preparation | None) -> Iterator[tuple[int, Decoded]]:
    """Each (index, [c, h, w] uint8), or (index, why it cannot be read), decoded on all cores.

    Of many images, by other processes: reading the heads of small files takes longer than their pixels, and threads
    do that one after the other.

    Args:
        preparation: size and crop of all images; None leaves them as they are.

    Raises:
        DataError: the preparation does not fit an image.
    """
    workers = available_cores()
    many = workers > 1 and len(source.names) > MANY
    # The processes are the outer context: they outlive the threads that wait for them.
    with DecodingProcesses() as processes, ThreadPoolExecutor(workers) as pool:
        work = decode_chunk
        waiting: deque[Future[list[tuple[int, Decoded]]]] = deque()
        for images in _chunks(source):
            if many and isinstance(images[0][2], bytes):  # pixels are not worth the way
                processes.start(workers)
                work, many = processes.decode, False
            waiting.append(pool.submit(work, Chunk(images, preparation)))
            if len(waiting) > 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


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


def _chunks(source: Source) -> Iterator[list[tuple[int, str, Content]]]:
    chunk: list[tuple[int, str, Content]] = []
    held = 0
    for i, content in source.read():
        chunk.append((i, f"{source.where}/{source.names[i]}", content))
        if not isinstance(content, DataError):
            held += content.nbytes if isinstance(content, np.ndarray) else len(content)
        if len(chunk) == _CHUNK_IMAGES or held > _CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


class DecodingProcesses:
    """A context with processes of `ict_backends.data.decode_worker`, each for one thread at a time.

    They are started by their name and not forked, since this process may have loaded a framework; and not by
    multiprocessing, which would run the user's script in each of them once more.
    """

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def start(self, count: int) -> None:
        """Start so many."""
        # -P: nothing that lies in the working folder is imported. A session of their own: Ctrl-C is for this process.
        command = [sys.executable, "-P", "-m", "ict_backends.data.decode_worker"]
        pipe = subprocess.PIPE
        self._all = [subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) for _ in range(count)]
        for process in self._all:
            self._idle.put(process)

    def __enter__(self) -> DecodingProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._all:
            with contextlib.suppress(OSError):  # its end is what it waits for
                process.stdin.close()
            process.stdout.close()
            process.wait()

    def decode(self, chunk: Chunk) -> list[tuple[int, Decoded]]:
        """What `decode_chunk` gives or raises."""
        process = self._idle.get()
        try:
            pickle.dump(chunk, process.stdin, protocol=5)
            process.stdin.flush()
            found = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise DataError("a process that decoded images has ended; the memory may be full") from error
        finally:
            self._idle.put(process)
        if isinstance(found, Exception):
            raise found
        return found
