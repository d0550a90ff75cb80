"""Which part of the work is this process's, where several share it."""

from __future__ import annotations

import os

from ict_backends.errors import UsageError


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
