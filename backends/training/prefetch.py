"""The plan and the images of each step: the whole set lies on the device, or the host gathers them one step ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ict_backends.training.step_plan import StepPlan, plan_step
from ict_core import Config

# The rest of a device's memory is for training.
_SHARE = 1 / 3


def fits_on_device(config: Config, images: np.ndarray, free_bytes: int | None) -> bool:
    """Whether the set is to be held on the device (`data.hold`).

    Args:
        free_bytes: of the device; None where it has the host's memory, in which sets are already, unless they are maps
            of files, which would be copied.
    """
    if config.data.hold != "auto":
        return config.data.hold == "device"
    return not is_mapped(images) if free_bytes is None else images.nbytes <= _SHARE * free_bytes


def is_mapped(array: np.ndarray | None) -> bool:
    """Whether an array is a map of a file."""
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
    """The plans of the steps from `first` on, `stride` at a time, each with the images of this process's part.

    Args:
        images: [n, c, h, w] uint8, the whole set.
        first: >= 0, the number of the first step.
        stride: >= 1, steps of one dispatch.
        mine: from the plan of a step to this process's part of it.
        gather: whether to gather the images on the host, [stride b, c, h, w] uint8, which a thread does for the next
            steps while these are computed; otherwise None takes their place.
    """
    total = config.train.total_steps

    def load(step: int) -> tuple[list[StepPlan], np.ndarray | None]:
        plans = [plan_step(config, s, len(images)) for s in range(step, min(step + stride, total))]
        if not gather:
            return plans, None
        # An image that several of the steps take is gathered for each of them.
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
