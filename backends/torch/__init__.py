"""The torch backend."""

from typing import TYPE_CHECKING

from ict_backends.torch.bench import (
    copy_size,
    device_name,
    make_convolution,
    make_copy,
    make_forward,
    make_model,
    make_product,
    make_trainer,
    memory_in_use,
    peak_memory,
    product_size,
)
from ict_backends.torch.device import check_device, describe_device, out_of_memory, tune_process
from ict_backends.torch.parallel import joined
from ict_backends.torch.sample import LoadedModel, load_model
from ict_backends.torch.train import train
from ict_backends.torch.weights import read_arrays

if TYPE_CHECKING:  # the type checker compares this package with the contract
    import ict_backends.torch as this_package
    from ict_backends.protocols import Backend
    from ict_backends.torch.parallel import Processes

    backend: Backend[Processes, LoadedModel] = this_package

__all__ = [
    "LoadedModel",
    "check_device",
    "copy_size",
    "describe_device",
    "device_name",
    "joined",
    "load_model",
    "make_convolution",
    "make_copy",
    "make_forward",
    "make_model",
    "make_product",
    "make_trainer",
    "memory_in_use",
    "out_of_memory",
    "peak_memory",
    "product_size",
    "read_arrays",
    "train",
    "tune_process",
]
