"""The teacher: the student itself, in the recipe; and averages of weights, for sampling or for another teacher."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

from array_api_compat import is_jax_array, is_torch_array

from ict_core._arrays import Array, check_count, check_number, check_same, namespace
from ict_core.loss import ConsistencyFunction


def teacher_of(student: ConsistencyFunction[Array]) -> ConsistencyFunction[Array]:
    """The student as its own teacher: no gradient, and the random numbers that the student draws next.

    iCT sec. 3.2: the teacher is the student with its current weights, the same dropout and a stopped gradient. An
    average of the weights, or other dropout masks, in place of it are the commonest faults.

        loss = consistency_loss(f, teacher_of(f), ...)

    In torch, no graph is recorded, and the generators of the CPU and of the device of x are put back afterwards, so
    that the student, called next, drops the same activations. In JAX, f must be a pure function: it closes over its
    keys, which are then the same in both calls. (A `flax.nnx` module that advances its own `Rngs` is not pure: split it
    first.) Arrays of other libraries have no gradient.

    Args:
        student: f(x, sigma), with whatever it draws.
    """

    def teacher(x: Array, sigma: Array, /) -> Array:
        with _without_trace(x):
            y = student(x, sigma)
        # What JAX traces can only be cut off afterwards.
        return sys.modules["jax"].lax.stop_gradient(y) if is_jax_array(y) else y

    return teacher


@contextlib.contextmanager
def _without_trace(x: Any) -> Iterator[None]:
    """A context without gradients in torch, which leaves its generators as they were; else one that does nothing."""
    if not is_torch_array(x):
        yield
        return
    torch = sys.modules["torch"]  # the library of an array is loaded
    on_device = x.device.type != "cpu"
    devices = [x.device] if on_device else []
    kind = {"device_type": x.device.type} if on_device else {}
    with torch.no_grad(), torch.random.fork_rng(devices, **kind):
        yield


def update_average(average: Any, weights: Any, decay: float) -> Any:
    """The moving average of weights after one more step: average + (1 - decay) (weights - average).

    For sampling, the average begins as a copy of the first weights. 1 - decay is taken in float64: in float32, that of
    0.99993 would be 0.02% off. Weights may be of a narrower type than their average, which must be float32 at least: in
    bfloat16, it would not move.

    Args:
        average: an array, or dicts, lists and tuples of arrays, such as a copy of torch's `state_dict()` or parameters
            of JAX; for other trees, `jax.tree.map(lambda a, w: update_average(a, w, decay), average, weights)`.
        weights: the same, with the current weights. Arrays that are not floating, such as counters, are taken as they
            are.
        decay: in [0, 1), such as 0.9999.

    Returns:
        New arrays in the structure of `average`, without gradient.

    Raises:
        TypeError, ValueError: naming the argument; also where the two differ in structure or shapes.

    >>> import numpy as np
    >>> update_average({"w": np.array([1.0, 2.0])}, {"w": np.array([2.0, 2.0])}, 0.9)
    {'w': array([1.1, 2. ])}
    """
    decay = check_number("decay", decay, at_least=0.0)
    if not decay < 1:
        raise ValueError(f"decay must be < 1, not {decay}")
    return _averaged("average", average, weights, 1.0 - decay)


def _averaged(name: str, average: Any, weights: Any, rate: float) -> Any:
    """The average at `name` in the tree of averages, after a step."""
    if isinstance(average, dict):
        if not isinstance(weights, dict) or average.keys() != weights.keys():
            raise ValueError(f"weights must have the keys of {name}")
        return {key: _averaged(f"{name}[{key!r}]", average[key], weights[key], rate) for key in average}
    if isinstance(average, (list, tuple)):
        if type(weights) is not type(average) or len(weights) != len(average):
            raise ValueError(f"weights must be a {type(average).__name__} of {len(average)}, as {name} is")
        values = [_averaged(f"{name}[{i}]", a, w, rate) for i, (a, w) in enumerate(zip(average, weights, strict=True))]
        return type(average)(*values) if hasattr(average, "_fields") else type(average)(values)
    return _averaged_array(name, average, weights, rate)


def _averaged_array(name: str, average: Array, weights: Array, rate: float) -> Array:
    xp = namespace(name, average)
    if not xp.isdtype(average.dtype, "real floating"):
        return xp.asarray(weights, copy=True)
    if xp.finfo(average.dtype).bits < 32:
        raise TypeError(f"{name} must be float32 or wider, not {average.dtype}: in fewer bits it would not move")
    weights = xp.astype(weights.detach() if hasattr(weights, "detach") else weights, average.dtype)
    check_same(name, average, "weights", weights)
    return average + rate * (weights - average)


def adaptive_decay(n: int, *, mu0: float = 0.9, s0: int = 2) -> float:
    """mu(k), the decay of the teacher's weights while there are n = N(k) levels.

        mu(k) = exp(s0 log(mu0) / (N(k) - 1))                                        CM app. C, released code

    The paper prints N(k) where the released code divides by the number of intervals, N(k) - 1. After each step,
    teacher <- mu teacher + (1 - mu) student. The recipe has mu = 0: the teacher is the student itself (iCT sec. 3.2).

    Args:
        n: N(k) >= 2 levels, from `discretization_steps`.
        mu0: in (0, 1), the decay at s0 intervals.
        s0: >= 1, the first number of intervals.

    Returns:
        In (0, 1), rising with n.
    """
    check_count("n", n, at_least=2)
    check_count("s0", s0, at_least=1)
    mu0 = check_number("mu0", mu0, above=0.0)
    if not mu0 < 1:
        raise ValueError(f"mu0 must be < 1, not {mu0}")
    return math.exp(s0 * math.log(mu0) / (n - 1))
