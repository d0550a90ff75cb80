"""Which device torch computes on."""

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

# Of glibc's mallopt: what is larger than this comes from the system and goes back to it when it is freed, and so does
# what is freed at the heap's end.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let the CPU's allocator keep what is freed, where it is glibc's: each step takes the same memory again, and pages
    that are new cost a twentieth of its time."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or none by that name
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**30)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def tune_process(device: str) -> None:
    """Set up this process for training and sampling on a device, by name; for commands to call."""
    if check_device(device).type == "cpu":
        keep_freed_memory()


def check_device(name: str) -> torch.device:
    """The device of a name: "auto" for the GPU of this process (the first, or of its number LOCAL_RANK, as torchrun
    sets it) or else the CPU; or torch's own name.

    Raises:
        UsageError: the name is none of torch's, or the device is not there.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        if found is None:
            return torch.device("cpu")
        return torch.device(found.type, (local_rank() or 0) % torch.accelerator.device_count())
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f'--device {name} is not available: {reason} (allowed: "auto", "cpu", "cuda", "cuda:N")'
        ) from error
    return device


def other_devices(name: str) -> list[torch.device]:
    """The GPUs that a process may use beside the one of `check_device`: for "auto" all others, where no other process
    shares the machine."""
    first = check_device(name)
    if name != "auto" or first.type == "cpu" or local_rank() is not None:
        return []
    return [torch.device(first.type, i) for i in range(torch.accelerator.device_count()) if i != first.index]


@contextlib.contextmanager
def out_of_memory(message: str) -> Iterator[None]:
    """Turn torch's error into our OutOfMemoryError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(message) from error


def free_bytes(device: torch.device) -> int | None:
    """Of a GPU's memory; None for the CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def describe_device(name: str) -> str:
    """In words, what a name stands for: "torch 2.13.0 on cpu". Raises UsageError as `check_device` does."""
    return f"torch {torch.__version__} on {check_device(name)}"


@contextlib.contextmanager
def float32_as(precision: str) -> Iterator[None]:
    """Let products and convolutions of float32 arrays be what `train.precision` says: TF32 for "tf32", else float32.

    Torch's own default is float32 for products and TF32 for convolutions. Its settings are the process's, and are put
    back afterwards.
    """
    matmul = torch.backends.cuda.matmul
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # which torch's stubs lack
    before = matmul.fp32_precision, conv.fp32_precision
    try:
        older = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # somebody has set the newer names of these settings alone
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
    """By the older names, which set the newer ones; torch.compile asks for the older, and refuses what contradicts."""
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = convolutions


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of an array of the host on a device. A GPU copies while it computes, and nothing waits for it."""
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
    """The function, of a tensor and of whatever else, compiled into one kernel where that tensor is on a GPU.

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
