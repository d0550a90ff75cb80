"""The backends, and the rooms that they share: `load_backend(name)` gives one; all else is NumPy in, NumPy out."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ict_backends.errors import UsageError

if TYPE_CHECKING:
    from ict_backends.protocols import Backend, FeatureNetwork

# The frameworks that each backend needs, under the names that Python imports them by.
BACKENDS = {"torch": ("torch",), "jax": ("jax", "flax", "optax")}


def load_backend(name: str) -> Backend[Any, Any]:
    """A backend, whose members `ict_backends.protocols.Backend` describes.

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
    return cast("Backend[Any, Any]", importlib.import_module(f"ict_backends.{name}"))


def load_features(path: Path, *, device: str = "auto") -> FeatureNetwork:
    """The feature network of a file of torch's, whichever backend draws the samples.

    Raises:
        CheckpointError: it is neither TorchScript nor a .pt2 file of torch.export.
        UsageError: torch is not installed, or there is no such device.
    """
    load_backend("torch")  # with one line where it is not installed
    features = importlib.import_module("ict_backends.torch.features")
    return cast("FeatureNetwork", features.load_features(path, device=device))


__all__ = ["BACKENDS", "load_backend", "load_features"]
