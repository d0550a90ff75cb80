"""Writing many samples into files by batches, so that interrupted work can go on and several processes can share it.

FOLDER/000000.png, ...             an image each, and FOLDER/.ict-sample.json
.NAME.npz.parts/FIRST-LAST.npy     [b, c, h, w] uint8 batches, and .ict-sample.json, until NAME.npz takes their place
.NAME.done                         tells that NAME is complete: processes that start late, and the same command again

.ict-sample.json and .NAME.done hold the recipe: the settings that determine the samples. .NAME.npz.done also has the
sha256 of NAME.npz: another file of that name is not replaced. A folder of samples can be extended, by the same recipe
with a larger number.
"""

from __future__ import annotations

import glob
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

from ict_backends.console import warn
from ict_backends.errors import UsageError
from ict_backends.files import file_sha256, write_atomically
from ict_backends.images import save_folder, save_npz

_MANIFEST, _DIGEST = ".ict-sample.json", "sha256_of_file"
# What earlier versions did, whose recipes do not say it.
_EARLIER: dict[str, object] = {"clip_steps": False, "truncate": False, "guidance": 1.0, "solver": "multistep"}
# How long the first process waits for new images of the other processes before it draws them itself.
_PATIENCE_SECONDS = 120.0


class Sink(Protocol):
    """The output that images are written to.

    Attributes:
        out: a folder, or an .npz file.
        recipe: the settings that determine the samples.
    """

    out: Path
    recipe: Mapping[str, object]

    def missing(self) -> list[int]:
        """The numbers of the images that are not written yet, rising."""
        ...

    def write(self, indices: Sequence[int], images: np.ndarray) -> None:
        """Write images, [b, c, h, w] uint8, under their b numbers, rising."""
        ...

    def finish(self, labels: np.ndarray | None) -> None:
        """Complete the output once no image is missing; `labels` are [num] or None."""
        ...


def share(indices: Sequence[int], batch: int, rank: int, world: int) -> list[int]:
    """The numbers of the images that this process draws: those in every world-th stretch of `batch` numbers."""
    return [i for i in indices if i // batch % world == rank]


def open_sink(out: Path, num: int, recipe: Mapping[str, object], *, rank: int = 0) -> Sink | None:
    """Create or reopen the output for `num` samples; return None if it is complete already.

    Args:
        out: an .npz file or, without a suffix, a folder.
        num: the number of samples.
        recipe: the settings that determine the samples, JSON values.
        rank: the number of this process.

    Raises:
        UsageError: `out` holds samples of another recipe, or other files.
    """
    done = _EARLIER | (_read(_done_file(out)) or {})
    if recipe.items() <= done.items() and _is_complete(out, num, done.get(_DIGEST)) and (rank > 0 or out.suffix):
        return None
    check_sink(out, recipe)
    if rank == 0:
        _done_file(out).unlink(missing_ok=True)
    return NpzSink(out, num, recipe) if out.suffix else FolderSink(out, num, recipe)


def _is_complete(out: Path, num: int, digest: object) -> bool:
    """True if the output is what the file says that tells of its end: somebody may have removed or changed it since."""
    if out.suffix:
        return out.is_file() and digest == file_sha256(out)
    return out.is_dir() and not _without_file(out, num)


def _without_file(folder: Path, num: int) -> list[int]:
    """The numbers of the images that have no file in a folder."""
    there = {path.name for path in folder.iterdir()}
    return [i for i in range(num) if f"{i:06d}.png" not in there]


def check_sink(out: Path, recipe: Mapping[str, object]) -> None:
    """Check that samples of this recipe can be written to `out`, which may hold a part of them already.

    Raises:
        UsageError: `out` holds other files, or samples of another recipe (the message says what differs).
    """
    folder = _parts_folder(out)
    if out.suffix and out.exists():
        done = _read(_done_file(out)) or {}
        if _is_complete(out, 0, done.get(_DIGEST)):
            return _check_recipe(out, recipe, done)
        if not folder.exists():
            raise UsageError(f"--out {out} is there already, and not as this command wrote it; choose another name")
    if not folder.exists():
        return
    known = _read(folder / _MANIFEST)
    if known is None:
        # A hidden file with the manifest's name in its own becomes the manifest when another process has written it.
        names = {path.name for path in folder.iterdir()} - {_MANIFEST}
        if any(not name.startswith(f".{_MANIFEST}.") for name in names):
            raise UsageError(f"--out {out} is not an empty folder; choose another one")
        return
    _check_recipe(out, recipe, known)


def _check_recipe(out: Path, recipe: Mapping[str, object], known: Mapping[str, object]) -> None:
    stored = _EARLIER | dict(known)
    extends = not out.suffix and _number(stored) <= _number(recipe)
    differ = [
        f"{key} is {stored.get(key)} and not {value}"
        for key, value in recipe.items()
        if stored.get(key) != value and not (key == "num" and extends)
    ]
    if differ:
        raise UsageError(f"--out {out} holds other samples ({'; '.join(differ)}); choose another one")


def _number(recipe: Mapping[str, object]) -> int:
    number = recipe.get("num")
    return number if isinstance(number, int) else 0


def _parts_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.parts") if out.suffix else out


def _done_file(out: Path) -> Path:
    """The file that tells a process that starts late that the output is complete."""
    return out.with_name(f".{out.name}.done")


def _read(manifest: Path) -> dict[str, object] | None:
    try:
        known = json.loads(manifest.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) else None


def _write(manifest: Path, recipe: Mapping[str, object]) -> None:
    write_atomically(manifest, (json.dumps(recipe, indent=2) + "\n").encode())


class FolderSink:
    """A folder with one PNG file for each image; the names of the files tell which images are there."""

    def __init__(self, out: Path, num: int, recipe: Mapping[str, object]) -> None:
        self.out, self.recipe, self._num = out, recipe, num
        out.mkdir(parents=True, exist_ok=True)
        _write(out / _MANIFEST, recipe)

    def missing(self) -> list[int]:
        """The numbers that have no file."""
        return _without_file(self.out, self._num)

    def write(self, indices: Sequence[int], images: np.ndarray) -> None:
        """Write each of the images, [b, c, h, w] uint8, into its own file."""
        for i, image in zip(indices, images, strict=True):
            save_folder(self.out, image[None], first=i)

    def finish(self, labels: np.ndarray | None) -> None:
        """Remove what killed processes have left; the manifest stays, so that the samples can be told and extended."""
        for leftover in self.out.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)


class NpzSink:
    """An .npz file, written at the end from parts that are kept in a folder beside it until then."""

    def __init__(self, out: Path, num: int, recipe: Mapping[str, object]) -> None:
        self.out, self.recipe, self._num = out, recipe, num
        self._parts, self._sound = _parts_folder(out), set[str]()
        _write(self._parts / _MANIFEST, recipe)

    def missing(self) -> list[int]:
        """The numbers that are in no part."""
        there = np.zeros(self._num, dtype=bool)
        for first, last, _ in self._stored():
            there[first : last + 1] = True
        return np.flatnonzero(~there).tolist()

    def write(self, indices: Sequence[int], images: np.ndarray) -> None:
        """Write the images, [b, c, h, w] uint8, as one part for each stretch of consecutive numbers."""
        breaks = [0, *(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), len(indices)]
        for start, stop in pairwise(breaks):
            stream = io.BytesIO()
            np.save(stream, images[start:stop])
            write_atomically(self._parts / f"{indices[start]:08d}-{indices[stop - 1]:08d}.npy", stream.getvalue())

    def finish(self, labels: np.ndarray | None) -> None:
        """Join the parts into the .npz file, with the labels [num] or none, and remove the parts."""
        images: np.ndarray | None = None
        for first, last, path in self._stored():
            part = np.load(path)
            if images is None:
                images = np.empty((self._num, *part.shape[1:]), dtype=np.uint8)
            images[first : last + 1] = part
        assert images is not None, "there is at least one image, and none is missing"
        save_npz(self.out, images, labels)
        _write(_done_file(self.out), {**self.recipe, _DIGEST: file_sha256(self.out)})
        shutil.rmtree(self._parts)
        for leftover in self.out.parent.glob(f".{glob.escape(self.out.name)}.*.tmp"):
            leftover.unlink(missing_ok=True)

    def _stored(self) -> Iterator[tuple[int, int, Path]]:
        """Yield (first number, last number, file) for each part; a damaged one is removed, to be drawn again."""
        for path in sorted(self._parts.glob("*.npy")):
            if match := re.fullmatch(r"(\d+)-(\d+)\.npy", path.name):
                first, last = int(match[1]), int(match[2])
                if path.name in self._sound or _is_part(path, last + 1 - first):
                    self._sound.add(path.name)
                    yield first, last, path
                else:
                    warn(f"{path} is damaged and is drawn again")
                    path.unlink(missing_ok=True)


def _is_part(path: Path, count: int) -> bool:
    """True if a file holds so many images, [count, c, h, w] uint8."""
    try:
        part = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return isinstance(part, np.ndarray) and part.dtype == np.uint8 and part.ndim == 4 and len(part) == count


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
    """Draw the missing images of this process's share; the process of rank 0 then waits for the others and finishes.

    Where the others write nothing for two minutes, rank 0 draws their images, too, since they may have been killed.

    Args:
        sink: the output.
        draw: yields the images of some numbers, in batches [b, c, h, w] uint8.
        labels: [num] or None, written beside the images where the output can hold them.
        batch: the length of the stretches of numbers that processes take in turn; see `share`.
        rank: the number of this process, in 0..world-1.
        world: the number of processes.
        on_batch: called after each batch with the number of its images.

    Returns:
        True in the process of rank 0, once the output is complete; False in all others.
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
    if world > 1 and not sink.out.suffix:
        _write(_done_file(sink.out), sink.recipe)
    return True


def _wait_for_others(sink: Sink) -> list[int]:
    """Wait until no image is missing or the others have written nothing for too long; return the missing numbers."""
    left, since = sink.missing(), time.monotonic()
    while left and time.monotonic() - since <= _PATIENCE_SECONDS:
        time.sleep(0.2)
        now = sink.missing()
        if len(now) < len(left):
            left, since = now, time.monotonic()
    return left
