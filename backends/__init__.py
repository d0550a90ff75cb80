"""The backends: `load_backend(name)` gives one; the other modules are what they share, NumPy in and NumPy out."""

from __future__ import annotations

import importlib
from types import ModuleType

from ict_backends.errors import UsageError

# The frameworks that each backend needs, under the names that Python imports them by.
BACKENDS = {"torch": ("torch",), "jax": ("jax", "flax", "optax")}


def load_backend(name: str) -> ModuleType:
    """The module of a backend.

    It has `train(config, dataset, run, *, device, resume)`, `load_model(path, *, weights, device)`,
    `check_device(name)` and `joined(name)`, the context in which several processes train together; what it takes and
    gives is NumPy, NCHW, float32 in [-1, 1].

    Args:
        name: a key of `BACKENDS`.

    Raises:
        UsageError: the name is unknown, or the framework is not installed (naming the extra that installs it).
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}; there are {', '.join(BACKENDS)}")
    try:
        for framework in BACKENDS[name]:
            importlib.import_module(framework)
    except ImportError as error:
        raise UsageError(f"backend {name!r} is not installed ({error}): pip install 'ict[{name}]'") from error
    return importlib.import_module(f"ict_backends.{name}")


__all__ = ["BACKENDS", "load_backend"]
