"""Checks that the core functions share: the namespace, dtype and shape of their array arguments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from array_api_compat import array_namespace

# An array of any library that follows the array-API standard: functions return the type that they are given. The
# standard has no static type for arrays or namespaces yet, so that nothing is known of either inside a function.
Array = TypeVar("Array", bound=Any)
Namespace = Any


def namespace(name: str, array: Array, xp: Namespace | None = None) -> Namespace:
    """The array namespace of argument `name`, or `xp` where the caller has named it."""
    if xp is not None:
        return xp
    try:
        return array_namespace(array)
    except TypeError:
        raise TypeError(f"{name} must be an array, not {type(array).__name__}") from None


def check_floating(name: str, array: Array, xp: Namespace) -> None:
    """Raise TypeError unless `array` has a real floating dtype."""
    dtype = getattr(array, "dtype", None)
    if dtype is None or not xp.isdtype(dtype, "real floating"):
        what = type(array).__name__ if dtype is None else dtype
        raise TypeError(f"{name} must be an array of a real floating dtype, not {what}")


def check_dtype(name: str, array: Array, like_name: str, like: Array) -> None:
    """Raise TypeError unless `array` is an array of the dtype of `like`."""
    found = getattr(array, "dtype", None)
    # None is asked for by itself: NumPy takes it for float64 when it compares dtypes.
    if found is None or found != like.dtype:
        what = type(array).__name__ if found is None else found
        raise TypeError(f"{name} must have the dtype of {like_name}, {like.dtype}, not {what}")


def check_same(name_a: str, a: Array, name_b: str, b: Array) -> None:
    """Raise unless the two arrays have one shape and one dtype: nothing is broadcast or promoted."""
    check_dtype(name_b, b, name_a, a)
    if tuple(b.shape) != tuple(a.shape):
        raise ValueError(f"{name_b} must have the shape of {name_a}, {tuple(a.shape)}, not {tuple(b.shape)}")


def check_per_sample(name: str, values: Array, batch_name: str, batch: Array) -> None:
    """Raise unless `values` is [b] in the dtype of `batch`, which is [b, *event]."""
    if batch.ndim < 1:
        raise ValueError(f"{batch_name} must be [b, *event], not a scalar")
    check_dtype(name, values, batch_name, batch)
    if tuple(values.shape) != tuple(batch.shape[:1]):
        raise ValueError(f"{name} must be [b] = {tuple(batch.shape[:1])}, not {tuple(values.shape)}")


def check_number(name: str, value: float, *, above: float = -math.inf, at_least: float = -math.inf) -> float:
    """`value` as a Python float, which promotes no array; raise unless it is finite and within the bounds."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond float64
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {value}")
    if not number > above:
        raise ValueError(f"{name} must be > {above:g}, not {value}")
    if not number >= at_least:
        raise ValueError(f"{name} must be >= {at_least:g}, not {value}")
    return number


def check_count(name: str, value: int, *, at_least: int = 0) -> None:
    """Raise unless `value` is an integer >= `at_least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{name} must be >= {at_least}, not {value}")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise unless `value` is one of the choices."""
    allowed = list(choices)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def check_level_range(sigma_min: float, sigma_max: float) -> tuple[float, float]:
    """Both as Python floats; raise unless 0 < sigma_min < sigma_max."""
    low = check_number("sigma_min", sigma_min, above=0.0)
    high = check_number("sigma_max", sigma_max, above=0.0)
    if not low < high:
        raise ValueError(f"sigma_max must be > sigma_min = {sigma_min}, not {sigma_max}")
    return low, high


def per_sample(values: Array, like: Array, xp: Namespace) -> Array:
    """View [b] as [b, 1, ...], with as many axes as `like`."""
    return xp.reshape(values, tuple(values.shape) + (1,) * (like.ndim - 1))


def constant(value: float, like: Array, xp: Namespace) -> Array:
    """A scalar array in the dtype and on the device of `like`.

    A bare Python number would do in most places, but torch evaluates `half_tensor - number` in
    float32, and then sigma - sigma_min is not exactly 0 at sigma_min.
    """
    # Not array_api_compat.device, whose questions torch.compile warns about. What JAX traces has no device.
    # Filled there, not copied there: a copy would make the host wait for the device. What JAX has divided among devices
    # names its sharding, which no scalar can have; one without a device goes where the array is.
    device = getattr(like, "device", None)
    return xp.full((), value, dtype=like.dtype, device=None if hasattr(device, "mesh") else device)


def host_constant(values: Any, like: Array, xp: Namespace) -> Array:
    """Numbers of the host, nested or a NumPy array, in the dtype and on the device of `like`."""
    return xp.asarray(values, dtype=like.dtype, device=getattr(like, "device", None))


def full_batch(value: float, like: Array, xp: Namespace) -> Array:
    """[b] filled with `value`, in the dtype and on the device of `like`, [b, *event]."""
    return xp.broadcast_to(constant(value, like, xp), tuple(like.shape[:1]))


def unstack(arrays: Any) -> list[Any]:
    """The arrays of a sequence, or those along the first axis of one array."""
    if not hasattr(arrays, "shape"):
        return list(arrays)
    return [arrays[j, ...] for j in range(arrays.shape[0])]  # the standard has neither len(array) nor array[j]


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """A float64 NumPy copy of any array, wherever it lives."""
    if hasattr(array, "detach"):  # torch: NumPy cannot read tensors with a graph, off the CPU or in bfloat16
        array = array.detach().cpu().double().numpy()
    return np.array(array, dtype=np.float64)
