"""The structure of ADM without any framework: its blocks with their widths and sizes, and its layers."""

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
from ict_core import ADMConfig, ConfigError

# What is added to the root mean square of a query, key or value where they are normalised.
QKV_EPSILON = 1e-4


class ADMLevelSpec(NamedTuple):
    """A level on the way down or up: attention after each block, then the step to the next level.

    `step` is a residual block, or the number of channels of a convolution that resamples; None at the last level.
    """

    blocks: tuple[BlockSpec, ...]
    attention: bool
    step: BlockSpec | int | None


class ADMSpec(NamedTuple):
    """The whole network. `up` starts at the lowest level; attention lies between the two blocks of `middle`.

    `in_channels` is the number of channels after the first convolution.
    """

    image_channels: int
    in_channels: int
    down: tuple[ADMLevelSpec, ...]
    middle: tuple[BlockSpec, BlockSpec]
    up: tuple[ADMLevelSpec, ...]

    def blocks(self) -> Iterator[tuple[str, BlockSpec]]:
        """Yield the name and the specification of every residual block, in the order of evaluation."""
        yield from _blocks("down", self.down)
        yield from ((f"middle.block_{j}", block) for j, block in enumerate(self.middle))
        yield from _blocks("up", self.up)

    def mask_shapes(self) -> list[tuple[int, int, int]]:
        """The shape [channels, height, width] of each dropout mask, in the order of evaluation."""
        return [block.mask_shape for _, block in self.blocks() if block.dropout]


def _blocks(way: str, levels: Sequence[ADMLevelSpec]) -> Iterator[tuple[str, BlockSpec]]:
    for i, level in enumerate(levels):
        yield from ((f"{way}.{i}.blocks.{j}", block) for j, block in enumerate(level.blocks))
        if isinstance(level.step, BlockSpec):
            yield f"{way}.{i}.{way}", level.step


def adm_frequencies(channels: int) -> np.ndarray:
    """The frequencies of ADM's positional features, [half] float32: 10000^(-i / half), half = channels // 2.

    They are rounded as in the authors' code, which computes the exponent in float32 at every precision of the network.
    At the largest noise levels, where 1000 c_noise is about a thousand, another rounding of the exponent would change
    the network's results by more than float32's rounding does.
    """
    half = channels // 2
    exponents = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def adm_spec(config: ADMConfig, shape: Sequence[int]) -> ADMSpec:
    """The blocks of a configuration's network for images of `shape` [channels, height, width].

    Raises:
        ConfigError: a width does not divide into the groups of its norm or, where there is attention, into heads.
    """
    image_channels, whole = shape[0], ImageSize(*shape[1:])
    widths = [mult * config.channels for mult in config.channel_mult]

    def block(
        in_channels: int, out_channels: int, size: ImageSize, *, up: bool = False, down: bool = False
    ) -> BlockSpec:
        dropout = config.dropout_resolution == 0 or size.height <= config.dropout_resolution
        return BlockSpec(in_channels, out_channels, size, up, down, project=False, dropout=dropout)

    def step(width: int, size: ImageSize, **way: bool) -> BlockSpec | int:
        return block(width, width, size, **way) if config.resblock_updown else width

    channels, skips, down = widths[0], [widths[0]], []
    for i, width in enumerate(widths):
        size, last = whole.halved(i), i + 1 == len(widths)
        blocks = tuple(block(channels if j == 0 else width, width, size) for j in range(config.blocks))
        attention = size.height in config.attention_resolutions
        down.append(ADMLevelSpec(blocks, attention, None if last else step(width, size.halved(), down=True)))
        channels = width
        skips += [width] * (config.blocks + (not last))
    bottom = block(channels, channels, whole.halved(len(widths) - 1))
    up = []
    for i, width in reversed(list(enumerate(widths))):
        size, rising = whole.halved(i), list[BlockSpec]()
        for _ in range(config.blocks + 1):
            rising.append(block(channels + skips.pop(), width, size))
            channels = width
        attention = size.height in config.attention_resolutions
        up.append(ADMLevelSpec(tuple(rising), attention, step(width, size.doubled(), up=True) if i > 0 else None))
    attended = [w for w, level in zip(widths, down, strict=True) if level.attention]
    _check_heads(config, attended + widths[-1:])
    spec = ADMSpec(image_channels, widths[0], tuple(down), (bottom, bottom), tuple(up))
    _check_groups(config, spec)
    return spec


def adm_groups(channels: int, min_group_channels: int) -> int:
    """The number of groups in a group norm of `channels` channels: 32, or fewer, of `min_group_channels` each."""
    return min(32, channels // min_group_channels)


def _check_groups(config: ADMConfig, spec: ADMSpec) -> None:
    for name, block in spec.blocks():
        for width in (block.in_channels, block.out_channels):
            if width % adm_groups(width, config.min_group_channels):
                raise ConfigError(
                    f"network.channels = {config.channels} with network.channel_mult = {list(config.channel_mult)} "
                    f"gives {name} {width} channels, which do not divide into "
                    f"{adm_groups(width, config.min_group_channels)} groups"
                )


def _check_heads(config: ADMConfig, widths: Sequence[int]) -> None:
    for width in widths:
        if width % config.head_channels:
            raise ConfigError(
                f"network.head_channels = {config.head_channels} must divide the width of every level with attention "
                f"and of the lowest; {width} is not divisible"
            )


def adm_layers(config: ADMConfig, shape: Sequence[int]) -> Iterator[Layer]:
    """Yield the layers of a configuration's network for images of `shape` [channels, height, width].

    Raises ConfigError as `adm_spec` does.
    """
    spec, width, size = adm_spec(config, shape), 4 * config.channels, ImageSize(*shape[1:])
    yield from embedding_layers(config.channels, width, config.num_classes)
    yield Layer("conv_in", Kind.CONVOLUTION, spec.image_channels, spec.in_channels, 3, size)
    for name, block in spec.blocks():
        embed_channels = block.out_channels * (2 if config.scale_shift else 1)
        yield from block_layers(name, block, width, embed_channels=embed_channels)
    for way, levels in (("down", spec.down), ("up", spec.up)):
        for i, level in enumerate(levels):
            if level.attention:
                for j, block in enumerate(level.blocks):
                    yield from _attention(f"{way}.{i}.attention.{j}", block)
            if isinstance(level.step, int):
                leaving = level.blocks[0].size
                after = leaving.doubled() if way == "up" else leaving.halved()
                yield Layer(f"{way}.{i}.{way}.conv", Kind.CONVOLUTION, level.step, level.step, 3, after)
    yield from _attention("middle.attention", spec.middle[0])
    yield Layer("norm_out", Kind.NORM, spec.in_channels, spec.in_channels, size=size)
    yield Layer("conv_out", Kind.CONVOLUTION, spec.in_channels, spec.image_channels, 3, size)


def _attention(name: str, block: BlockSpec) -> Iterator[Layer]:
    """The layers of attention after a block."""
    channels = block.out_channels
    return attention_layers(name, [("qkv", 3 * channels), ("out", channels)], channels, block.size)
