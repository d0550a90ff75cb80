"""The devices that JAX computes on, as a mesh, and the settings of the process for them."""

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
# The operations of a step that a device of the CPU must have as its share to be worth exchanging gradients with it:
# 1 GFLOP is too little, 8 are enough.
_WORTHWHILE_FLOPS = 4e9
# A limit, since each device has all weights and moments in memory.
_MOST_CPU_DEVICES = 8


def tune_process(device: str) -> None:
    """Set up this process for speed on the device with this name; commands call it before anything else."""
    keep_compiled()
    if device.partition(":")[0] in ("auto", "cpu"):
        offer_cores()


def keep_compiled() -> None:
    """Let XLA keep programs that take a second or more to compile in CACHE/jax, for later processes.

    JAX_COMPILATION_CACHE_DIR names another folder; with JAX_ENABLE_COMPILATION_CACHE=0, nothing is kept.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "jax"))


def offer_cores() -> None:
    """Make every core of the CPU a device, up to 8, since XLA does most convolutions of one such device on one core.

    Nothing is changed if JAX_NUM_CPU_DEVICES or XLA_FLAGS sets the number of devices, if JAX has its devices already,
    or if several processes share the work.
    """
    told = jax.config.values["jax_num_cpu_devices"] >= 0 or "host_platform_device_count" in os.environ.get(
        "XLA_FLAGS", ""
    )
    if not told and "WORLD_SIZE" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX has its devices already
            jax.config.update("jax_num_cpu_devices", min(available_cores(), _MOST_CPU_DEVICES))


def worthwhile(mesh: Mesh, config: Config) -> Mesh:
    """The devices that make training with these settings faster, as a mesh.

    They are all accelerators; on the CPU, the largest number of devices that divides a batch into equal parts (of whole
    micro-batches) and has at least four GFLOP of a step for each, or one device.
    """
    if not on_cpu(mesh):
        return mesh
    train, most = config.train, min(mesh.size, int(model_flops(config) / _WORTHWHILE_FLOPS))
    counts = [n for n in range(2, most + 1) if train.batch_size % (n * max(train.micro_batch, 1)) == 0]
    return Mesh(mesh.devices[: max(counts, default=1)], (BATCH_AXIS,))


def check_device(name: str) -> Mesh:
    """The devices with this name, as a mesh of one axis.

    Args:
        name: "auto" for all devices of the default platform, or the one with the number LOCAL_RANK, which torchrun
            sets; the name of a platform for all of its devices; or that name with ":N" for one of them.

    Raises:
        UsageError: the device is not there; the message says which ones are.
    """
    platform, colon, index = name.partition(":")
    if name != "auto" and platform not in _PLATFORMS:
        raise _no_such_device(name)
    try:
        devices = jax.local_devices() if name == "auto" else jax.local_devices(backend=_PLATFORMS[platform])
    except RuntimeError as error:
        raise _no_such_device(name) from error
    rank = local_rank()
    if name == "auto" and rank is not None:  # several processes share this machine's devices
        devices = [devices[rank % len(devices)]]
    if colon:
        chosen = [d for d in devices if str(d.id) == index]
        if not chosen:
            raise _no_such_device(name)
        devices = chosen
    return Mesh(np.array(devices), (BATCH_AXIS,))


def describe_device(name: str) -> str:
    """The framework, its version and the device in words, such as "jax 0.10.2 on 8 x tpu".

    Raises UsageError as `check_device` does.
    """
    mesh = check_device(name)
    platform = mesh.devices.flat[0].platform
    return f"jax {jax.__version__} on " + (platform if on_cpu(mesh) else f"{mesh.size} x {platform}")


@contextlib.contextmanager
def out_of_memory(message: str) -> Iterator[None]:
    """A context that turns JAX's error into our OutOfMemoryError with this message."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise OutOfMemoryError(message) from error


def free_bytes(mesh: Mesh) -> int | None:
    """Number of free bytes of one device's memory; None on the CPU, and where JAX does not know."""
    stats = None if on_cpu(mesh) else jax.local_devices()[0].memory_stats()
    return stats["bytes_limit"] - stats["bytes_in_use"] if stats else None


def peak_bytes(mesh: Mesh) -> int | None:
    """The most bytes that arrays have held at once on one device; None on the CPU, and where JAX does not know."""
    stats = None if on_cpu(mesh) else jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else None


def float32_as(precision: str) -> contextlib.AbstractContextManager[object]:
    """A context that computes products and convolutions of float32 arrays in TF32 for "tf32", else in float32.

    It applies to functions that are traced within it. JAX's own default is TF32 on GPUs and bfloat16 on TPUs.

    Args:
        precision: a value of `train.precision`.
    """
    return jax.default_matmul_precision("tensorfloat32" if precision == "tf32" else "highest")


def on_cpu(mesh: Mesh) -> bool:
    """True if the devices are the CPU's."""
    return mesh.devices.flat[0].platform == "cpu"


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The sharding of an array that is split along one axis, an equal part on every device."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, BATCH_AXIS))


def sharded(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The sharding of an array of this shape, split along the last axis that the number of devices divides.

    If there is none, every device holds the whole array.
    """
    axes = [i for i, size in enumerate(shape) if size % mesh.size == 0 and size > 0]
    return split(mesh, axis=axes[-1]) if axes else replicated(mesh)


def put(array: Any, sharding: NamedSharding) -> Array:
    """A copy on the devices of an array of the host, of any shape, which is the same in every process."""
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _no_such_device(name: str) -> UsageError:
    """The error of a device that is not there; it names the values of --device on this machine."""
    there = [] if on_cpu(Mesh(np.array(jax.local_devices()), (BATCH_AXIS,))) else jax.local_devices()
    names = ["auto", "cpu", *dict.fromkeys(d.platform for d in there), *(f"{d.platform}:{d.id}" for d in there)]
    allowed = ", ".join(f'"{known}"' for known in names)
    return UsageError(f"--device {name} is not available: JAX sees no such device (allowed: {allowed})")
