"""The device that torch computes on, and the settings of the process for it."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from typing import Concatenate, ParamSpec

import numpy as np
import torch
from torch import Tensor
from torch.utils._triton import has_triton

from ict_backends.environment import local_rank
from ict_backends.errors import OutOfMemoryError, UsageError

_P = ParamSpec("_P")
_Function = Callable[Concatenate[Tensor, _P], Tensor]

# Parameters of glibc's mallopt. Blocks that are larger than the second come from the system and go back to it when they
# are freed; so does the free end of the heap once it is larger than the first.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the CPU's allocator keep freed memory, where it is glibc's.

    Each step takes the same memory again, and new pages cost a twentieth of its time.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or none by that name
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def tune_process(device: str) -> None:
    """Set up this process for speed on the device with this name; commands call it before anything else."""
    if check_device(device).type == "cpu":
        keep_freed_memory()


def check_device(name: str) -> torch.device:
    """The device with this name.

    Args:
        name: "auto" for this process's GPU, or the CPU if there is none; or torch's name of a device. The GPU is the
            first one, or the one with the number LOCAL_RANK, which torchrun sets.

    Raises:
        UsageError: the device is not there; the message says which ones are.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None:
            return torch.device("cpu")
        return torch.device(accelerator.type, (local_rank() or 0) % torch.accelerator.device_count())
    there = _device_names()
    reason = "torch sees no such device"
    if name in (*there, "cpu:0"):
        try:
            device = torch.device(name)
            torch.empty(1, device=device)
            return device
        except RuntimeError as error:  # a GPU can be there and yet in exclusive use
            reason = str(error).splitlines()[0]
    allowed = ", ".join(f'"{known}"' for known in there)
    raise UsageError(f"--device {name} is not available: {reason} (allowed: {allowed})")


def _device_names() -> list[str]:
    """The values of --device on this machine."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["auto", "cpu"]
    kind = accelerator.type
    return ["auto", "cpu", kind, *(f"{kind}:{i}" for i in range(torch.accelerator.device_count()))]


def other_devices(name: str) -> list[torch.device]:
    """The GPUs that this process may use beside the one that `check_device` returns.

    For "auto" these are all others, unless LOCAL_RANK says that several processes share the machine; else there are
    none.
    """
    first = check_device(name)
    if name != "auto" or first.type == "cpu" or local_rank() is not None:
        return []
    return [torch.device(first.type, i) for i in range(torch.accelerator.device_count()) if i != first.index]


@contextlib.contextmanager
def out_of_memory(message: str) -> Iterator[None]:
    """A context that turns torch's error into our OutOfMemoryError with this message."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(message) from error


def free_bytes(device: torch.device) -> int | None:
    """Number of free bytes of a GPU's memory; None on the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def peak_bytes(device: torch.device) -> int | None:
    """The most bytes that this process's arrays have held at once on a GPU; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def describe_device(name: str) -> str:
    """The framework, its version and the device in words, such as "torch 2.13.0 on cpu".

    Raises UsageError as `check_device` does.
    """
    return f"torch {torch.__version__} on {check_device(name)}"


@contextlib.contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """A context that computes products and convolutions of float32 arrays in TF32 for "tf32", else in float32.

    Torch's own default is float32 for products and TF32 for convolutions. Its settings are those of the whole process;
    they are restored at the end of the context.

    Args:
        precision: a value of `train.precision`.
    """
    matmul = torch.backends.cuda.matmul
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # which torch's stubs lack
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        older = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # somebody has set only the newer names of these settings
        older = None
    fast = precision == "tf32"
    _set_older("high" if fast else "highest", fast)
    try:
        yield
    finally:
        if older is not None:
            _set_older(*older)
        matmul.fp32_precision, conv.fp32_precision = before


def _set_older(products: str, convolutions: bool) -> None:
    """Set both precisions by their older names, which set the newer ones, too.

    torch.compile reads the older names, and refuses newer ones that contradict them.
    """
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of an array of the host, of any shape, on a device. A GPU copies while it computes: nothing waits."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    copies, computing = _copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        moved = tensor.pin_memory().to(device, non_blocking=True)
    computing.wait_stream(copies)
    moved.record_stream(computing)
    return moved


@lru_cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def compiled_on_gpu(function: _Function[_P]) -> _Function[_P]:
    """The function, compiled into one kernel for calls whose first argument, a tensor, is on a GPU.

    Torch compiles it once for each shape, in some seconds, and keeps the result on disk.
    """

    @wraps(function)
    def call(first: Tensor, /, *others: _P.args, **named: _P.kwargs) -> Tensor:
        compiles = first.device.type == "cuda" and has_triton()
        return (_compiled(function) if compiles else function)(first, *others, **named)

    return call


@lru_cache
def _compiled(function: _Function[_P]) -> _Function[_P]:
    return torch.compile(function, dynamic=False)
