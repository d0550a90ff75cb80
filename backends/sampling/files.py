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

from ict_backends.errors import UsageError
from ict_backends.files import write_atomically
from ict_backends.images import save_folder, save_npz

_MANIFEST = ".ict-sample.json"
# How long the first process waits for something new of the others'.
_PATIENCE_SECONDS = 120.0


class Sink(Protocol):
    """Where images go: the output, and what it is samples of."""

    out: Path
    what: Mapping[str, object]

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


def open_sink(out: Path, num: int, what: Mapping[str, object], *, rank: int = 0) -> Sink | None:
    """The files for `num` samples: an .npz, or a folder. None where they are whole, and this process has come late.

    Args:
        what: says what they are samples of; files of others are refused.

    Raises:
        UsageError: naming what differs.
    """
    if rank > 0 and _read(_done_file(out)) == what:
        return None
    if rank == 0:
        _done_file(out).unlink(missing_ok=True)
    check_sink(out, what)
    return NpzSink(out, num, what) if out.suffix else FolderSink(out, num, what)


def check_sink(out: Path, what: Mapping[str, object]) -> bool:
    """Whether a part of these samples is there already. Raises UsageError, naming what differs, for others'."""
    folder = _parts_folder(out)
    if not folder.exists():
        return False
    known = _read(folder / _MANIFEST)
    if known is None:
        # What has the manifest's name in its own is another process's, about to become it.
        names = {path.name for path in folder.iterdir()} - {_MANIFEST}
        if any(not name.startswith(f".{_MANIFEST}.") for name in names):
            raise UsageError(f"--out {out} is not an empty folder; choose another one")
        return False
    differ = [f"{key} is {known.get(key)} and not {value}" for key, value in what.items() if known.get(key) != value]
    if differ:
        raise UsageError(f"--out {out} holds other samples ({'; '.join(differ)}); choose another one")
    return True


def _parts_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts") if out.suffix else out


def _done_file(out: Path) -> Path:
    """What tells processes that start when all is done that it is."""
    return out.with_name(f".{out.name}.done")


def _read(manifest: Path) -> dict[str, object] | None:
    try:
        known = json.loads(manifest.read_text())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) else None


def _write(manifest: Path, what: Mapping[str, object]) -> None:
    write_atomically(manifest, (json.dumps(what, indent=2) + "\n").encode())


class FolderSink:
    """A PNG an image. The files themselves say what is there."""

    def __init__(self, out: Path, num: int, what: Mapping[str, object]) -> None:
        self.out, self.what, self._num = out, what, num
        out.mkdir(parents=True, exist_ok=True)
        _write(out / _MANIFEST, what)

    def missing(self) -> list[int]:
        """The numbers without a file."""
        there = {path.name for path in self.out.iterdir()}
        return [i for i in range(self._num) if f"{i:06d}.png" not in there]

    def write(self, indices: Sequence[int], images: np.ndarray) -> None:
        """Write a file each."""
        for i, image in zip(indices, images, strict=True):
            save_folder(self.out, image[None], first=i)

    def finish(self, labels: np.ndarray | None) -> None:
        """Leave images alone."""
        (self.out / _MANIFEST).unlink(missing_ok=True)


class NpzSink:
    """One .npz at the end; until then its parts are kept beside it."""

    def __init__(self, out: Path, num: int, what: Mapping[str, object]) -> None:
        self.out, self.what, self._num = out, what, num
        self._parts = _parts_folder(out)
        _write(self._parts / _MANIFEST, what)

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
        save_npz(self.out, images, labels)
        shutil.rmtree(self._parts)

    def _found(self) -> Iterator[tuple[int, int, Path]]:
        for path in sorted(self._parts.glob("*.npy")):
            if match := re.fullmatch(r"(\d+)-(\d+)\.npy", path.name):
                yield int(match[1]), int(match[2]), path


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

    Where nothing of the others' has come for two minutes, it draws that too: they may have been killed.

    Args:
        draw: from numbers to their images, uint8, in batches.
        on_batch: called with the number of images that each batch adds.

    Returns:
        Whether the output is whole: only the first process can say.
    """

    def fill(numbers: Sequence[int]) -> None:
        done = 0
        for images in draw(numbers):
            sink.write(numbers[done : done + len(images)], images)
            done += len(images)
            on_batch(len(images))

    fill(share(sink.missing(), batch, rank, world))
    if rank != 0:
        return False
    fill(_wait_for_others(sink))
    sink.finish(labels)
    if world > 1:
        _write(_done_file(sink.out), sink.what)
    return True


def _wait_for_others(sink: Sink) -> list[int]:
    """The numbers that are missing still when nothing more comes."""
    left, since = sink.missing(), time.monotonic()
    while left and time.monotonic() - since <= _PATIENCE_SECONDS:
        time.sleep(0.2)
        now = sink.missing()
        if len(now) < len(left):
            left, since = now, time.monotonic()
    return left
