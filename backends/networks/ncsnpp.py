"""The structure of NCSN++ without any framework: its blocks with their widths and sizes, and its layers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ict_backends.networks.layers import (
    BlockSpec,
    ImageSize,
    Kind,
    Layer,
    attention_layers,
    block_layers,
    embedding_layers,
)
from ict_core import ConfigError, NCSNppConfig


class DownSpec(NamedTuple):
    """A level on the way down: attention after each block, then the step to the next level.

    `down` is None at the last level. `pyramid` is the (in, out) channels of the input pyramid's step beside `down`, or
    None where there is no such step.
    """

    blocks: tuple[BlockSpec, ...]
    attention: bool
    down: BlockSpec | None
    pyramid: tuple[int, int] | None


class UpSpec(NamedTuple):
    """A level on the way up: attention after the last block, then the step to the next level, if any."""

    blocks: tuple[BlockSpec, ...]
    attention: bool
    up: BlockSpec | None


class NCSNppSpec(NamedTuple):
    """The whole network. `up` starts at the lowest level; attention lies between the two blocks of `middle`.

    `out_channels` is the number of channels before the last convolution.
    """

    image_channels: int
    down: tuple[DownSpec, ...]
    middle: tuple[BlockSpec, BlockSpec]
    up: tuple[UpSpec, ...]
    out_channels: int

    def blocks(self) -> Iterator[tuple[str, BlockSpec]]:
        """Yield the name and the specification of every residual block, in the order of evaluation."""
        for i, level in enumerate(self.down):
            yield from ((f"down.{i}.blocks.{j}", block) for j, block in enumerate(level.blocks))
            if level.down is not None:
                yield f"down.{i}.down", level.down
        yield from ((f"middle.block_{j}", block) for j, block in enumerate(self.middle))
        for i, up_level in enumerate(self.up):
            yield from ((f"up.{i}.blocks.{j}", block) for j, block in enumerate(up_level.blocks))
            if up_level.up is not None:
                yield f"up.{i}.up", up_level.up

    def mask_shapes(self) -> list[tuple[int, int, int]]:
        """The shape [channels, height, width] of each dropout mask, in the order of evaluation."""
        return [block.mask_shape for _, block in self.blocks()]


# The variance scale of the initial queries, keys and values: the default of the authors' NIN layer, where all their
# other layers have 1, or 0 for those that end a branch.
PROJECTION_SCALE = 0.1


def ncsnpp_frequencies(channels: int) -> np.ndarray:
    """The frequencies of NCSN++'s positional features, [half] float32: 10000^(-i / (half - 1)), half = channels // 2.

    They are rounded as in the authors' code.
    """
    half = channels // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000) / max(half - 1, 1))
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def ncsnpp_spec(config: NCSNppConfig, shape: Sequence[int]) -> NCSNppSpec:
    """The blocks of a configuration's network for images of `shape` [channels, height, width].

    Raises:
        ConfigError: a block has a number of channels that does not divide into its groups.
    """
    image_channels, whole = shape[0], ImageSize(*shape[1:])
    widths = [mult * config.channels for mult in config.channel_mult]
    channels, pyramid, skips, down = config.channels, image_channels, [config.channels], []
    for i, width in enumerate(widths):
        size, last = whole.halved(i), i + 1 == len(widths)
        blocks = tuple(BlockSpec(channels if j == 0 else width, width, size) for j in range(config.blocks))
        step = None if last else BlockSpec(width, width, size.halved(), down=True)
        pyramid_step = (pyramid, width) if config.input_pyramid and not last else None
        down.append(DownSpec(blocks, size.height in config.attention_resolutions, step, pyramid_step))
        channels = pyramid = width
        skips += [width] * (config.blocks + (not last))
    bottom = BlockSpec(channels, channels, whole.halved(len(widths) - 1))
    up = []
    for i, width in reversed(list(enumerate(widths))):
        size, rising = whole.halved(i), list[BlockSpec]()
        for _ in range(config.blocks + 1):
            rising.append(BlockSpec(channels + skips.pop(), width, size))
            channels = width
        step = BlockSpec(width, width, size.doubled(), up=True) if i > 0 else None
        up.append(UpSpec(tuple(rising), size.height in config.attention_resolutions, step))
    spec = NCSNppSpec(image_channels, tuple(down), (bottom, bottom), tuple(up), channels)
    for name, block in spec.blocks():
        for width in (block.in_channels, block.out_channels):
            if width % groups(width):
                raise ConfigError(
                    f"network.channels = {config.channels} with network.channel_mult = {list(config.channel_mult)} "
                    f"gives {name} {width} channels, which do not divide into {groups(width)} groups; "
                    "above 128 they must be multiples of 32"
                )
    return spec


def groups(channels: int) -> int:
    """The number of groups in a group norm of `channels` channels: min(channels // 4, 32), as the authors have it."""
    return min(channels // 4, 32)


def ncsnpp_layers(config: NCSNppConfig, shape: Sequence[int]) -> Iterator[Layer]:
    """Yield the layers of a configuration's network for images of `shape` [channels, height, width].

    Raises ConfigError as `ncsnpp_spec` does.
    """
    spec, width, size = ncsnpp_spec(config, shape), 4 * config.channels, ImageSize(*shape[1:])
    features = config.channels
    if config.embedding == "fourier":
        yield Layer("embedding.frequencies", Kind.FREQUENCIES, 1, config.channels, trained=False)
        features = 2 * config.channels
    yield from embedding_layers(features, width, config.num_classes, config.labels_at)
    yield Layer("conv_in", Kind.CONVOLUTION, spec.image_channels, config.channels, 3, size)
    for name, block in spec.blocks():
        yield from block_layers(name, block, width, embed_channels=block.out_channels)
    for i, level in enumerate(spec.down):
        if level.attention:
            for j, block in enumerate(level.blocks):
                yield from _attention(f"down.{i}.attention.{j}", block)
        if level.pyramid is not None and level.down is not None:
            entering, leaving = level.pyramid
            yield Layer(f"down.{i}.pyramid.conv", Kind.CONVOLUTION, entering, leaving, 3, level.down.size)
    yield from _attention("middle.attention", spec.middle[0])
    for i, up_level in enumerate(spec.up):
        if up_level.attention:
            yield from _attention(f"up.{i}.attention", up_level.blocks[-1])
    yield Layer("norm_out", Kind.NORM, spec.out_channels, spec.out_channels, size=size)
    yield Layer("conv_out", Kind.CONVOLUTION, spec.out_channels, spec.image_channels, 3, size)


def _attention(name: str, block: BlockSpec) -> Iterator[Layer]:
    """The layers of attention after a block."""
    channels = block.out_channels
    projections = [(layer, channels) for layer in ("query", "key", "value", "out")]
    return attention_layers(name, projections, channels, block.size)
