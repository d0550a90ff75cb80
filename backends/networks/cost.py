"""The costs of a configuration, counted from shapes: floating-point operations and memory."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from ict_backends.networks.families import count_parameters, mask_shapes, network_layers, trained_shapes
from ict_backends.networks.layers import ImageSize, Kind
from ict_core import Config

# The numbers of parameters of the authors' networks at the sizes of each preset, counted from the shapes of their
# modules; tests/networks/test_cost.py repeats the count. The released ImageNet networks have 295,899,267, since they
# scale and shift by the embedding, where the recipe (and the preset) adds it.
OFFICIAL_PARAMETERS = {
    "cifar10": 56_395_651,
    "cifar10-deep": 97_610_627,
    "imagenet64": 282_168_003,
    "imagenet64-deep": 472_767_555,
}
_FLOAT32 = 4
# The teacher's forward pass, the student's, and the gradient, which costs as much as two.


def forward_flops(config: Config) -> int:
    """The operations of one evaluation of the network for one image; a multiplication with an addition counts as two.

    Convolutions, dense layers and the two products of attention count; norms, activations and FIR filters do not,
    since memory limits them.
    """
    return sum(layer.flops for layer in network_layers(config))


class Convolution(NamedTuple):
    """Convolutions of one shape.

    Attributes:
        in_channels, out_channels: channels of the input and of the result.
        kernel: height and width of the kernel in pixels.
        size: of the images in the result.
        number: how many such convolutions one evaluation of the network has.
    """

    in_channels: int
    out_channels: int
    kernel: int
    size: ImageSize
    number: int

    @property
    def flops(self) -> int:
        """The operations of one such convolution for one image."""
        return 2 * self.in_channels * self.out_channels * self.kernel**2 * self.size.pixels

    def __str__(self) -> str:
        kernel = f"{self.kernel}x{self.kernel}"
        return f"convolution {kernel}, {self.in_channels} to {self.out_channels} channels, {self.size}"


def heaviest_convolutions(config: Config, count: int) -> list[Convolution]:
    """The `count` shapes of convolutions that make up most of a forward pass's operations, the heaviest first."""
    counts = Counter(
        (layer.in_size, layer.out_size, layer.kernel, layer.size)
        for layer in network_layers(config)
        if layer.kind in (Kind.CONVOLUTION, Kind.PROJECTION)
    )
    shapes = [Convolution(*sizes, number=number) for sizes, number in counts.items()]
    return sorted(shapes, key=lambda shape: -shape.number * shape.flops)[:count]


def forward_passes(config: Config) -> int:
    """The cost of a training step for one image, in forward passes."""
    return _model_passes(config) + config.network.checkpoint


def _model_passes(config: Config) -> int:
    """As many as no implementation can save: the student's, two for its gradient, and the teacher's if there is one."""
    return 3 + config.curriculum.has_teacher


def step_flops(config: Config) -> int:
    """The operations of one training step: a forward pass of teacher and student each, and two for the gradient.

    With checkpointing, the student's forward pass is computed once more.
    """
    return forward_passes(config) * config.train.batch_size * forward_flops(config)


def model_flops(config: Config) -> int:
    """The operations of one training step that no implementation can save: `step_flops` without checkpointing."""
    return _model_passes(config) * config.train.batch_size * forward_flops(config)


class Memory(NamedTuple):
    """The bytes that training keeps in float32, on each device; activations, masks and images need more."""

    weights: int
    gradients: int
    optimizer: int
    ema: int


def training_memory(config: Config) -> Memory:
    """The memory of the weights, their gradients, RAdam's two moments and the averaged weights.

    The averaged weights are the EMA that is sampled from, those of `train.ema_sigma_rel`, and the teacher's where it
    has an average of its own.
    """
    stored = _FLOAT32 * count_parameters(config)
    trained = _FLOAT32 * sum(math.prod(shape) for shape in trained_shapes(config).values())
    return Memory(stored, trained, 2 * trained, stored * count_averages(config))


def count_averages(config: Config) -> int:
    """The number of averages of all weights that training keeps, the teacher's included."""
    return 1 + config.teacher.averaged + len(config.train.ema_sigma_rel)


def checkpoint_parts(config: Config) -> dict[str, int]:
    """The bytes of the arrays of a checkpoint, by what they are. Their names and the settings take some kB more."""
    memory = training_memory(config)
    averaged = {"averaged weights": memory.weights}
    teacher = {"teacher": memory.weights} if config.teacher.averaged else {}
    lengths = {f"average {name}": memory.weights for name in config.train.average_exponents}
    return {"weights": memory.weights, "optimiser": memory.optimizer} | averaged | teacher | lengths


def update_memory(config: Config) -> int:
    """The bytes that torch needs beside `training_memory` for a moment, while it updates the weights.

    First the gradient is there twice, in its own arrays and as one vector; then RAdam has an intermediate result of its
    size. There are no activations by then. JAX updates in place.
    """
    return training_memory(config).gradients


def mask_memory(config: Config, images: int) -> int:
    """The bytes of the dropout masks of `images` images at a time: one for each element."""
    if not config.network.dropout:
        return 0
    elements = sum(math.prod(shape) for shape in mask_shapes(config))
    return images * elements * (1 if config.teacher.share_dropout else 2)
