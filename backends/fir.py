"""FIR filters along one axis of an image as sums of shifted slices, for any array library.

Compilers make one loop of such a sum. The kernels of the networks are outer products, so that they are applied axis by
axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any
# An array with so many zeros before and after along an axis.
Pad = Callable[[Array, int, int], Array]
# Arrays along a new axis.
Stack = Callable[[list[Array], int], Array]


def fir_taps(taps: Sequence[float], *, gain: float = 1.0) -> np.ndarray:
    """[n] taps of sum `gain`, float64."""
    values = np.array(taps, dtype=np.float64)
    return values * (gain / values.sum())


def filter_axis(x: Array, taps: np.ndarray, axis: int, *, stride: int, padding: int, pad: Pad) -> Array:
    """Convolve one axis of an array with [n] taps after zero padding, and take every `stride`-th result."""
    padded = pad(x, axis, padding)
    last = padded.shape[axis] - len(taps)
    return sum(_part(padded, axis, k, k + last + 1, stride) * float(tap) for k, tap in enumerate(taps[::-1]))


def double_axis(
    x: Array, taps: np.ndarray, axis: int, *, pad: Pad, stack: Callable[[list[Array], int], Array]
) -> Array:
    """Put zeros between the elements of one axis and convolve: twice as long.

    Each result is a sum over the elements that are not zero, so even and odd ones are computed apart.
    """
    padding, n = (len(taps) // 2 + 1) // 2, x.shape[axis]
    # Result m is the sum over k of taps[k] u[m - k + n / 2 - 1], where u[2 j] = x[j].
    offset, padded = len(taps) // 2 - 1, pad(x, axis, padding)
    phases = []
    for phase in (0, 1):
        terms = [((phase - k + offset) // 2, tap) for k, tap in enumerate(taps) if (phase - k + offset) % 2 == 0]
        starts = [(padding + shift, tap) for shift, tap in terms]
        phases.append(sum(_part(padded, axis, start, start + n, 1) * float(tap) for start, tap in starts))
    return stack(phases, axis + 1).reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])


def _part(x: Array, axis: int, start: int, stop: int, stride: int) -> Array:
    return x[(slice(None),) * axis + (slice(start, stop, stride),)]
