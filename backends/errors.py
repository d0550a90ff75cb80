"""Errors that are not a fault of the software: each message is one line for the user."""

from __future__ import annotations


class UserError(Exception):
    """A problem with the data, a checkpoint, the disk or the run; the command line exits with 1.

    Line breaks and other control characters in the message, which file names can contain, become spaces.
    """

    exit_code = 1
    # What the line on the error stream begins with.
    prefix = "Error: "

    def __init__(self, message: object) -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in str(message)))


class UsageError(UserError):
    """A problem with what was asked for; the command line exits with 2."""

    exit_code = 2


class LostProcessError(UserError):
    """One of the processes that work together has ended; the others must not wait for it any more.

    Args:
        rank, world: the number of this process, and how many there are.
        reason: how it is known.
        then: what the user is to do.
    """

    def __init__(
        self, rank: int, world: int, reason: str, then: str = "continue from the last checkpoint with --resume"
    ) -> None:
        super().__init__(f"process {rank} of {world} stops, since another one has ended: {reason}; {then}")
        self.rank, self.world, self.reason = rank, world, reason


class OutOfMemoryError(UserError):
    """Work that needs more memory than the device has; a smaller batch may fit."""


class DataError(UserError):
    """Images or labels that cannot be used."""


class CheckpointError(UserError):
    """A run or a checkpoint that cannot be used."""


class NonFiniteError(UserError):
    """Training or weights with a NaN or an infinity."""
