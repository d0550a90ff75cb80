"""How long something takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ict_backends.protocols import Repeat

# About how long a stretch of repeated operations takes, such as a matrix product, a copy or a forward pass.
_STRETCH_SECONDS = 0.25


def timed(function: Callable[[], Any], *, clock: Callable[[], float] = time.perf_counter) -> tuple[Any, float]:
    """The result of a function, and the seconds that it took."""
    start = clock()
    result = function()
    return result, clock() - start


def times_of_stretch(run: Repeat) -> int:
    """The number of repetitions that take about a quarter of a second, measured after a first, untimed call."""
    run(1)
    return max(1, round(_STRETCH_SECONDS / timed(lambda: run(1))[1]))
