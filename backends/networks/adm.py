"""What ADM is made of, before any framework: its blocks with their widths and sizes, its parameters' shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ict_backends.networks.ncsnpp import BlockSpec, Shapes, block_shapes, conv_shapes, dense_shapes, norm_shapes
from ict_core import ADMConfig, ConfigError


class ADMLevelSpec(NamedTuple):
    """A level on the way down or up: attention after each block, then the step to the next level.

    `step` is a residual block, or the channels of a convolution that resamples.
    """

    blocks: tuple[BlockSpec, ...]
    attention: bool
    step: BlockSpec | int | None


class ADMSpec(NamedTuple):
    """The whole network. `up` starts at the lowest level; `middle` is block, attention, block."""

    image_channels: int
    in_channels: int
    down: tuple[ADMLevelSpec, ...]
    middle: tuple[BlockSpec, BlockSpec]
    up: tuple[ADMLevelSpec, ...]

    def blocks(self) -> Iterator[tuple[str, BlockSpec]]:
        """Every residual block with its name, in the order of evaluation."""
        yield from _blocks("down", self.down)
        yield from ((f"middle.block_{j}", block) for j, block in enumerate(self.middle))
        yield from _blocks("up", self.up)

    def mask_shapes(self) -> list[tuple[int, int, int]]:
        """[channels, height, width] of each dropout mask, in the order of evaluation."""
        return [block.mask_shape for _, block in self.blocks() if block.dropout]


def _blocks(way: str, levels: Sequence[ADMLevelSpec]) -> Iterator[tuple[str, BlockSpec]]:
    for i, level in enumerate(levels):
        yield from ((f"{way}.{i}.blocks.{j}", block) for j, block in enumerate(level.blocks))
        if isinstance(level.step, BlockSpec):
            yield f"{way}.{i}.{way}", level.step


def positional_frequencies(channels: int) -> np.ndarray:
    """[channels // 2] float32 10000^(-i / half), half = channels // 2: rounded as in the authors' code.

    Their exponent is computed in float32 at every precision of the network, which at the largest noise levels, where
    1000 c_noise is about a thousand, moves what the network computes by more than float32's rounding does.
    """
    half = channels // 2
    exponents = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def adm_spec(config: ADMConfig, shape: Sequence[int]) -> ADMSpec:
    """The blocks of a configuration for images of `shape` [channels, height, width].

    Raises:
        ConfigError: an attention layer has a width that does not divide into heads.
    """
    image_channels, height, _ = shape
    widths = [mult * config.channels for mult in config.channel_mult]

    def block(in_channels: int, out_channels: int, size: int, *, up: bool = False, down: bool = False) -> BlockSpec:
        dropout = config.dropout_resolution == 0 or size <= config.dropout_resolution
        return BlockSpec(in_channels, out_channels, size, up, down, project=False, dropout=dropout)

    def step(width: int, size: int, **way: bool) -> BlockSpec | int:
        return block(width, width, size, **way) if config.resblock_updown else width

    channels, skips, down = widths[0], [widths[0]], []
    for i, width in enumerate(widths):
        size, last = height >> i, i + 1 == len(widths)
        blocks = tuple(block(channels if j == 0 else width, width, size) for j in range(config.blocks))
        attention = size in config.attention_resolutions
        down.append(ADMLevelSpec(blocks, attention, None if last else step(width, size // 2, down=True)))
        channels = width
        skips += [width] * (config.blocks + (not last))
    bottom = block(channels, channels, height >> (len(widths) - 1))
    up = []
    for i, width in reversed(list(enumerate(widths))):
        size, blocks = height >> i, []
        for _ in range(config.blocks + 1):
            blocks.append(block(channels + skips.pop(), width, size))
            channels = width
        attention = size in config.attention_resolutions
        up.append(ADMLevelSpec(tuple(blocks), attention, step(width, 2 * size, up=True) if i > 0 else None))
    _check_heads(config, [w for i, w in enumerate(widths) if height >> i in config.attention_resolutions] + widths[-1:])
    return ADMSpec(image_channels, widths[0], tuple(down), (bottom, bottom), tuple(up))


def _check_heads(config: ADMConfig, widths: Sequence[int]) -> None:
    for width in widths:
        if width % config.head_channels:
            raise ConfigError(
                f"network.head_channels = {config.head_channels} must divide the width of every level with attention "
                f"and of the lowest; {width} is not divisible"
            )


def adm_parameters(config: ADMConfig, shape: Sequence[int]) -> Shapes:
    """Every stored array of the network by name, in the layout of checkpoints: [out, in, h, w] and [out, in]."""
    spec, width = adm_spec(config, shape), 4 * config.channels
    shapes = dense_shapes("embedding.dense_0", config.channels, width)
    shapes |= dense_shapes("embedding.dense_1", width, width)
    if config.num_classes:
        shapes["embedding.labels.weight"] = (config.num_classes, width)
    shapes |= conv_shapes("conv_in", spec.image_channels, spec.in_channels, 3)
    for name, block in spec.blocks():
        embed_channels = block.out_channels * (2 if config.scale_shift else 1)
        shapes |= block_shapes(name, block, width, embed_channels=embed_channels)
    for way, levels in (("down", spec.down), ("up", spec.up)):
        for i, level in enumerate(levels):
            if level.attention:
                for j, block in enumerate(level.blocks):
                    shapes |= _attention(f"{way}.{i}.attention.{j}", block.out_channels)
            if isinstance(level.step, int):
                shapes |= conv_shapes(f"{way}.{i}.{way}.conv", level.step, level.step, 3)
    shapes |= _attention("middle.attention", spec.middle[0].out_channels)
    shapes |= norm_shapes("norm_out", spec.in_channels)
    return shapes | conv_shapes("conv_out", spec.in_channels, spec.image_channels, 3)


def _attention(name: str, channels: int) -> Shapes:
    shapes = norm_shapes(f"{name}.norm", channels) | conv_shapes(f"{name}.qkv", channels, 3 * channels, 1)
    return shapes | conv_shapes(f"{name}.out", channels, channels, 1)
