"""Splitting a batch over devices and micro-batches, and advice if a part of it does not fit into memory."""

from __future__ import annotations

from ict_backends.errors import UsageError


def check_split(batch_size: int, micro_batch: int, devices: int, what: str) -> int:
    """The number of micro-batches in which each device computes its share of a batch.

    Args:
        batch_size: number of images of a step.
        micro_batch: number of images that a device computes at a time; 0 for its whole share.
        devices: number of devices or processes.
        what: what messages call them, "devices" or "processes".

    Raises:
        UsageError: the batch cannot be split into equal parts of these sizes.
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


def describe_split(batch_size: int, micro_batch: int, devices: int, what: str) -> str:
    """How a step is shared among several devices or processes, in words; the arguments are those of `check_split`."""
    each, parts = batch_size // devices, check_split(batch_size, micro_batch, devices, what)
    at_a_time = f"{each // parts} at a time, in {parts} micro-batches" if parts > 1 else "all at a time"
    return f"{devices} {what} share each step of {batch_size:,} images: {each:,} for each, {at_a_time}"


def describe_shortage(batch_size: int, micro_batch: int) -> str:
    """A message for a training step that does not fit into memory, with advice."""
    return (
        f"train.batch_size = {batch_size} with train.micro_batch = {micro_batch} does not fit into memory: take a "
        "smaller train.micro_batch, or network.checkpoint = true; the result stays the same"
    )
