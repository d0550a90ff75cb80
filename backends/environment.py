"""The cores of this process, its place among the processes that share its work, and how it ends among them."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

from ict_backends.console import warn
from ict_backends.errors import UsageError, UserError


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """The size of this machine's memory in bytes; None where the system does not tell it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def process_memory() -> int | None:
    """The most bytes that this process has held in memory so far (its resident set); None where Python has no word."""
    try:
        import resource  # does not exist on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def local_rank() -> int | None:
    """The number of this process on its machine, >= 0, from LOCAL_RANK, as torchrun sets it; None where it is unset.

    Raises:
        UsageError: LOCAL_RANK is not a number >= 0.
    """
    number = os.environ.get("LOCAL_RANK")
    if number is None:
        return None
    if not number.isdecimal():
        raise UsageError(f"environment: LOCAL_RANK = {number} must be a number >= 0, as torchrun sets it")
    return int(number)


def share_of_work() -> tuple[int, int]:
    """(rank, world size) from RANK and WORLD_SIZE, as torchrun sets them; (0, 1) where neither is set.

    Raises:
        UsageError: only one of the variables is set, or they are not integers with 0 <= RANK < WORLD_SIZE.
    """
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if rank is None and size is None:
        return 0, 1
    if rank is None or size is None or not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UsageError(
            f"environment: RANK = {rank or 'unset'} and WORLD_SIZE = {size or 'unset'} must both be set, as torchrun "
            "does, with 0 <= RANK < WORLD_SIZE"
        )
    return int(rank), int(size)


_at_once = False


def leave_at_once() -> None:
    """Make the command end without the exit handlers of libraries, which could wait for a process that is gone."""
    global _at_once
    _at_once = True


def leaves_at_once() -> bool:
    """True if `leave_at_once` was called in this process."""
    return _at_once


def check_rendezvous() -> str:
    """HOST:PORT where the processes meet, from MASTER_ADDR and MASTER_PORT, as torchrun sets them.

    Raises:
        UsageError: one of the variables is not set, or the port is not in 1..65535.
    """
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or port is None or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            f"environment: MASTER_ADDR = {host or 'unset'} and MASTER_PORT = {port or 'unset'} must say where the "
            f"{os.environ.get('WORLD_SIZE')} processes meet, as torchrun does; or unset RANK and WORLD_SIZE to train "
            "in one process"
        )
    return f"{host}:{port}"


# How long a process waits for the others to appear before it says so, and before it gives up.
SILENCE_SECONDS, JOINING_SECONDS = 10.0, 600


@contextlib.contextmanager
def joining(rank: int, world: int, where: str) -> Iterator[None]:
    """A context in which this process waits for the others; it says so when that takes long.

    Raises:
        UserError: the processes have not found each other, for the reason that a RuntimeError, a ValueError or an
            OSError in the context gives.
    """
    waits = f"process {rank} of {world} waits at {where} for the others, for {JOINING_SECONDS // 60} minutes at most"
    timer = threading.Timer(SILENCE_SECONDS, warn, [waits])
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"process {rank} of {world} cannot join the others at {where}: {reason}") from error
    finally:
        timer.cancel()


def leave(wait: Callable[[], object]) -> None:
    """Wait for the other processes before this one ends, since its end would cut off their last exchange.

    It is no error if another process is gone already.

    Args:
        wait: returns when every process has called it; raises RuntimeError where a process is gone.
    """
    with contextlib.suppress(RuntimeError):
        wait()
