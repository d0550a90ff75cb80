"""The work that `ict bench` times, in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ict_backends.networks.cost import Convolution
from ict_backends.torch.batch import make_batch, to_device
from ict_backends.torch.device import check_device, float32_as
from ict_backends.torch.networks import PRECISIONS, make_network
from ict_backends.torch.parallel import Processes
from ict_backends.torch.sample import LoadedModel
from ict_backends.torch.state import TrainState, init_state
from ict_backends.torch.step import consistency_function, train_step
from ict_backends.torch.weights import load_arrays
from ict_backends.training.split import check_split
from ict_backends.training.step_plan import plan_step
from ict_core import Config


@dataclass
class TimedTrainer:
    """A training state that can be advanced without end, over images that are on the device.

    Attributes:
        images: [n, c, h, w] uint8.
        labels: [n] int64, or None.
        parts: number of micro-batches of a step.
        stride: number of steps of one dispatch.
        replicas, devices: number of devices that share a step.
    """

    config: Config
    state: TrainState
    images: Tensor
    labels: Tensor | None
    parts: int
    stride: int = 1
    replicas: int = 1
    devices: int = 1

    def advance(self, steps: int) -> np.ndarray:
        """Do `steps` more steps, wait for them, and return the losses, [steps, b] float32."""
        with float32_as(self.config.train.precision):
            losses_of_steps = [self._step() for _ in range(steps)]
        losses = torch.stack(losses_of_steps).cpu().numpy()
        _wait(self.images.device)
        return losses

    def _step(self) -> Tensor:
        plan = plan_step(self.config, self.state.step % self.config.train.total_steps, len(self.images))
        draws = to_device(plan, self.images.device).parts(self.parts)
        batches = (make_batch(self.config, draw, self.images, self.labels) for draw in draws)
        return train_step(
            self.state,
            self.config,
            batches,
            parts=self.parts,
            teacher_decay=plan.teacher_decay,
            average_decays=plan.average_decays,
            learning_rate=plan.learning_rate,
        ).losses


def make_trainer(config: Config, images: np.ndarray, labels: np.ndarray | None, device: str) -> TimedTrainer:
    """A trainer before its first step, with images and labels on the device.

    Args:
        images: [n, c, h, w] uint8.
        labels: [n] integers, or None.
        device: name of the device, as for `check_device`.
    """
    where = check_device(device)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    state = init_state(config, Processes(where))
    parts = check_split(config.train.batch_size, config.train.micro_batch, 1, "processes")
    held = torch.tensor(images, device=where)
    return TimedTrainer(config, state, held, None if labels is None else torch.tensor(labels, device=where), parts)


def make_model(config: Config, arrays: dict[str, np.ndarray], device: str) -> LoadedModel:
    """The model with these weights, by name and in the layouts of checkpoints ([out, in, h, w]), on one device."""
    network = make_network(config)
    load_arrays(network, arrays, "weights")
    return LoadedModel(config, network.to(check_device(device)))


def make_forward(model: LoadedModel, batch: int, labels: np.ndarray | None) -> Callable[[int], None]:
    """A function that evaluates the consistency function `times` times and waits for the result.

    Its input is noise [batch, c, h, w] float32 of sigma_max, which is on the device.

    Args:
        batch: number of images.
        labels: [batch] integers, or None for an unconditional model.
    """
    config, where = model.config, model.module.conv_in.weight.device
    f = consistency_function(model.module, config, None if labels is None else torch.tensor(labels, device=where))
    x = config.noise.sigma_max * torch.randn(batch, *config.data.shape, device=where)
    sigma = torch.full((batch,), config.noise.sigma_max, device=where)

    def run(times: int) -> None:
        with torch.inference_mode(), float32_as(config.train.precision):
            for _ in range(times):
                f(x, sigma)
        _wait(where)

    return run


def product_size(device: str) -> int:
    """Side of a square matrix product that saturates the device."""
    return 2048 if check_device(device).type == "cpu" else 8192


def make_product(size: int, precision: str, device: str) -> Callable[[int], None]:
    """A function that multiplies two [size, size] matrices `times` times and waits for the result.

    Args:
        size: side of the matrices.
        precision: a value of `train.precision`.
        device: name of the device, as for `check_device`.
    """
    where = check_device(device)
    a, b = (torch.randn(size, size, device=where, dtype=PRECISIONS[precision] or torch.float32) for _ in range(2))
    out = torch.empty_like(a)

    def run(times: int) -> None:
        with torch.inference_mode(), float32_as(precision):
            for _ in range(times):
                torch.mm(a, b, out=out)
        _wait(where)

    return run


def make_convolution(shape: Convolution, batch: int, precision: str, device: str) -> Callable[[int], None]:
    """A function that does a convolution of the network `times` times, forward only, and waits for the result.

    Args:
        shape: kernel, channels and image size of the convolution, which has stride 1 and is channels_last in memory.
        batch: number of images.
        precision: a value of `train.precision`.
        device: name of the device, as for `check_device`.
    """
    where, layout = check_device(device), torch.channels_last
    size = (batch, shape.in_channels, *shape.size)
    kernel = (shape.out_channels, shape.in_channels, shape.kernel, shape.kernel)
    x, weight = (
        torch.randn(s, device=where, dtype=PRECISIONS[precision] or torch.float32).contiguous(memory_format=layout)
        for s in (size, kernel)
    )

    def run(times: int) -> None:
        with torch.inference_mode(), float32_as(precision):
            for _ in range(times):
                F.conv2d(x, weight, padding=shape.kernel // 2)
        _wait(where)

    return run


def copy_size(device: str) -> int:
    """Size in bytes of an array that is several times larger than any cache of the device."""
    return 2**28 if check_device(device).type == "cpu" else 2**31


def make_copy(size: int, device: str) -> Callable[[int], None]:
    """A function that copies an array of `size` bytes to another one `times` times, and waits for the copies."""
    where = check_device(device)
    source = torch.randn(-(-size // 4), device=where)
    target = torch.empty_like(source)

    def run(times: int) -> None:
        for _ in range(times):
            target.copy_(source)
        _wait(where)

    return run


def peak_memory(device: str) -> tuple[int, str] | None:
    """The most bytes held at once since `make_trainer`, and in words by what; None on the CPU."""
    where = check_device(device)
    if where.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(where), "of torch's allocator on the GPU"


def memory_in_use(device: str) -> int | None:
    """Number of bytes that arrays hold now; None on the CPU."""
    where = check_device(device)
    return torch.cuda.memory_allocated(where) if where.type == "cuda" else None


def device_name(device: str) -> str:
    """Name of the GPU, such as "NVIDIA H100 80GB HBM3"; "cpu" for the CPU."""
    where = check_device(device)
    return torch.cuda.get_device_name(where) if where.type == "cuda" else where.type


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
