"""NCSN++ in torch: the U-Net of the CIFAR-10 models (Song et al. 2021, as consistency models use it)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ict_backends.networks.layers import BlockSpec
from ict_backends.networks.ncsnpp import DownSpec, UpSpec, ncsnpp_spec
from ict_backends.torch.layers import (
    Attention,
    Conv,
    GroupNorm,
    Middle,
    NoiseEmbedding,
    PyramidDownsample,
    ResidualBlock,
    add,
    call,
)
from ict_core import NCSNppConfig

MakeBlock = Callable[[BlockSpec], ResidualBlock]
MakeAttention = Callable[[int], Attention]


class DownLevel(nn.Module):
    """One resolution on the way down: its blocks, attention after each, and the step to the next resolution."""

    def __init__(self, spec: DownSpec, block: MakeBlock, attention: MakeAttention, taps: Sequence[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(b) for b in spec.blocks)
        self.attention = nn.ModuleList(attention(b.out_channels) for b in spec.blocks if spec.attention)
        self.down = block(spec.down) if spec.down else None
        self.pyramid = PyramidDownsample(*spec.pyramid, taps) if spec.pyramid else None


class UpLevel(nn.Module):
    """One resolution on the way up: its blocks, attention after the last, and the step to the next resolution."""

    def __init__(self, spec: UpSpec, block: MakeBlock, attention: MakeAttention) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(b) for b in spec.blocks)
        self.attention = attention(spec.blocks[-1].out_channels) if spec.attention else None
        self.up = block(spec.up) if spec.up else None


class NCSNpp(nn.Module):
    """The free network F of the consistency function.

    Its output depends only on the weights and the arguments: there is no training mode. Dropout happens where masks are
    given, so that passes share their masks if they are given the same ones.

    Args:
        config: the network's settings.
        shape: [channels, height, width] of an image, each divisible by 2^(levels - 1).

    Attributes:
        mask_shapes: [channels, height, width] of each dropout mask, in the order of use.
    """

    def __init__(self, config: NCSNppConfig, shape: Sequence[int]) -> None:
        super().__init__()
        spec = ncsnpp_spec(config, shape)
        self.config = config
        self.mask_shapes = spec.mask_shapes()
        block = partial(
            ResidualBlock,
            embedding=4 * config.channels,
            taps=config.fir_kernel,
            dropout=config.dropout,
            skip_rescale=config.skip_rescale,
        )
        attention = partial(Attention, skip_rescale=config.skip_rescale)
        self.embedding = NoiseEmbedding(
            config.channels,
            kind=config.embedding,
            scale=config.embedding_scale,
            num_classes=config.num_classes,
            labels_at=config.labels_at,
        )
        self.conv_in = Conv(spec.image_channels, config.channels)
        self.down = nn.ModuleList(DownLevel(level, block, attention, config.fir_kernel) for level in spec.down)
        self.middle = Middle(spec.middle, block, attention)
        self.up = nn.ModuleList(UpLevel(level, block, attention) for level in spec.up)
        self.norm_out = GroupNorm(spec.out_channels)
        self.conv_out = Conv(spec.out_channels, spec.image_channels, scale=0.0)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def forward(
        self,
        x_in: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        masks: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Evaluate F(x_in, c_noise, labels).

        Args:
            x_in: [b, c, h, w] scaled noisy images; the network computes in their dtype (see `train.precision`).
            c_noise: [b] log(sigma) / 4 of the noise levels.
            labels: [b] int64 in 0..num_classes-1, or `NO_CLASS`; None for an unconditional network.
            masks: dropout masks, bool, one [b, *shape] for each of `mask_shapes`; None for no dropout.

        Returns:
            [b, c, h, w], in the dtype of the weights.
        """
        run = partial(call, checkpoint=self.config.checkpoint)
        none: Sequence[Tensor | None] = [None] * len(self.mask_shapes)
        next_mask = iter(none if masks is None else masks).__next__
        embedding = self.embedding(c_noise, labels)
        x_in = x_in.contiguous(memory_format=torch.channels_last)
        h, skips = self._go_down(x_in, embedding, next_mask, run)
        h = run(self.middle.block_0, h, embedding, next_mask())
        h = run(self.middle.attention, h)
        h = run(self.middle.block_1, h, embedding, next_mask())
        for level in cast(Iterable[UpLevel], self.up):
            for block in level.blocks:
                h = run(block, torch.cat([h, skips.pop()], dim=1), embedding, next_mask())
            if level.attention is not None:
                h = run(level.attention, h)
            if level.up is not None:
                h = run(level.up, h, embedding, next_mask())
        return self.conv_out(self.norm_out.activated(h, to=self.norm_out.weight.dtype))

    def _go_down(
        self, x_in: Tensor, embedding: Tensor, next_mask: Callable[[], Tensor | None], run: Callable[..., Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        h, pyramid = self.conv_in(x_in), x_in
        skips = [h]
        for level in cast(Iterable[DownLevel], self.down):
            for i, block in enumerate(level.blocks):
                h = run(block, h, embedding, next_mask())
                if level.attention:
                    h = run(level.attention[i], h)
                skips.append(h)
            if level.down is not None:
                h = run(level.down, h, embedding, next_mask())
                if level.pyramid is not None:
                    h = pyramid = add(level.pyramid(pyramid), h, rescale=self.config.skip_rescale)
                skips.append(h)
        return h, skips
