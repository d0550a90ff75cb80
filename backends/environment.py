"""Which part of the work is this process's, where several share it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from ict_backends.errors import UsageError


def available_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_rank() -> int | None:
    """The number of this process on its machine, from LOCAL_RANK, which torchrun sets; None without it.

    Raises:
        UsageError: it is no number.
    """
    number = os.environ.get("LOCAL_RANK")
    if number is None:
        return None
    if not number.isdecimal():
        raise UsageError(f"environment: LOCAL_RANK = {number} must be a number >= 0, as torchrun sets it")
    return int(number)


def share_of_work() -> tuple[int, int]:
    """(rank, world size) from RANK and WORLD_SIZE, which torchrun and its like set; (0, 1) without them.

    Raises:
        UsageError: only one of them is set, or they are no rank and size.
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
    """Let the command end without what libraries do at exit."""
    global _at_once
    _at_once = True


def leaves_at_once() -> bool:
    """Whether `leave_at_once` was called."""
    return _at_once


def check_rendezvous() -> str:
    """HOST:PORT where the processes meet, from MASTER_ADDR and MASTER_PORT, as torchrun sets them.

    Raises:
        UsageError: one of them is not set, or the port is none.
    """
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if not host or port is None or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(
            f"environment: MASTER_ADDR = {host or 'unset'} and MASTER_PORT = {port or 'unset'} must say where the "
            f"{os.environ.get('WORLD_SIZE')} processes meet, as torchrun does; or unset RANK and WORLD_SIZE to train "
            "in one process"
        )
    return f"{host}:{port}"


def leave(wait: Callable[[], object]) -> None:
    """Wait for the others at the end: one that left would cut them off in the middle of their last exchange.

    That they are gone already is no fault any more.
    """
    with contextlib.suppress(RuntimeError):
        wait()
