"""Which devices JAX computes on."""

from __future__ import annotations

import jax
import numpy as np
from ict_backends.errors import UsageError
from ict_backends.processes import local_rank
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_PLATFORMS = {"cpu": "cpu", "cuda": "cuda", "gpu": "gpu", "rocm": "rocm", "tpu": "tpu"}
# The name of the mesh's one axis, along which a batch is split.
BATCH_AXIS = "batch"


def check_device(name: str) -> Mesh:
    """The devices of a name, as a mesh of one axis: "auto" for all of the default platform (or the one of number
    LOCAL_RANK, as torchrun sets it), or a platform's name for all of its, with ":N" for one of them.

    Raises:
        UsageError: the name is unknown, or the platform or the device is not there.
    """
    platform, colon, index = name.partition(":")
    if platform != "auto" and platform not in _PLATFORMS:
        raise UsageError(f'--device {name} is not available (allowed: "auto", {_allowed()})')
    try:
        devices = jax.local_devices() if name == "auto" else jax.local_devices(backend=_PLATFORMS[platform])
    except (RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f'--device {name} is not available: {reason} (allowed: "auto", {_allowed()})') from error
    if name == "auto" and local_rank() is not None:  # several processes share this machine's devices
        devices = [devices[local_rank() % len(devices)]]
    if colon:
        chosen = [d for d in devices if str(d.id) == index]
        if not chosen:
            raise UsageError(f"--device {name} is not available: {platform} has devices 0..{len(devices) - 1}")
        devices = chosen
    return Mesh(np.array(devices), (BATCH_AXIS,))


def describe_device(name: str) -> str:
    """In words, what a name stands for: "jax 0.10.2 on 8 x tpu". Raises UsageError as `check_device` does."""
    mesh = check_device(name)
    return f"jax {jax.__version__} on {mesh.size} x {mesh.devices.flat[0].platform}"


def check_batch_size(mesh: Mesh, batch_size: int) -> None:
    """Raise UsageError unless the batch can be split over the devices."""
    if batch_size % mesh.size:
        raise UsageError(
            f"train.batch_size = {batch_size} must be divisible by the number of devices, {mesh.size}; "
            "--device cpu:0 or such takes one of them"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Every device holds its part of the axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXIS))


def _allowed() -> str:
    return ", ".join(f'"{p}"' for p in _PLATFORMS) + ', "cpu:N" and so on'
