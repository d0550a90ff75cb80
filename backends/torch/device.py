"""Which device torch computes on."""

from __future__ import annotations

import torch
from ict_backends.errors import UsageError


def check_device(name: str) -> torch.device:
    """The device of a name: "auto" for the first GPU or else the CPU, or torch's own name.

    Raises:
        UsageError: the name is none of torch's, or the device is not there.
    """
    if name == "auto":
        return torch.device(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f'--device {name} is not available: {reason} (allowed: "auto", "cpu", "cuda", "cuda:N")'
        ) from error
    return device


def describe_device(name: str) -> str:
    """In words, what a name stands for: "torch 2.13.0 on cpu". Raises UsageError as `check_device` does."""
    return f"torch {torch.__version__} on {check_device(name)}"
