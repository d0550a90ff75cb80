"""Reading and writing files and folders so that each is there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

import platformdirs

from ict_backends.console import warn

# The most bytes of a file that is read at once.
_SMALL = 2**18


def cache_folder() -> Path:
    """The user's folder for files that can be made again: on Linux $XDG_CACHE_HOME/ict or ~/.cache/ict.

    A user without a home, as in some containers, has it among the temporary files.
    """
    try:
        path = Path(platformdirs.user_cache_dir("ict", appauthor=False))
    except RuntimeError:  # newer versions of platformdirs raise it; older ones leave the ~
        return _cache_of_the_homeless()
    return _cache_of_the_homeless() if path.parts[0] == "~" else path


@lru_cache
def _cache_of_the_homeless() -> Path:
    path = Path(tempfile.gettempdir()) / f"ict-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o077:
        path = Path(tempfile.mkdtemp(prefix="ict-"))  # others can write into the one by that name
    warn(f"there is no home folder: {path} keeps what can be made again; XDG_CACHE_HOME sets another folder")
    return path


def file_sha256(path: Path) -> str:
    """The hexadecimal sha256 of a file, read piece by piece. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        # Making the buffer of `file_digest` takes longer than reading a small file.
        if os.fstat(file.fileno()).st_size <= _SMALL:
            return hashlib.sha256(file.read()).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it and rename it, so that no reader sees only a part of it."""
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A context with a temporary file to write into, renamed to `path` at the end, or removed where writing failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A context with a temporary folder to fill, renamed to `path` at the end, or removed where filling it failed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        if path.exists():
            remove_folder(path)
        temporary.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder so that a reader sees it whole or not at all."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
