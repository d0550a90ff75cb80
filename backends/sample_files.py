"""Many samples into files, batch by batch: what was interrupted goes on, and several processes share the work.

FOLDER/000000.png, ...             one file an image; until all are there, FOLDER/.ict-sample.json says of what
.NAME.npz.parts/FIRST-LAST.npy     uint8 [b, c, h, w] batches until all are there, and .ict-sample.json
"""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from ict_backends.errors import DataError, UsageError
from ict_backends.files import write_atomically
from ict_backends.images import save_folder, save_npz

_MANIFEST = ".ict-sample.json"
# A share that another process has not finished, nor anything new of it, for so long is given up.
_PATIENCE_SECONDS = 1800.0


class Sink(Protocol):
    """Where images go."""

    def missing(self) -> list[int]:
        """The numbers of the images that are not there yet."""
        ...

    def write(self, indices: Sequence[int], images: np.ndarray) -> None:
        """Add images, uint8 [b, c, h, w], of rising numbers."""
        ...

    def finish(self, labels: np.ndarray | None) -> None:
        """Make the output whole, once every image is there."""
        ...


def share(indices: Sequence[int], batch: int, rank: int, world: int) -> list[int]:
    """The numbers that are this process's: every world-th stretch of `batch` numbers."""
    return [i for i in indices if i // batch % world == rank]


class FolderSink:
    """A PNG an image. The files themselves say what is there."""

    def __init__(self, out: Path, num: int, what: Mapping[str, object]) -> None:
        self._out, self._num = out, num
        _claim(out, what, f"--out {out}")

    def missing(self) -> list[int]:
        """The numbers without a file."""
        there = {path.name for path in self._out.iterdir()}
        return [i for i in range(self._num) if f"{i:06d}.png" not in there]

    def write(self, indices: Sequence[int], images: np.ndarray) -> None:
        """Write a file each."""
        for i, image in zip(indices, images, strict=True):
            save_folder(self._out, image[None], first=i)

    def finish(self, labels: np.ndarray | None) -> None:
        """Leave images alone."""
        (self._out / _MANIFEST).unlink(missing_ok=True)


class NpzSink:
    """One .npz at the end; until then its parts are kept beside it."""

    def __init__(self, out: Path, num: int, what: Mapping[str, object]) -> None:
        self._out, self._num = out, num
        self._parts = out.with_name(f".{out.name}.parts")
        _claim(self._parts, what, f"--out {out}")

    def missing(self) -> list[int]:
        """The numbers in no part."""
        there = np.zeros(self._num, dtype=bool)
        for first, last, _ in self._found():
            there[first : last + 1] = True
        return np.flatnonzero(~there).tolist()

    def write(self, indices: Sequence[int], images: np.ndarray) -> None:
        """Write a part for each stretch of successive numbers."""
        breaks = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
        for start, stop in pairwise(breaks):
            stream = io.BytesIO()
            np.save(stream, images[start:stop])
            write_atomically(self._parts / f"{indices[start]:08d}-{indices[stop - 1]:08d}.npy", stream.getvalue())

    def finish(self, labels: np.ndarray | None) -> None:
        """Put the parts together and remove them."""
        images = None
        for first, last, path in self._found():
            part = np.load(path)
            if images is None:
                images = np.empty((self._num, *part.shape[1:]), dtype=np.uint8)
            images[first : last + 1] = part
        save_npz(self._out, images, labels)
        shutil.rmtree(self._parts)

    def _found(self) -> Iterator[tuple[int, int, Path]]:
        for path in sorted(self._parts.glob("*.npy")):
            if match := re.fullmatch(r"(\d+)-(\d+)\.npy", path.name):
                yield int(match[1]), int(match[2]), path


def _claim(folder: Path, what: Mapping[str, object], name: str) -> None:
    """Make a folder for these samples; one that holds a part of them goes on. Several processes may do so at once.

    Raises UsageError, naming what differs, where it holds others.
    """
    manifest = folder / _MANIFEST
    folder.mkdir(parents=True, exist_ok=True)
    try:
        known = json.loads(manifest.read_text())
    except (OSError, ValueError) as error:
        # What has the manifest's name in its own is another process's, about to become it.
        if any(not path.name.startswith(f".{_MANIFEST}.") for path in folder.iterdir() if path != manifest):
            raise UsageError(f"{name} is not an empty folder; choose another one") from error
        write_atomically(manifest, (json.dumps(what, indent=2) + "\n").encode())
        return
    differ = [f"{key} is {known.get(key)} and not {value}" for key, value in what.items() if known.get(key) != value]
    if differ:
        raise UsageError(f"{name} holds other samples ({'; '.join(differ)}); choose another one")


def draw_into(
    sink: Sink,
    draw: Callable[[Sequence[int]], Iterator[np.ndarray]],
    labels: np.ndarray | None,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    on_batch: Callable[[int], object] = lambda done: None,
) -> bool:
    """Draw what is missing of this process's share; the first process then waits for the others' and finishes.

    Args:
        draw: from numbers to their images, uint8, in batches.
        on_batch: called with the number of images that each batch adds.

    Returns:
        Whether the output is whole: only the first process can say.

    Raises:
        DataError: others have added nothing for half an hour.
    """
    mine = share(sink.missing(), batch, rank, world)
    done = 0
    for images in draw(mine):
        sink.write(mine[done : done + len(images)], images)
        done += len(images)
        on_batch(len(images))
    if rank != 0:
        return False
    _wait_for_others(sink)
    sink.finish(labels)
    return True


def _wait_for_others(sink: Sink) -> None:
    left, since = len(sink.missing()), time.monotonic()
    while left:
        time.sleep(0.2)
        now = len(sink.missing())
        if now < left:
            left, since = now, time.monotonic()
        elif time.monotonic() - since > _PATIENCE_SECONDS:
            raise DataError(f"{left} images of other processes are missing; the same command again goes on with them")
