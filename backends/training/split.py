"""How a batch is split over devices and micro-batches, and what to do where a part of it is too large."""

from __future__ import annotations

from ict_backends.errors import UsageError


def check_split(batch_size: int, micro_batch: int, devices: int, what: str) -> int:
    """The number of parts that a batch is computed in on each of `devices`, called `what`.

    Raises:
        UsageError: it cannot be split like that.
    """
    if batch_size % devices:
        raise UsageError(
            f"train.batch_size = {batch_size} must be divisible by the number of {what}, {devices}; "
            "take another batch size, or another number of them"
        )
    each = batch_size // devices
    if micro_batch and each % micro_batch:
        raise UsageError(
            f"train.micro_batch = {micro_batch} must divide the {each} images that each of the {devices} {what} has of "
            f"train.batch_size = {batch_size}"
        )
    return each // micro_batch if micro_batch else 1


def describe_shortage(batch_size: int, micro_batch: int) -> str:
    """What to do where a training step does not fit into memory."""
    return (
        f"train.batch_size = {batch_size} with train.micro_batch = {micro_batch} does not fit into memory: take a "
        "smaller train.micro_batch, or network.checkpoint = true; the result stays the same"
    )
