"""Which devices JAX computes on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ict_backends.environment import available_cores, local_rank
from ict_backends.errors import OutOfMemoryError, UsageError
from ict_backends.files import cache_folder
from ict_backends.networks.cost import model_flops
from ict_core import Config

_PLATFORMS = {"cpu": "cpu", "cuda": "cuda", "gpu": "gpu", "rocm": "rocm", "tpu": "tpu"}
# The name of the mesh's one axis, along which a batch is split.
BATCH_AXIS = "batch"
# What a device of the CPU must have of a step's operations to be worth its part in exchanging gradients: 1 GFLOP is too
# little, 8 are enough.
_WORTHWHILE_FLOPS = 4e9
# Each has all weights and moments in memory.
_MOST_CPU_DEVICES = 8


def tune_process(device: str) -> None:
    """Set up this process for training and sampling on a device, by name; for commands to call."""
    keep_compiled()
    if device.partition(":")[0] in ("auto", "cpu"):
        offer_cores()


def keep_compiled() -> None:
    """Let XLA keep what takes it a second or more to compile in CACHE/jax, for later processes.

    JAX_COMPILATION_CACHE_DIR names another folder, and JAX_ENABLE_COMPILATION_CACHE=0 keeps nothing.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))


def offer_cores() -> None:
    """Make every core a device, up to 8: XLA does most convolutions of a device of the CPU on one core.

    JAX_NUM_CPU_DEVICES and XLA_FLAGS say otherwise; where JAX has its devices already, and where several processes
    share the work, it is left as it is.
    """
    told = jax.config.values["jax_num_cpu_devices"] >= 0 or "host_platform_device_count" in os.environ.get(
        "XLA_FLAGS", ""
    )
    if not told and "WORLD_SIZE" not in os.environ:
        with contextlib.suppress(RuntimeError):  # it has its devices
            jax.config.update("jax_num_cpu_devices", min(available_cores(), _MOST_CPU_DEVICES))


def worthwhile(mesh: Mesh, config: Config) -> Mesh:
    """As many of the devices as training these settings gains by: all, but of the CPU those that divide a batch into
    equal parts, with four GFLOP a step each at least."""
    if not on_cpu(mesh):
        return mesh
    train, most = config.train, min(mesh.size, int(model_flops(config) / _WORTHWHILE_FLOPS))
    counts = [n for n in range(2, most + 1) if train.batch_size % (n * max(train.micro_batch, 1)) == 0]
    return Mesh(mesh.devices[: max(counts, default=1)], (BATCH_AXIS,))


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
    rank = local_rank()
    if name == "auto" and rank is not None:  # several processes share this machine's devices
        devices = [devices[rank % len(devices)]]
    if colon:
        chosen = [d for d in devices if str(d.id) == index]
        if not chosen:
            raise UsageError(f"--device {name} is not available: {platform} has devices 0..{len(devices) - 1}")
        devices = chosen
    return Mesh(np.array(devices), (BATCH_AXIS,))


def describe_device(name: str) -> str:
    """In words, what a name stands for: "jax 0.10.2 on 8 x tpu". Raises UsageError as `check_device` does."""
    mesh = check_device(name)
    platform = mesh.devices.flat[0].platform
    return f"jax {jax.__version__} on " + (platform if on_cpu(mesh) else f"{mesh.size} x {platform}")


@contextlib.contextmanager
def out_of_memory(message: str) -> Iterator[None]:
    """Turn JAX's error into our OutOfMemoryError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(message) from error


def free_bytes(mesh: Mesh) -> int | None:
    """Of one device's memory; None for the CPU, and where JAX does not know."""
    stats = None if on_cpu(mesh) else jax.local_devices()[0].memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None


def float32_as(precision: str) -> contextlib.AbstractContextManager[object]:
    """Let products and convolutions of float32 arrays be what `train.precision` says: TF32 for "tf32", else float32.

    Of what is traced within the context; JAX's own default is TF32 on GPUs and bfloat16 on TPUs.
    """
    return jax.default_matmul_precision("tensorfloat32" if precision == "tf32" else "highest")


def on_cpu(mesh: Mesh) -> bool:
    """Whether the devices are the CPU's."""
    return mesh.devices.flat[0].platform == "cpu"


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds all of it."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Every device holds its part of the axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXIS))


def sharded(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Every device holds its part of the last axis that the devices divide; all of it, where there is none."""
    axes = [i for i, size in enumerate(shape) if size % mesh.size == 0 and size > 0]
    return split(mesh, axis=axes[-1]) if axes else replicated(mesh)


def put(array: Any, sharding: NamedSharding) -> Array:
    """An array of the host, which every process has alike, on the devices."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _allowed() -> str:
    return ", ".join(f'"{p}"' for p in _PLATFORMS) + ', "cpu:N" and so on'
