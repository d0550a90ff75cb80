"""Decoding the images of a set on all cores: in threads, or in other processes where the images are many.

`python -m ict_backends.data.decode_pool` is such a process. It reads chunks from its standard input and writes the
decoded images of each to its standard output, as pickles: both ends are of the same program. It ends when its input
ends.
"""

from __future__ import annotations

import contextlib
import pickle
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, NamedTuple

import numpy as np

from ict_backends.data.decode import Preparation, quiet
from ict_backends.data.source import Chunk, Content, Decoded, Source, decode_chunk
from ict_backends.environment import available_cores
from ict_backends.errors import DataError

# Sets of more images than this are worth starting other processes.
MANY = 2000
# The most images and bytes of a chunk: enough to outweigh handing it over, and never many large files.
_CHUNK_IMAGES, _CHUNK_BYTES = 256, 2**22


def decoded(source: Source, preparation: Preparation | None) -> Iterator[tuple[int, Decoded]]:
    """Decode images on all cores, and yield (index, [c, h, w] uint8), or (index, the error of an unreadable one).

    Many images are decoded by other processes: of small files, the headers take longer than the pixels, and threads
    read headers only one after the other.

    Args:
        source: the images; they are yielded in the order in which it reads them.
        preparation: size and crop of all images; None leaves them as they are.

    Raises:
        DataError: the preparation does not fit an image.
    """
    workers = available_cores()
    many = workers > 1 and len(source.names) > MANY
    # The processes are the outer context: they outlive the threads that wait for them.
    with DecodingProcesses() as processes, ThreadPoolExecutor(workers) as pool:
        work = decode_chunk
        waiting: deque[tuple[Chunk, Future[list[tuple[int, Decoded]]]]] = deque()
        for images in _chunks(source):
            if many and isinstance(images[0][2], bytes):  # decoded pixels are not worth sending
                processes.start(workers)
                work, many = processes.decode, False
            chunk = Chunk(images, preparation)
            waiting.append((chunk, pool.submit(work, chunk)))
            if len(waiting) > 2 * workers:
                yield from _whole(*waiting.popleft(), work)
        while waiting:
            yield from _whole(*waiting.popleft(), work)


_Work = Callable[[Chunk], list[tuple[int, Decoded]]]


def _whole(chunk: Chunk, begun: Future[list[tuple[int, Decoded]]], work: _Work) -> Iterator[tuple[int, Decoded]]:
    """The images of a chunk whose decoding was begun; where they are large, the rest is decoded part by part."""
    done = begun.result()
    while True:
        yield from done
        chunk = chunk._replace(images=chunk.images[len(done) :])
        if not chunk.images:
            return
        done = work(chunk)


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


class _Worker(NamedTuple):
    """A process, its standard input for chunks, and its standard output for decoded images."""

    process: subprocess.Popen[bytes]
    chunks: IO[bytes]
    images: IO[bytes]


class DecodingProcesses:
    """A context with processes of `ict_backends.data.decode_pool`, each used by one thread at a time.

    The processes are started by the name of the module and not forked, since this process may have loaded a framework;
    nor by multiprocessing, which would run the user's script once more in each of them.
    """

    def __init__(self) -> None:
        self._all: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()

    def start(self, count: int) -> None:
        """Start `count` processes."""
        # -P: nothing in the working folder is imported. A new session: Ctrl-C reaches only this process.
        command = [sys.executable, "-P", "-m", "ict_backends.data.decode_pool"]
        pipe = subprocess.PIPE
        for _ in range(count):
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)
            assert process.stdin is not None
            assert process.stdout is not None
            worker = _Worker(process, process.stdin, process.stdout)
            self._all.append(worker)
            self._idle.put(worker)

    def __enter__(self) -> DecodingProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            with contextlib.suppress(OSError):  # the process ends when its input does
                worker.chunks.close()
            worker.images.close()
            worker.process.wait()

    def decode(self, chunk: Chunk) -> list[tuple[int, Decoded]]:
        """Call `decode_chunk` in one of the processes; return its result, or raise its error, here."""
        worker = self._idle.get()
        try:
            pickle.dump(chunk, worker.chunks, protocol=5)
            worker.chunks.flush()
            images = pickle.load(worker.images)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise DataError("a process that decoded images has ended; the memory may be full") from error
        finally:
            self._idle.put(worker)
        if isinstance(images, Exception):
            raise images
        return images


def main() -> None:
    """Decode chunks from the standard input until it ends."""
    with quiet():
        while True:
            try:
                chunk = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            answer: list[tuple[int, Decoded]] | Exception
            try:
                answer = decode_chunk(chunk)
            except Exception as error:  # raised again by the process that sent the chunk
                answer = error
            try:
                pickle.dump(answer, sys.stdout.buffer, protocol=5)
                sys.stdout.buffer.flush()
            except BrokenPipeError:  # nobody waits for the answer any more
                return


if __name__ == "__main__":
    main()
