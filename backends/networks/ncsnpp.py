"""What NCSN++ is made of, before any framework: its blocks with their widths and sizes, its parameters' shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ict_core import ConfigError, NCSNppConfig

Shapes = dict[str, tuple[int, ...]]


class BlockSpec(NamedTuple):
    """A residual block. `height` is that of its output.

    With `project`, the shortcut of a block that resamples has a convolution though the width stays. Without `dropout`
    the block takes no mask.
    """

    in_channels: int
    out_channels: int
    height: int
    up: bool = False
    down: bool = False
    project: bool = True
    dropout: bool = True

    @property
    def has_shortcut(self) -> bool:
        """Whether the other branch needs a 1x1 convolution."""
        return self.in_channels != self.out_channels or (self.project and (self.up or self.down))

    @property
    def mask_shape(self) -> tuple[int, int, int]:
        """[channels, height, width] of its dropout mask."""
        return (self.out_channels, self.height, self.height)


class DownSpec(NamedTuple):
    """A level on the way down: attention after each block, then the step to the next level.

    `pyramid` is (in, out) channels of the input pyramid's step beside `down`.
    """

    blocks: tuple[BlockSpec, ...]
    attention: bool
    down: BlockSpec | None
    pyramid: tuple[int, int] | None


class UpSpec(NamedTuple):
    """A level on the way up: attention after the last block, then the step to the next level."""

    blocks: tuple[BlockSpec, ...]
    attention: bool
    up: BlockSpec | None


class NCSNppSpec(NamedTuple):
    """The whole network. `up` starts at the lowest level; `middle` is block, attention, block."""

    image_channels: int
    down: tuple[DownSpec, ...]
    middle: tuple[BlockSpec, BlockSpec]
    up: tuple[UpSpec, ...]
    out_channels: int

    def blocks(self) -> Iterator[tuple[str, BlockSpec]]:
        """Every residual block with its name, in the order of evaluation."""
        for i, level in enumerate(self.down):
            yield from ((f"down.{i}.blocks.{j}", block) for j, block in enumerate(level.blocks))
            if level.down is not None:
                yield f"down.{i}.down", level.down
        yield from ((f"middle.block_{j}", block) for j, block in enumerate(self.middle))
        for i, level in enumerate(self.up):
            yield from ((f"up.{i}.blocks.{j}", block) for j, block in enumerate(level.blocks))
            if level.up is not None:
                yield f"up.{i}.up", level.up

    def mask_shapes(self) -> list[tuple[int, int, int]]:
        """[channels, height, width] of each dropout mask, in the order of evaluation."""
        return [block.mask_shape for _, block in self.blocks()]


def positional_frequencies(channels: int) -> np.ndarray:
    """[channels // 2] float32 10000^(-i / (half - 1)), half = channels // 2: rounded as in the authors' code."""
    half = channels // 2
    exponents = np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000) / max(half - 1, 1))
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def ncsnpp_spec(config: NCSNppConfig, shape: Sequence[int]) -> NCSNppSpec:
    """The blocks of a configuration for images of `shape` [channels, height, width].

    Raises:
        ConfigError: a block has a number of channels that does not divide into its groups.
    """
    image_channels, height, _ = shape
    widths = [mult * config.channels for mult in config.channel_mult]
    channels, pyramid, skips, down = config.channels, image_channels, [config.channels], []
    for i, width in enumerate(widths):
        size, last = height >> i, i + 1 == len(widths)
        blocks = tuple(BlockSpec(channels if j == 0 else width, width, size) for j in range(config.blocks))
        step = None if last else BlockSpec(width, width, size // 2, down=True)
        pyramid_step = (pyramid, width) if config.input_pyramid and not last else None
        down.append(DownSpec(blocks, size in config.attention_resolutions, step, pyramid_step))
        channels = pyramid = width
        skips += [width] * (config.blocks + (not last))
    bottom = BlockSpec(channels, channels, height >> (len(widths) - 1))
    up = []
    for i, width in reversed(list(enumerate(widths))):
        size, blocks = height >> i, []
        for _ in range(config.blocks + 1):
            blocks.append(BlockSpec(channels + skips.pop(), width, size))
            channels = width
        step = BlockSpec(width, width, 2 * size, up=True) if i > 0 else None
        up.append(UpSpec(tuple(blocks), size in config.attention_resolutions, step))
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
    """The number of groups that a normalisation of so many channels has: the authors' min(channels // 4, 32)."""
    return min(channels // 4, 32)


def ncsnpp_parameters(config: NCSNppConfig, shape: Sequence[int]) -> Shapes:
    """Every stored array of the network by name, in the layout of checkpoints.

    Convolutions are [out, in, h, w], dense layers [out, in]. `embedding.frequencies` is stored and has no gradient.
    """
    spec, width = ncsnpp_spec(config, shape), 4 * config.channels
    shapes: Shapes = {}
    features = config.channels
    if config.embedding == "fourier":
        shapes["embedding.frequencies"] = (config.channels,)
        features = 2 * config.channels
    shapes |= dense_shapes("embedding.dense_0", features, width) | dense_shapes("embedding.dense_1", width, width)
    if config.num_classes:
        shapes["embedding.labels.weight"] = (config.num_classes, width)
    shapes |= conv_shapes("conv_in", spec.image_channels, config.channels, 3)
    for name, block in spec.blocks():
        shapes |= block_shapes(name, block, width, embed_channels=block.out_channels)
    for i, level in enumerate(spec.down):
        if level.attention:
            for j, block in enumerate(level.blocks):
                shapes |= _attention(f"down.{i}.attention.{j}", block.out_channels)
        if level.pyramid is not None:
            shapes |= conv_shapes(f"down.{i}.pyramid.conv", *level.pyramid, 3)
    shapes |= _attention("middle.attention", spec.middle[0].out_channels)
    for i, level in enumerate(spec.up):
        if level.attention:
            shapes |= _attention(f"up.{i}.attention", level.blocks[-1].out_channels)
    return (
        shapes
        | norm_shapes("norm_out", spec.out_channels)
        | conv_shapes("conv_out", spec.out_channels, spec.image_channels, 3)
    )


def block_shapes(name: str, block: BlockSpec, embedding: int, *, embed_channels: int) -> Shapes:
    """The arrays of a residual block whose embedding of `embedding` features is made `embed_channels` wide."""
    shapes = norm_shapes(f"{name}.norm_0", block.in_channels)
    shapes |= conv_shapes(f"{name}.conv_0", block.in_channels, block.out_channels, 3)
    shapes |= dense_shapes(f"{name}.embed", embedding, embed_channels)
    shapes |= norm_shapes(f"{name}.norm_1", block.out_channels)
    shapes |= conv_shapes(f"{name}.conv_1", block.out_channels, block.out_channels, 3)
    if block.has_shortcut:
        shapes |= conv_shapes(f"{name}.shortcut", block.in_channels, block.out_channels, 1)
    return shapes


def _attention(name: str, channels: int) -> Shapes:
    shapes = norm_shapes(f"{name}.norm", channels)
    for layer in ("query", "key", "value", "out"):
        shapes |= conv_shapes(f"{name}.{layer}", channels, channels, 1)
    return shapes


def conv_shapes(name: str, in_channels: int, out_channels: int, size: int) -> Shapes:
    """The arrays of a biased convolution."""
    return {f"{name}.weight": (out_channels, in_channels, size, size), f"{name}.bias": (out_channels,)}


def dense_shapes(name: str, in_features: int, out_features: int) -> Shapes:
    """The arrays of a biased dense layer."""
    return {f"{name}.weight": (out_features, in_features), f"{name}.bias": (out_features,)}


def norm_shapes(name: str, channels: int) -> Shapes:
    """The arrays of a normalisation."""
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}
