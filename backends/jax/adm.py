"""ADM in JAX: the U-Net of the ImageNet and LSUN models (Dhariwal & Nichol 2021, as consistency models use it)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import Array

from ict_backends.jax.layers import (
    CastConv,
    CastGroupNorm,
    Embedding,
    Initializer,
    Middle,
    call,
    dot_product_attention,
    downsample,
    dropped,
    upsample,
    widened,
)
from ict_backends.networks.adm import QKV_EPSILON, ADMLevelSpec, adm_frequencies, adm_groups, adm_spec
from ict_backends.networks.layers import BlockSpec, kept_share
from ict_core import ADMConfig


def torch_uniform(fan_in: int) -> Initializer:
    """An initialiser that draws from U(-a, a), a = 1 / sqrt(fan_in), as torch (and so the authors) does by default."""

    def fill(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return jax.random.uniform(key, shape, dtype, -(fan_in**-0.5), fan_in**-0.5, out_sharding=out_sharding)

    return fill


def conv(
    in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1, zero: bool = False, rngs: nnx.Rngs
) -> CastConv:
    """A biased convolution, initialised as torch does by default (and so the authors), or with zeros."""
    init = jax.nn.initializers.zeros if zero else torch_uniform(in_channels * kernel_size**2)
    pad = kernel_size // 2  # not "SAME", which pads a strided convolution on one side
    return CastConv(
        in_channels,
        out_channels,
        (kernel_size, kernel_size),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        kernel_init=init,
        bias_init=init,
        rngs=rngs,
    )


def dense(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A dense layer [b, in] -> [b, out], initialised as torch does by default."""
    init = torch_uniform(in_features)
    return nnx.Linear(in_features, out_features, kernel_init=init, bias_init=init, rngs=rngs)


def group_norm(channels: int, min_group_channels: int = 1, *, rngs: nnx.Rngs) -> CastGroupNorm:
    """Group normalisation of `channels` channels in `adm_groups` groups, epsilon 1e-5."""
    return CastGroupNorm(channels, num_groups=adm_groups(channels, min_group_channels), epsilon=1e-5, rngs=rngs)


class ADMBlock(nnx.Module):
    """Residual block: norm, swish, resample, conv; + embedding; norm, swish, dropout, conv; + shortcut.

    [b, h, w, in], [b, e] -> [b, h', w', out], where h' is h, h/2 (`spec.down`) or 2h (`spec.up`). With `scale_shift`
    the embedding is not added but scales and shifts the result of the second norm. `mask`, bool [b, h', w', out],
    says which elements dropout keeps; None keeps all, unscaled.
    """

    def __init__(
        self,
        spec: BlockSpec,
        embedding: int,
        *,
        scale_shift: bool,
        dropout: float,
        min_group_channels: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm_0 = group_norm(spec.in_channels, min_group_channels, rngs=rngs)
        self.conv_0 = conv(spec.in_channels, spec.out_channels, rngs=rngs)
        self.embed = dense(embedding, spec.out_channels * (2 if scale_shift else 1), rngs=rngs)
        self.norm_1 = group_norm(spec.out_channels, min_group_channels, rngs=rngs)
        self.conv_1 = conv(spec.out_channels, spec.out_channels, zero=True, rngs=rngs)
        self.shortcut = conv(spec.in_channels, spec.out_channels, 1, rngs=rngs) if spec.has_shortcut else None
        self.up, self.down, self.takes_mask = spec.up, spec.down, spec.dropout
        self.scale_shift, self.kept = scale_shift, kept_share(dropout)

    def __call__(self, x: Array, embedding: Array, mask: Array | None) -> Array:
        """The block's output, [b, h', w', out], in the dtype of x."""
        h = jax.nn.silu(self.norm_0(x)).astype(x.dtype)
        if self.up:
            h, x = upsample(h, ()), upsample(x, ())
        elif self.down:
            h, x = downsample(h, ()), downsample(x, ())
        h, e = self.conv_0(h), self.embed(jax.nn.silu(embedding))[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(e, 2, axis=-1)
            h = jax.nn.silu(self.norm_1(h) * (1 + scale) + shift).astype(x.dtype)
        else:
            h = jax.nn.silu(self.norm_1(h + e.astype(x.dtype))).astype(x.dtype)
        if mask is not None:
            h = dropped(h, mask, self.kept)
        h = self.conv_1(h)
        return h + (x if self.shortcut is None else self.shortcut(x))


class ADMAttention(nnx.Module):
    """Self-attention over the pixels with several heads and the residual connection: [b, h, w, c] -> the same shape."""

    def __init__(
        self,
        channels: int,
        *,
        head_channels: int,
        min_group_channels: int = 1,
        normalize: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm = group_norm(channels, min_group_channels, rngs=rngs)
        self.qkv = conv(channels, 3 * channels, 1, rngs=rngs)
        self.out = conv(channels, channels, 1, zero=True, rngs=rngs)
        self.heads, self.normalize = channels // head_channels, normalize

    def __call__(self, x: Array) -> Array:
        """The sum of x and its attention, in the shape of x."""
        return x + self.out(attend(self.qkv(self.norm(x).astype(x.dtype)), self.heads, normalize=self.normalize))


def attend(qkv: Array, heads: int, *, normalize: bool = False) -> Array:
    """Attention over the pixels in several heads.

    Args:
        qkv: [b, h, w, 3 heads d], queries, then keys, then values.
        heads: number of heads.
        normalize: normalise each query, key and value first (`network.normalize_qkv`).

    Returns:
        [b, h, w, heads d].
    """
    q, k, v = rearrange(qkv, "b h w (three heads d) -> three b heads (h w) d", three=3, heads=heads)
    if normalize:
        q, k, v = (normalized(x) for x in (q, k, v))
    h = dot_product_attention(q, k, v)
    return rearrange(h, "b heads (h w) d -> b h w (heads d)", h=qkv.shape[1])


def normalized(x: Array) -> Array:
    """The vectors x, [..., d], each divided by `QKV_EPSILON` + its root mean square, rounded once.

    At a vector of zeros, the gradient of the root mean square counts as 0.
    """
    wide = widened(x)
    mean = (wide**2).mean(axis=-1, keepdims=True)
    zero = mean == 0  # where the root has no gradient
    rms = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, mean)))
    return (wide / (QKV_EPSILON + rms)).astype(x.dtype)


class Resample(nnx.Module):
    """Halve images [b, h, w, c] by a strided 3x3 convolution, or (`up`) repeat each pixel 2x2 and convolve."""

    def __init__(self, channels: int, *, up: bool, rngs: nnx.Rngs) -> None:
        self.conv = conv(channels, channels, stride=1 if up else 2, rngs=rngs)
        self.up = up

    def __call__(self, x: Array) -> Array:
        """The resampled images, [b, h / 2, w / 2, c] or (`up`) [b, 2 h, 2 w, c]."""
        return self.conv(upsample(x, ()) if self.up else x)


class PositionalEmbedding(nnx.Module):
    """Features of c_noise and of the label through two dense layers: [b] -> [b, 4 channels].

    The features are cos, then sin, of scale c_noise at the frequencies 10000^(-i / half), i = 0..half-1, where half is
    channels // 2; a zero follows if the number of channels is odd.
    """

    def __init__(self, channels: int, *, scale: float, num_classes: int, rngs: nnx.Rngs) -> None:
        self.frequencies = tuple(map(float, adm_frequencies(channels)))
        self.scale, self.odd = scale, channels % 2
        self.dense_0 = dense(channels, 4 * channels, rngs=rngs)
        self.dense_1 = dense(4 * channels, 4 * channels, rngs=rngs)
        self.labels = Embedding(num_classes, 4 * channels, rngs=rngs) if num_classes else None

    def __call__(self, c_noise: Array, labels: Array | None) -> Array:
        """The embedding, [b, 4 channels], of c_noise, [b], and labels, [b] (None without classes)."""
        angles = (self.scale * c_noise)[:, None] * jnp.asarray(self.frequencies, dtype=c_noise.dtype)
        features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=1)
        features = jnp.pad(features, ((0, 0), (0, self.odd)))
        embedding = self.dense_1(jax.nn.silu(self.dense_0(features)))
        return embedding if self.labels is None else embedding + self.labels(labels)


MakeBlock = Callable[[BlockSpec], ADMBlock]
MakeAttention = Callable[[int], ADMAttention]


class ADMLevel(nnx.Module):
    """One resolution: its blocks, attention after each, and the step to the next resolution as `down` or `up`."""

    down: Resample | ADMBlock | None
    up: Resample | ADMBlock | None

    def __init__(
        self, spec: ADMLevelSpec, block: MakeBlock, attention: MakeAttention, *, up: bool, rngs: nnx.Rngs
    ) -> None:
        self.blocks = nnx.List([block(b) for b in spec.blocks])
        self.attention = nnx.List([attention(b.out_channels) for b in spec.blocks if spec.attention])
        step = Resample(spec.step, up=up, rngs=rngs) if isinstance(spec.step, int) else spec.step and block(spec.step)
        setattr(self, "up" if up else "down", step)


class ADM(nnx.Module):
    """The free network F of the consistency function.

    Its output depends only on the weights and the arguments: there is no training mode. Dropout happens where masks are
    given, so that passes share their masks if they are given the same ones.

    Args:
        config: the network's settings.
        shape: [channels, height, width] of an image, each divisible by 2^(levels - 1).
        rngs: the random streams of the initial weights.

    Attributes:
        mask_shapes: [channels, height, width] of each dropout mask, in the order of use.
    """

    def __init__(self, config: ADMConfig, shape: Sequence[int], *, rngs: nnx.Rngs) -> None:
        spec = adm_spec(config, shape)
        self.config = config
        self.mask_shapes = tuple(spec.mask_shapes())
        block = partial(
            ADMBlock,
            embedding=4 * config.channels,
            scale_shift=config.scale_shift,
            dropout=config.dropout,
            min_group_channels=config.min_group_channels,
            rngs=rngs,
        )
        attention = partial(
            ADMAttention,
            head_channels=config.head_channels,
            min_group_channels=config.min_group_channels,
            normalize=config.normalize_qkv,
            rngs=rngs,
        )
        self.embedding = PositionalEmbedding(
            config.channels, scale=config.embedding_scale, num_classes=config.num_classes, rngs=rngs
        )
        self.conv_in = conv(spec.image_channels, spec.in_channels, rngs=rngs)
        self.down = nnx.List([ADMLevel(level, block, attention, up=False, rngs=rngs) for level in spec.down])
        self.middle = Middle(spec.middle, block, attention)
        self.up = nnx.List([ADMLevel(level, block, attention, up=True, rngs=rngs) for level in spec.up])
        self.norm_out = group_norm(spec.in_channels, config.min_group_channels, rngs=rngs)
        self.conv_out = conv(spec.in_channels, spec.image_channels, zero=True, rngs=rngs)

    def __call__(
        self,
        x_in: Array,
        c_noise: Array,
        labels: Array | None = None,
        masks: Sequence[Array] | None = None,
    ) -> Array:
        """Evaluate F(x_in, c_noise, labels).

        Args:
            x_in: [b, h, w, c] scaled noisy images; the network computes in their dtype (see `train.precision`).
            c_noise: [b] log(sigma) / 4 of the noise levels.
            labels: [b] integers in 0..num_classes-1, or `NO_CLASS`; None for an unconditional network.
            masks: dropout masks, bool, one [b, h, w, c] for each of `mask_shapes`; None for no dropout.

        Returns:
            [b, h, w, c], in the dtype of the weights.
        """
        module = partial(call, checkpoint=self.config.checkpoint)
        given = iter(masks if masks is not None else [None] * len(self.mask_shapes))
        embedding = self.embedding(c_noise, labels)

        def run(block: ADMBlock, h: Array) -> Array:
            return module(block, h, embedding, next(given) if block.takes_mask else None)

        h = self.conv_in(x_in)
        skips = [h]
        for level in self.down:
            for i, block in enumerate(level.blocks):
                h = run(block, h)
                if len(level.attention):
                    h = module(level.attention[i], h)
                skips.append(h)
            if level.down is not None:
                h = level.down(h) if isinstance(level.down, Resample) else run(level.down, h)
                skips.append(h)
        h = run(self.middle.block_1, module(self.middle.attention, run(self.middle.block_0, h)))
        for level in self.up:
            for i, block in enumerate(level.blocks):
                h = run(block, jnp.concatenate([h, skips.pop()], axis=-1))
                if len(level.attention):
                    h = module(level.attention[i], h)
            if level.up is not None:
                h = level.up(h) if isinstance(level.up, Resample) else run(level.up, h)
        return self.conv_out(jax.nn.silu(self.norm_out(h)))  # in the dtype of the norm's weights
