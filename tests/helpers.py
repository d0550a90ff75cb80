"""What the tests share: the array libraries, a comparison that is strict about types, the draws.

Loaded as `helpers` through pytest's `pythonpath` (pyproject.toml): with --import-mode=importlib a
test file cannot import its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_strict
import jax.numpy as jnp
import numpy as np
import torch
from array_api_compat import numpy as compat_numpy
from array_api_compat import torch as compat_torch
from hypothesis import strategies as st

Array = Any


def _read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


@dataclass(frozen=True)
class Library:
    """One array library under test.

    Attributes:
        name: for test ids.
        xp: its namespace.
        wrap: its array from a fresh NumPy array. NumPy's own is read-only, so that a function which
            writes into its arguments fails every test.
    """

    name: str
    xp: Any
    wrap: Callable[[np.ndarray], Array]

    def asarray(self, values: Any, dtype: str) -> Array:
        """`values`, evaluated anywhere, as this library's array."""
        if dtype == "bfloat16":  # a dtype that NumPy lacks
            return self.wrap(np.array(values, dtype=np.float64)).to(torch.bfloat16)
        return self.wrap(np.array(values, dtype=dtype))

    def normal(self, seed: int, shape: tuple[int, ...], dtype: str, scale: float = 1.0) -> Array:
        """Standard normal values, times `scale`; the same ones in every library."""
        return self.asarray(scale * np.random.default_rng(seed).standard_normal(shape), dtype)


NUMPY = Library("numpy", compat_numpy, _read_only)
STRICT = Library("array_api_strict", array_api_strict, array_api_strict.asarray)
TORCH = Library("torch", compat_torch, torch.tensor)
# float64 needs `jax.enable_x64`. It compiles each function anew for each shape, so only tests/parity takes it along.
JAX = Library("jax", jnp, jnp.asarray)
LIBRARIES = (NUMPY, STRICT, TORCH)


def eps(dtype: str) -> float:
    """The spacing of `dtype` at 1, relative rounding's scale."""
    return 2.0**-7 if dtype == "bfloat16" else float(np.finfo(dtype).eps)


def to_numpy(array: Array) -> np.ndarray:
    """Any floating array as a float64 NumPy copy."""
    if isinstance(array, torch.Tensor):
        return array.detach().double().numpy().copy()
    return np.array(array, dtype=np.float64)


def kind(array: Array) -> str:
    """The library an array belongs to. NumPy's scalars count as its arrays: its arithmetic makes no difference."""
    if isinstance(array, np.generic):
        return "numpy.ndarray"
    return f"{type(array).__module__.split('.')[0]}.{type(array).__name__}"


def assert_same(actual: Array, expected: Array, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Compare kind, shape and dtype before the values, which are compared in float64.

    Values must be equal unless a tolerance is given; NaN equals NaN in the same place only.
    """
    assert kind(actual) == kind(expected), f"kind of array: {kind(actual)}, expected {kind(expected)}"
    assert tuple(actual.shape) == tuple(expected.shape), f"shape: {actual.shape}, expected {expected.shape}"
    assert actual.dtype == expected.dtype, f"dtype: {actual.dtype}, expected {expected.dtype}"
    np.testing.assert_allclose(to_numpy(actual), to_numpy(expected), rtol=rtol, atol=atol)


def other_float(dtype: str) -> str:
    """A floating dtype that is not this one, for promotion tests."""
    return "float64" if dtype == "float32" else "float32"


# Draws. Events have 0 to 3 axes: labels or latents, audio, grey images, images.
seeds = st.integers(0, 2**32 - 1)
batches = st.integers(1, 4)
event_shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)
batch_shapes = st.tuples(batches, event_shapes).map(lambda pair: (pair[0], *pair[1]))
rhos = st.floats(0.5, 20.0)
sigma_datas = st.floats(0.1, 2.0)


def log_uniform(low: float, high: float) -> st.SearchStrategy[float]:
    """Floats in [low, high], all decades alike."""
    return st.floats(math.log(low), math.log(high)).map(lambda u: min(max(math.exp(u), low), high))


# sigma_min and sigma_max, with at least a factor 10 between them
sigma_ranges = st.tuples(log_uniform(1e-4, 0.1), log_uniform(1.0, 300.0))


@st.composite
def levels(draw: st.DrawFn, n: st.SearchStrategy[int] = st.integers(2, 60)) -> np.ndarray:  # noqa: B008
    """[n] rising float64 levels of a drawn schedule, by a formula of our own."""
    low, high = draw(sigma_ranges)
    rho = draw(rhos)
    ramp = np.linspace(low ** (1 / rho), high ** (1 / rho), draw(n))
    return ramp**rho
