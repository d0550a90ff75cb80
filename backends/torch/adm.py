"""ADM in torch: the U-Net of the ImageNet and LSUN models (Dhariwal & Nichol 2021, as consistency models use it)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ict_backends.networks.adm import QKV_EPSILON, ADMLevelSpec, adm_frequencies, adm_groups, adm_spec
from ict_backends.networks.layers import BlockSpec, kept_share
from ict_backends.torch.layers import (
    CastConv,
    CastGroupNorm,
    Embedding,
    Middle,
    call,
    dot_product_attention,
    downsample,
    sum_of_branches,
    upsample,
    widened,
)
from ict_core import ADMConfig


def conv(in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1, zero: bool = False) -> CastConv:
    """A biased convolution, initialised as torch does by default (and so the authors), or with zeros."""
    layer = CastConv(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)
    if zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int, min_group_channels: int = 1) -> CastGroupNorm:
    """Group normalisation of `channels` channels in `adm_groups` groups, epsilon 1e-5."""
    return CastGroupNorm(adm_groups(channels, min_group_channels), channels, eps=1e-5)


class ADMBlock(nn.Module):
    """Residual block: norm, swish, resample, conv; + embedding; norm, swish, dropout, conv; + shortcut.

    [b, in, h, w], [b, e] -> [b, out, h', w'], where h' is h, h/2 (`spec.down`) or 2h (`spec.up`). With `scale_shift`
    the embedding is not added but scales and shifts the result of the second norm. `mask`, bool [b, out, h', w'],
    says which elements dropout keeps; None keeps all, unscaled.
    """

    def __init__(
        self, spec: BlockSpec, embedding: int, *, scale_shift: bool, dropout: float, min_group_channels: int = 1
    ) -> None:
        super().__init__()
        self.norm_0 = group_norm(spec.in_channels, min_group_channels)
        self.conv_0 = conv(spec.in_channels, spec.out_channels)
        self.embed = nn.Linear(embedding, spec.out_channels * (2 if scale_shift else 1))
        self.norm_1 = group_norm(spec.out_channels, min_group_channels)
        self.conv_1 = conv(spec.out_channels, spec.out_channels, zero=True)
        self.shortcut = conv(spec.in_channels, spec.out_channels, 1) if spec.has_shortcut else None
        self.up, self.down, self.takes_mask = spec.up, spec.down, spec.dropout
        self.scale_shift, self.kept = scale_shift, kept_share(dropout)

    def forward(self, x: Tensor, embedding: Tensor, mask: Tensor | None) -> Tensor:
        """The block's output, [b, out, h', w'], in the dtype of x."""
        h = self.norm_0.activated(x)
        if self.up:
            h, x = upsample(h, ()), upsample(x, ())
        elif self.down:
            h, x = downsample(h, ()), downsample(x, ())
        e = self.embed(F.silu(embedding))
        if self.scale_shift:
            scale, shift = e[:, :, None, None].chunk(2, dim=1)
            h = F.silu(self.norm_1(self.conv_0(h)) * (1 + scale) + shift).to(x.dtype)
            h = h if mask is None else h.mul_(mask).div_(self.kept)
        else:  # the convolution's bias joins the shift
            shift = e + self.conv_0.bias
            h = self.norm_1.activated(self.conv_0.with_bias(h, None), shift, mask, kept=self.kept)
        return sum_of_branches(self.conv_1, h, self.shortcut, x, rescale=False)


class ADMAttention(nn.Module):
    """Self-attention over the pixels with several heads and the residual connection: [b, c, h, w] -> the same shape."""

    def __init__(
        self, channels: int, *, head_channels: int, min_group_channels: int = 1, normalize: bool = False
    ) -> None:
        super().__init__()
        self.norm = group_norm(channels, min_group_channels)
        self.qkv = conv(channels, 3 * channels, 1)
        self.out = conv(channels, channels, 1, zero=True)
        self.heads, self.normalize = channels // head_channels, normalize

    def forward(self, x: Tensor) -> Tensor:
        """The sum of x and its attention, in the shape of x."""
        return x + self.out(attend(self.qkv(self.norm.rounded(x)), self.heads, normalize=self.normalize))


def attend(qkv: Tensor, heads: int, *, normalize: bool = False) -> Tensor:
    """Attention over the pixels in several heads.

    Args:
        qkv: [b, 3 heads d, h, w], queries, then keys, then values.
        heads: number of heads.
        normalize: normalise each query, key and value first (`network.normalize_qkv`).

    Returns:
        [b, heads d, h, w].
    """
    q, k, v = rearrange(qkv, "b (three heads d) h w -> three b heads (h w) d", three=3, heads=heads)
    if normalize:
        q, k, v = (normalized(x) for x in (q, k, v))
    h = dot_product_attention(q, k, v)
    return rearrange(h, "b heads (h w) d -> b (heads d) h w", h=qkv.shape[2])


def normalized(x: Tensor) -> Tensor:
    """The vectors x, [..., d], each divided by `QKV_EPSILON` + its root mean square, rounded once.

    At a vector of zeros, the gradient of the root mean square counts as 0.
    """
    wide = widened(x)
    rms = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
    return (wide / (QKV_EPSILON + rms)).to(x.dtype)


class Resample(nn.Module):
    """Halve images [b, c, h, w] by a strided 3x3 convolution, or (`up`) repeat each pixel 2x2 and convolve."""

    def __init__(self, channels: int, *, up: bool) -> None:
        super().__init__()
        self.conv = conv(channels, channels, stride=1 if up else 2)
        self.up = up

    def forward(self, x: Tensor) -> Tensor:
        """The resampled images, [b, c, h / 2, w / 2] or (`up`) [b, c, 2 h, 2 w]."""
        return self.conv(upsample(x, ()) if self.up else x)


class PositionalEmbedding(nn.Module):
    """Features of c_noise and of the label through two dense layers: [b] -> [b, 4 channels].

    The features are cos, then sin, of scale c_noise at the frequencies 10000^(-i / half), i = 0..half-1, where half is
    channels // 2; a zero follows if the number of channels is odd.
    """

    frequencies: Tensor

    def __init__(self, channels: int, *, scale: float, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.from_numpy(adm_frequencies(channels)), persistent=False)
        self.scale, self.odd = scale, channels % 2
        self.dense_0 = nn.Linear(channels, 4 * channels)
        self.dense_1 = nn.Linear(4 * channels, 4 * channels)
        self.labels = Embedding(num_classes, 4 * channels) if num_classes else None

    def forward(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """The embedding, [b, 4 channels], of c_noise, [b], and labels, [b] (None without classes)."""
        angles = (self.scale * c_noise)[:, None] * self.frequencies.to(c_noise)
        features = F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, self.odd))
        embedding = self.dense_1(F.silu(self.dense_0(features)))
        return embedding if self.labels is None else embedding + self.labels(labels)


MakeBlock = Callable[[BlockSpec], ADMBlock]
MakeAttention = Callable[[int], ADMAttention]


class ADMLevel(nn.Module):
    """One resolution: its blocks, attention after each, and the step to the next resolution as `down` or `up`."""

    down: Resample | ADMBlock | None
    up: Resample | ADMBlock | None

    def __init__(self, spec: ADMLevelSpec, block: MakeBlock, attention: MakeAttention, *, up: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block(b) for b in spec.blocks)
        self.attention = nn.ModuleList(attention(b.out_channels) for b in spec.blocks if spec.attention)
        step = Resample(spec.step, up=up) if isinstance(spec.step, int) else spec.step and block(spec.step)
        self.add_module("up" if up else "down", step)


class ADM(nn.Module):
    """The free network F of the consistency function.

    Its output depends only on the weights and the arguments: there is no training mode. Dropout happens where masks are
    given, so that passes share their masks if they are given the same ones.

    Args:
        config: the network's settings.
        shape: [channels, height, width] of an image, each divisible by 2^(levels - 1).

    Attributes:
        mask_shapes: [channels, height, width] of each dropout mask, in the order of use.
    """

    def __init__(self, config: ADMConfig, shape: Sequence[int]) -> None:
        super().__init__()
        spec = adm_spec(config, shape)
        self.config = config
        self.mask_shapes = spec.mask_shapes()
        block = partial(
            ADMBlock,
            embedding=4 * config.channels,
            scale_shift=config.scale_shift,
            dropout=config.dropout,
            min_group_channels=config.min_group_channels,
        )
        attention = partial(
            ADMAttention,
            head_channels=config.head_channels,
            min_group_channels=config.min_group_channels,
            normalize=config.normalize_qkv,
        )
        self.embedding = PositionalEmbedding(
            config.channels, scale=config.embedding_scale, num_classes=config.num_classes
        )
        self.conv_in = conv(spec.image_channels, spec.in_channels)
        self.down = nn.ModuleList(ADMLevel(level, block, attention, up=False) for level in spec.down)
        self.middle = Middle(spec.middle, block, attention)
        self.up = nn.ModuleList(ADMLevel(level, block, attention, up=True) for level in spec.up)
        self.norm_out = group_norm(spec.in_channels, config.min_group_channels)
        self.conv_out = conv(spec.in_channels, spec.image_channels, zero=True)
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
        module = partial(call, checkpoint=self.config.checkpoint)
        none: Sequence[Tensor | None] = [None] * len(self.mask_shapes)
        given = iter(none if masks is None else masks)
        embedding = self.embedding(c_noise, labels)

        def run(block: ADMBlock, h: Tensor) -> Tensor:
            return module(block, h, embedding, next(given) if block.takes_mask else None)

        h = self.conv_in(x_in.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for level in cast(Iterable[ADMLevel], self.down):
            for i, block in enumerate(cast(Iterable[ADMBlock], level.blocks)):
                h = run(block, h)
                if len(level.attention):
                    h = module(level.attention[i], h)
                skips.append(h)
            if level.down is not None:
                h = level.down(h) if isinstance(level.down, Resample) else run(level.down, h)
                skips.append(h)
        h = run(self.middle.block_1, module(self.middle.attention, run(self.middle.block_0, h)))
        for level in cast(Iterable[ADMLevel], self.up):
            for i, block in enumerate(cast(Iterable[ADMBlock], level.blocks)):
                h = run(block, torch.cat([h, skips.pop()], dim=1))
                if len(level.attention):
                    h = module(level.attention[i], h)
            if level.up is not None:
                h = level.up(h) if isinstance(level.up, Resample) else run(level.up, h)
        return self.conv_out(self.norm_out.activated(h, to=self.norm_out.weight.dtype))
