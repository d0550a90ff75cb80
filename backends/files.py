"""Reading and writing files and folders so that each is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, NamedTuple

import platformdirs

from ict_backends.console import warn
from ict_backends.errors import CheckpointError

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


# What a file of Git LFS begins with where only the pointer to it was fetched.
_POINTER = b"version https://git-lfs.github.com/spec/"


def check_no_pointer(path: Path) -> None:
    """Raise CheckpointError if a file, which need not exist, is a pointer of Git LFS instead of the file itself."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(f"{path} is only a pointer of Git LFS; run `git lfs pull` to get the file itself")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside it and rename it, so that no reader sees only a part of it."""
    with whole_file(path) as file:
        file.write(content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A context with a temporary file to write into, renamed to `path` at the end, or removed where writing failed."""
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        discard(temporary)  # so that no link of that name is followed
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # A write that fails, as on a full disk, does not name its file; people know that by its final name.
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A context with a temporary folder to fill, renamed to `path` at the end, or removed where filling it failed.

    What was there before is removed first, as by `remove_folder`.
    """
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    discard(temporary)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            sync(file)
        sync(temporary)
        if path.is_symlink() or path.exists():
            remove_folder(path)
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        discard(temporary)
        raise


def remove_folder(path: Path) -> None:
    """Remove a folder so that a reader sees it whole or not at all; of a symbolic link, only the link itself."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    discard(aside)
    os.replace(path, aside)  # a link is renamed, not what it points to
    sync(path.parent)
    discard(aside)


def discard(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a symbolic link and nothing that it points to, if it is there.

    What cannot be removed is left.
    """
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


class Usage(NamedTuple):
    """The files in a folder and its folders.

    Attributes:
        files: their number.
        size: their bytes, together.
        changed: when the newest one was written, in seconds since 1970; 0.0 if there is none.
    """

    files: int
    size: int
    changed: float


def folder_usage(path: Path) -> Usage:
    """What the files in a folder take. What symbolic links point to does not count; what cannot be read is left out."""
    usage = Usage(0, 0, 0.0)
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                found = os.lstat(os.path.join(folder, name))
                usage = Usage(usage.files + 1, usage.size + found.st_size, max(usage.changed, found.st_mtime))
    return usage


def _make_folder(path: Path) -> None:
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in new:
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk. Some file systems cannot: then not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
