"""What a configuration costs, counted from shapes: floating-point operations and memory."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

from ict_backends.networks.families import count_parameters, network_layers, trained_shapes
from ict_backends.networks.layers import Kind
from ict_core import Config

# The parameters of the authors' networks at the sizes of each preset, counted from the shapes of their modules, which
# tests/networks/test_cost.py does again. The released ImageNet networks have 295,899,267, since they scale and shift by
# the embedding, where the recipe (and the preset) adds it.
OFFICIAL_PARAMETERS = {
    "cifar10": 56_395_651,
    "cifar10-deep": 97_610_627,
    "imagenet64": 282_168_003,
    "imagenet64-deep": 472_767_555,
}
_FLOAT32 = 4
# The teacher's forward, the student's, and the gradient, which costs as much as two.
_MODEL_PASSES = 4


def forward_flops(config: Config) -> int:
    """Operations of one evaluation of the network for one image, two for each multiplication and addition.

    Convolutions, dense layers and the two products of attention count; norms, activations and FIR filters, which
    are bound by memory, do not.
    """
    return sum(layer.flops for layer in network_layers(config))


class Convolution(NamedTuple):
    """Convolutions of one shape, and how many of them one evaluation of the network has.

    `height` is that of the result.
    """

    in_channels: int
    out_channels: int
    kernel: int
    height: int
    number: int

    @property
    def flops(self) -> int:
        """Operations of one of them for one image."""
        return 2 * self.in_channels * self.out_channels * self.kernel**2 * self.height**2

    def __str__(self) -> str:
        size = f"{self.kernel}x{self.kernel}"
        return f"convolution {size}, {self.in_channels} to {self.out_channels} channels, {self.height}x{self.height}"


def heaviest_convolutions(config: Config, count: int) -> list[Convolution]:
    """The `count` shapes of convolutions that make up most of a forward pass's operations, the heaviest first."""
    counts = Counter(
        (layer.in_size, layer.out_size, layer.kernel, layer.height)
        for layer in network_layers(config)
        if layer.kind in (Kind.CONVOLUTION, Kind.PROJECTION)
    )
    shapes = [Convolution(*sizes, number=number) for sizes, number in counts.items()]
    return sorted(shapes, key=lambda shape: -shape.number * shape.flops)[:count]


def forward_passes(config: Config) -> int:
    """What a training step costs for an image, in forward passes."""
    return _MODEL_PASSES + config.network.checkpoint


def step_flops(config: Config) -> int:
    """Operations of one training step: the teacher's and the student's forward, and twice as many for the gradient.

    With checkpointing, the student's forward is computed once more.
    """
    return forward_passes(config) * config.train.batch_size * forward_flops(config)


def model_flops(config: Config) -> int:
    """Of `step_flops`, those that no way of computing a step saves: what checkpointing computes again is left out."""
    return _MODEL_PASSES * config.train.batch_size * forward_flops(config)


class Memory(NamedTuple):
    """Bytes that training keeps, in float32; activations and images come on top."""

    weights: int
    gradients: int
    optimizer: int
    ema: int


def training_memory(config: Config) -> Memory:
    """The memory of the weights, their gradients, RAdam's two moments and the averaged weights: those that samples are
    made from, and the teacher's where it has its own."""
    stored = _FLOAT32 * count_parameters(config)
    trained = _FLOAT32 * sum(math.prod(shape) for shape in trained_shapes(config).values())
    return Memory(stored, trained, 2 * trained, stored * (1 + config.teacher.averaged))
