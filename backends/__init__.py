"""Models in Python, by `load` and `train`; the backends, by `load_backend`; and the packages that they share.

All of them take and return NumPy arrays.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ict_backends.errors import UsageError

if TYPE_CHECKING:
    from ict_backends.protocols import Backend, FeatureNetwork
    from ict_backends.python.model import load
    from ict_backends.python.training import train

# The frameworks that each backend needs, by their import names.
BACKENDS = {"torch": ("torch",), "jax": ("jax", "flax", "optax")}
# The modules of what `__getattr__` imports.
_WHERE = {"load": "ict_backends.python.model", "train": "ict_backends.python.training"}


def load_backend(name: str) -> Backend[Any, Any]:
    """Return a backend: a package with the members that `ict_backends.protocols.Backend` describes.

    Args:
        name: a key of `BACKENDS`.

    Raises:
        UsageError: the name is unknown, or its framework is not installed (the message names the extra to install).
    """
    if name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}; there are {', '.join(BACKENDS)}")
    try:
        for framework in BACKENDS[name]:
            importlib.import_module(framework)
    except ModuleNotFoundError as error:
        raise UsageError(f"backend {name!r} is not installed ({error}): pip install 'ict[{name}]'") from error
    except ImportError as error:  # as where there is too little memory for it
        raise UsageError(f"backend {name!r} cannot be loaded: {error}") from error
    return cast("Backend[Any, Any]", importlib.import_module(f"ict_backends.{name}"))


def load_features(path: Path, *, device: str = "auto") -> FeatureNetwork:
    """Load the feature network of a TorchScript or torch.export file; torch reads it for every backend.

    Args:
        path: the file.
        device: "auto", or a device's name in torch, such as "cpu" or "cuda:1".

    Raises:
        CheckpointError: the file is neither TorchScript nor a .pt2 file of torch.export.
        UsageError: torch is not installed, or there is no such device.
    """
    load_backend("torch")  # raises the one-line error where torch is not installed
    features = importlib.import_module("ict_backends.torch.features")
    return cast("FeatureNetwork", features.load_features(path, device=device))


def __getattr__(name: str) -> Any:
    """Import `load` or `train` when it is first asked for, so that importing this package stays fast."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


__all__ = ["BACKENDS", "load", "load_backend", "load_features", "train"]
