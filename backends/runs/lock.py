"""The lock of a run's folder, so that only one process at a time writes into it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ict_backends.errors import UsageError

# In the folder while it is in use, with the host and the process that use it.
LOCK_FILE = ".lock"


@contextlib.contextmanager
def in_use(path: Path, *, fresh: bool = False) -> Iterator[None]:
    """A context in which no other process can use a run's folder; it is made, or removed again if it stays empty.

    The system frees the lock when the process ends, however it ends. Windows has no such lock, and nothing is locked
    there.

    Args:
        path: the folder.
        fresh: refuse a folder that exists.

    Raises:
        UsageError: another process uses the folder.
        OSError: the folder cannot be made; FileExistsError if it exists and must not.
    """
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=not fresh)
    file = _lock(path / LOCK_FILE)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
    finally:
        (path / LOCK_FILE).unlink(missing_ok=True)  # before others can lock it
        file.close()
        with contextlib.suppress(OSError):  # there is something in it
            for folder in made:
                folder.rmdir()


def is_in_use(path: Path) -> bool:
    """True if a process uses a run's folder, on this machine or on another that sees its locks; False on Windows.

    The lock is shared for a moment to find out.
    """
    try:
        import fcntl

        with open(path / LOCK_FILE, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        pass
    return False


def _lock(path: Path) -> IO[str]:
    """Open and lock the file. Raises UsageError if another process has it."""
    try:
        import fcntl
    except ImportError:
        return open(path, "a+", encoding="utf-8")
    while True:
        try:
            file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  # it is held until the context ends
        except FileNotFoundError:  # the process that had it has just removed the folder, which had stayed empty
            path.parent.mkdir(parents=True, exist_ok=True)
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UsageError(
                f"--out {path.parent} is in use by {holder}: wait for its end, or choose another folder"
            ) from None
        # The process that had it may have removed it since it was opened; another one has a new file then.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
