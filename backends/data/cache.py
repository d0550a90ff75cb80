"""Decoded images on disk, so that a large set is decoded only once.

CACHE/data-KEY.npy holds the images [n, c, h, w] uint8, which are mapped into memory; CACHE/data-KEY.npz holds their
labels, the names of classes, and the sha256 of the other file. CACHE is $XDG_CACHE_HOME/ict, or ~/.cache/ict.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ict_backends.console import warn
from ict_backends.data.npz import npz_names, read_member
from ict_backends.environment import available_cores
from ict_backends.errors import DataError
from ict_backends.files import cache_folder, file_sha256, write_atomically
from ict_backends.images import encode_npz

# The version of the rules in docs/data.md: with another number, everything is decoded anew.
_RULES = 2
_DAY = 24 * 3600
# Files that one thread hashes at a time.
_FILES = 256

# Images [n, c, h, w] uint8, labels [n] int64 or None, and the names of classes.
LabelledImages = tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]


def content_key(files: Sequence[tuple[str, Path]], note: str) -> str:
    """A key of the names and the content of files, and of a note.

    Reading all the files takes only a part of the time that decoding them takes. Names, sizes and times of change could
    be read faster, but they stay the same where a tool copies one image over another and keeps the times; a run would
    then be trained on images that are no longer there. A set of millions of files is better packed into one.

    Args:
        files: (name, path) of each file.
        note: everything else that the decoded images depend on.

    Returns:
        32 hexadecimal digits.

    Raises:
        OSError: a file cannot be read.
    """
    parts = [files[i : i + _FILES] for i in range(0, len(files), _FILES)]
    key = hashlib.sha256(f"{_RULES} {note}".encode(errors="surrogateescape"))
    with ThreadPoolExecutor(available_cores()) as pool:
        for line in pool.map(_content_lines, parts):
            key.update(line)
    return key.hexdigest()[:32]


def _content_lines(files: Sequence[tuple[str, Path]]) -> bytes:
    lines = (f"\0{name}\0{_file_digest(path)}" for name, path in files)
    return "".join(lines).encode(errors="surrogateescape")


def _file_digest(path: Path) -> str:
    try:
        status = path.stat()
    except FileNotFoundError:  # the reader of the image reports its absence
        return "none"
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for its writer
        return "none"
    return file_sha256(path)


def read_cached(key: str) -> tuple[LabelledImages, tuple[str, ...]] | None:
    """Read what `Room.keep` wrote: the images as a read-only map, labels and names of classes; and the notes.

    Returns None where the cache has nothing under this key, or something damaged.
    """
    images_file, labels_file = _paths(key)
    try:
        if not images_file.is_file():
            return None
        known = {name: read_member(labels_file, name) for name in npz_names(labels_file)}
        if _file_digest(images_file) != str(known["sha256"]):
            return None
        images = np.load(images_file, mmap_mode="r", allow_pickle=False)
        labelled = images, known.get("labels"), tuple(map(str, known["classes"]))
        return labelled, tuple(map(str, known["notes"]))
    except (OSError, ValueError, KeyError, DataError):
        return None


def _paths(key: str) -> tuple[Path, Path]:
    return cache_folder() / f"data-{key}.npy", cache_folder() / f"data-{key}.npz"


class Room:
    """A context with room for the images of a set while they are decoded: memory, or a file that the cache then keeps.

    Where the file cannot be made, or the disk is full, memory is used instead, with a warning.

    Args:
        key: the key of the set in the cache; None for memory.
    """

    def __init__(self, key: str | None) -> None:
        self._key = key
        self._file: Path | None = None
        self._handle: int | None = None  # of the file, which it keeps locked

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        self._drop()

    def allocate(self, shape: Sequence[int]) -> np.ndarray:
        """Return an array of uint8 of this shape, to be filled.

        The array of an earlier call keeps its content as long as something refers to it.
        """
        self._drop()
        if self._key is None:
            return np.empty(shape, dtype=np.uint8)
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            _sweep()
            file = cache_folder() / f".data-{self._key}.{os.getpid()}-{time.monotonic_ns()}.tmp"
            self._handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            self._file = file
            _lock(self._handle)
            return _mapped(self._file, shape)
        except OSError as error:
            self._give_up(error)
            return np.empty(shape, dtype=np.uint8)

    def keep(
        self, images: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...], notes: tuple[str, ...]
    ) -> LabelledImages:
        """Put the set into the cache and return it from there; where there is no cache, return the arguments.

        Processes that do this at once write the same content, each to a file of its own, renamed when it is whole.

        Args:
            images: [n, c, h, w] uint8, the array that `allocate` returned last.
            labels: [n] int64, or None.
            classes: the names of the labels.
            notes: what was left out or chosen, as `Source` has it.
        """
        if self._key is None or self._file is None:
            return images, labels, classes
        images_file, labels_file = _paths(self._key)
        arrays = {"classes": np.array(classes, dtype=str), "notes": np.array(notes, dtype=str)}
        arrays |= {} if labels is None else {"labels": labels}
        try:
            assert isinstance(images, np.memmap)  # as `allocate` returned it
            images.flush()
            digest = np.array(_file_digest(self._file))
            self._file.replace(images_file)
            self._file = None
            self._drop()
            write_atomically(labels_file, encode_npz(sha256=digest, **arrays))
            return np.load(images_file, mmap_mode="r", allow_pickle=False), labels, classes
        except OSError as error:
            self._give_up(error)
            return images, labels, classes

    def _drop(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _give_up(self, error: OSError) -> None:
        self._drop()
        self._key = None
        reason = error.strerror or error
        warn(f"no cache of decoded images in {cache_folder()}: {reason}")


def _sweep() -> None:
    """Remove unfinished files of processes that were killed: those that nobody has locked."""
    for path in cache_folder().glob(".data-*.tmp"):
        with contextlib.suppress(OSError):  # it is locked, or gone by now
            handle = os.open(path, os.O_RDWR)
            try:
                if _lock(handle) or time.time() - path.stat().st_mtime > _DAY:
                    path.unlink()
            finally:
                os.close(handle)


def _lock(handle: int) -> bool:
    """Lock an open file for as long as it is open; false where the system has no such locks. Raises OSError."""
    try:
        import fcntl
    except ImportError:
        return False
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _mapped(path: Path, shape: Sequence[int]) -> np.ndarray:
    """Create an .npy file and map it as an array of uint8.

    Raises OSError where the disk has no room for the whole file: writing into the map would then end the process.
    """
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=tuple(shape))
    size = path.stat().st_size
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    elif shutil.disk_usage(path.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return images
