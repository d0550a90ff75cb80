"""The plan and the images of each step: the device holds the whole set, or the host gathers images one step ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ict_backends.training.step_plan import StepPlan, plan_step
from ict_core import Config

# The share of a device's free memory that a set may take; the rest is for training.
_SHARE = 1 / 3


def fits_on_device(config: Config, images: np.ndarray, free_bytes: int | None) -> bool:
    """True if the whole set is to be held on the device (`data.hold`).

    Args:
        config: the settings.
        images: [n, c, h, w] uint8, the whole set.
        free_bytes: free memory of the device; None if the device uses the host's memory. That memory holds a set
            already, unless the set is a map of a file, which would be copied.
    """
    if config.data.hold != "auto":
        return config.data.hold == "device"
    return not is_mapped(images) if free_bytes is None else images.nbytes <= _SHARE * free_bytes


def is_mapped(array: np.ndarray | None) -> bool:
    """True if an array, of any shape, is a map of a file, or a view of one."""
    while array is not None and not isinstance(array, np.memmap):
        array = array.base if isinstance(array.base, np.ndarray) else None
    return array is not None


def prefetched(
    config: Config,
    images: np.ndarray,
    first: int,
    *,
    stride: int = 1,
    mine: Callable[[StepPlan], StepPlan] = lambda plan: plan,
    gather: bool,
) -> Iterator[tuple[list[StepPlan], np.ndarray | None]]:
    """Yield the plans of `stride` steps at a time, from `first` on, with the images of this process's part of them.

    Args:
        config: the settings.
        images: [n, c, h, w] uint8, the whole set.
        first: >= 0, the number of the first step.
        stride: >= 1, number of steps of one dispatch.
        mine: converts the plan of a step to this process's part of it.
        gather: gather the images on the host; a thread does this for the next steps while the present ones are
            computed.

    Yields:
        `stride` plans of whole steps, and images [stride b, c, h, w] uint8, where b is the size of this process's part;
        None in place of images without `gather`.
    """
    total = config.train.total_steps

    def load(step: int) -> tuple[list[StepPlan], np.ndarray | None]:
        plans = [plan_step(config, s, len(images)) for s in range(step, min(step + stride, total))]
        if not gather:
            return plans, None
        # An image that several of these steps take is gathered for each of them.
        return plans, images[np.concatenate([mine(plan).indices for plan in plans])]

    if not gather:
        yield from (load(step) for step in range(first, total, stride))
        return
    with ThreadPoolExecutor(1, thread_name_prefix="images") as ahead:
        waiting = ahead.submit(load, first)
        for step in range(first, total, stride):
            plans, chosen = waiting.result()
            if step + stride < total:
                waiting = ahead.submit(load, step + stride)
            yield plans, chosen
