"""Which device torch computes on."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch
from ict_backends.errors import OutOfMemoryError, UsageError
from ict_backends.processes import local_rank

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
