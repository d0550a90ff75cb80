"""The layers of the networks, in JAX: NHWC shapes, the authors' initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax import Array

from ict_backends.networks.layers import BlockSpec, kept_share
from ict_backends.networks.ncsnpp import PROJECTION_SCALE, groups, ncsnpp_frequencies
from ict_core import NO_CLASS

Initializer = jax.nn.initializers.Initializer
# The layouts of the images, the kernels and the results of convolutions.
_AXES = ("NHWC", "HWIO", "NHWC")


def variance_scaling(scale: float = 1.0) -> Initializer:
    """An initialiser that draws from U(-a, a), a = sqrt(3 scale / ((fan_in + fan_out) / 2)).

    A scale of 0 means 1e-10, as in the authors' code.
    """
    return jax.nn.initializers.variance_scaling(max(scale, 1e-10), "fan_avg", "uniform")


class Linear(nnx.Linear):
    """Dense layer [b, in] -> [b, out]."""

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(in_features, out_features, kernel_init=variance_scaling(), rngs=rngs)


class CastConv(nnx.Conv):
    """Flax's biased convolution, [b, h, w, in] -> [b, h', w', out].

    It is computed in the dtype of its input, whatever the dtype of its weights.
    """

    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # flax's takes an output sharding, too
        assert self.bias is not None
        kernel, bias = (p[...].astype(x.dtype) for p in (self.kernel, self.bias))
        strides = (self.strides,) * 2 if isinstance(self.strides, int) else tuple(self.strides or (1, 1))
        if kernel.shape[:2] == (1, 1) and set(strides) == {1}:
            # A matrix product over the pixels, of which XLA computes the gradient faster.
            b, h, w, c = x.shape
            return (x.reshape(-1, c) @ kernel[0, 0] + bias).reshape(b, h, w, -1)
        padding = cast(str | Sequence[tuple[int, int]], self.padding)
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_AXES) + bias


class Conv(CastConv):
    """Biased convolution [b, h, w, in] -> [b, h, w, out] of an odd kernel size, zero padding."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        scale: float = 1.0,
        stride: int = 1,
        padding: str = "SAME",
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            (kernel_size, kernel_size),
            strides=stride,
            padding=padding,
            kernel_init=variance_scaling(scale),
            rngs=rngs,
        )


class CastGroupNorm(nnx.GroupNorm):
    """Flax's group normalisation, computed in the dtype of its weights, whatever the dtype of its input."""

    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # flax's takes a mask, too
        assert self.scale is not None
        assert self.bias is not None
        scale, bias = self.scale[...], self.bias[...]
        return group_normalize(x.astype(scale.dtype), scale, bias, self.num_groups, self.epsilon)


def group_normalize(x: Array, scale: Array, bias: Array, groups: int, epsilon: float) -> Array:
    """Normalise x over the pixels and channels of each group, then scale and shift.

    The gradient is written out, in two sums over the pixels and one pass: XLA's own takes twice the time on the CPU.

    Args:
        x: [b, h, w, c].
        scale, bias: [c].
        groups: number of groups; divides c.
        epsilon: added to the variance.

    Returns:
        [b, h, w, c].
    """
    return _group_normalize(x, scale, bias, groups, epsilon)[0]


def _group_normalize(
    x: Array, scale: Array, bias: Array, groups: int, epsilon: float
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    mean = _group_mean(x.mean((1, 2)), groups)
    # The fast variance, E x^2 - (E x)^2, loses in float32 the digits that the backends must agree on.
    centred = x - mean[:, None, None]
    rate = jax.lax.rsqrt(_group_mean((centred**2).mean((1, 2)), groups) + epsilon)
    return centred * (rate * scale)[:, None, None] + bias, (x, scale, mean, rate)


def _group_gradient(
    groups: int, epsilon: float, kept: tuple[Array, Array, Array, Array], g: Array
) -> tuple[Array, Array, Array]:
    x, scale, mean, rate = kept
    centred = x - mean[:, None, None]
    shift, slope = g.sum((1, 2)), (g * centred).sum((1, 2)) * rate
    pixels = x.shape[1] * x.shape[2]
    of_mean, of_rate = (_group_mean(s * scale / pixels, groups) for s in (shift, slope))
    of_x = g * (rate * scale)[:, None, None] - centred * (rate**2 * of_rate)[:, None, None]
    return of_x - (rate * of_mean)[:, None, None], slope.sum(0), shift.sum(0)


group_normalize = jax.custom_vjp(group_normalize, nondiff_argnums=(3, 4))
group_normalize.defvjp(_group_normalize, _group_gradient)


def _group_mean(values: Array, groups: int) -> Array:
    """The mean, [b, c], of the group of each of the values, [b, c]."""
    b, c = values.shape
    return jnp.repeat(values.reshape(b, groups, c // groups).mean(-1), c // groups, axis=1)


class GroupNorm(CastGroupNorm):
    """Group normalisation with the authors' number of groups (`networks.ncsnpp.groups`) and epsilon (1e-6)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(channels, num_groups=groups(channels), epsilon=1e-6, rngs=rngs)


def dot_product_attention(q: Array, k: Array, v: Array) -> Array:
    """Dot-product attention of queries, keys and values, [b, heads, n, d] each, in the same shape.

    The softmax is computed at least in float32.
    """
    # Not jax.nn.dot_product_attention, which rounds float64 scores to float32.
    # In this order, float16 does not overflow.
    scores = widened(jnp.einsum("bhqd,bhkd->bhqk", times(q, q.shape[-1] ** -0.5), k))
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores).astype(q.dtype), v)


def widened(x: Array) -> Array:
    """The array in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def times(x: Array, factor: float) -> Array:
    """x times a number, rounded once. JAX by itself would first round the number to the dtype of x, bfloat16 say."""
    return (widened(x) * factor).astype(x.dtype)


def dropped(x: Array, mask: Array, kept: float) -> Array:
    """x with dropout, [b, h, w, c]: where `mask` is True, divided by the share that is kept, rounded once; else 0."""
    return (widened(x) * mask / kept).astype(x.dtype)


class Attention(nnx.Module):
    """Self-attention over the pixels with one head and the residual connection: [b, h, w, c] -> the same shape."""

    def __init__(self, channels: int, *, skip_rescale: bool, rngs: nnx.Rngs) -> None:
        self.norm = GroupNorm(channels, rngs=rngs)
        self.query = Conv(channels, channels, 1, scale=PROJECTION_SCALE, rngs=rngs)
        self.key = Conv(channels, channels, 1, scale=PROJECTION_SCALE, rngs=rngs)
        self.value = Conv(channels, channels, 1, scale=PROJECTION_SCALE, rngs=rngs)
        self.out = Conv(channels, channels, 1, scale=0.0, rngs=rngs)
        self.skip_rescale = skip_rescale

    def __call__(self, x: Array) -> Array:
        h = self.norm(x).astype(x.dtype)
        q, k, v = (rearrange(layer(h), "b h w c -> b 1 (h w) c") for layer in (self.query, self.key, self.value))
        h = dot_product_attention(q, k, v)
        h = self.out(rearrange(h, "b 1 (h w) c -> b h w c", h=x.shape[1]))
        return add(x, h, rescale=self.skip_rescale)


def call(module: nnx.Module, *inputs: Array | None, checkpoint: bool) -> Array:
    """Call the module; with `checkpoint`, its inner results are not kept but computed again for the gradient."""
    if not checkpoint:
        return module(*inputs)
    return nnx.remat(lambda m, *given: m(*given))(module, *inputs)


def add(a: Array, b: Array, *, rescale: bool) -> Array:
    """The sum of two branches of equal shape, divided by sqrt 2 with `rescale`."""
    return times(a + b, math.sqrt(0.5)) if rescale else a + b


def fir_taps(taps: Sequence[float], *, gain: float = 1.0) -> np.ndarray:
    """The n taps, scaled to the sum `gain`: [n] float64.

    The kernel is their outer product, so that it can be applied axis by axis.
    """
    values = np.array(taps, dtype=np.float64)
    return values * (gain / values.sum())


def filter_axis(x: Array, taps: np.ndarray, axis: int, *, stride: int, padding: int) -> Array:
    """Convolve one axis of an array with taps, [n], after zero padding, and take every `stride`-th result.

    It is computed as a sum of shifted slices, which XLA fuses; its depthwise convolution is slow on the CPU.
    """
    widths = [(padding, padding) if a == axis else (0, 0) for a in range(x.ndim)]
    padded = jnp.pad(x, widths)
    last = padded.shape[axis] - len(taps)
    first, *others = (
        jax.lax.slice_in_dim(padded, k, k + last + 1, stride=stride, axis=axis) * float(tap)
        for k, tap in enumerate(taps[::-1])
    )
    return sum(others, start=first)


def double_axis(x: Array, taps: np.ndarray, axis: int) -> Array:
    """Double one axis of an array: put a zero after each element, and convolve with taps, [n], n even.

    A result is a sum over only the elements that are not such zeros, so even and odd results are computed apart.
    """
    padding = (len(taps) // 2 + 1) // 2
    # Result m is the sum over k of taps[k] u[m - k + n / 2 - 1], where u[2 j] = x[j].
    offset = len(taps) // 2 - 1
    phases = []
    for phase in (0, 1):
        terms = [((phase - k + offset) // 2, tap) for k, tap in enumerate(taps) if (phase - k + offset) % 2 == 0]
        padded = jnp.pad(x, [(padding, padding) if a == axis else (0, 0) for a in range(x.ndim)])
        n = x.shape[axis]
        phases.append(
            sum(
                jax.lax.slice_in_dim(padded, padding + shift, padding + shift + n, axis=axis) * float(tap)
                for shift, tap in terms
            )
        )
    stacked = jnp.stack(phases, axis=axis + 1)
    return stacked.reshape(*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :])


def filter_both_axes(x: Array, filtered: Callable[..., Array]) -> Array:
    """Images [b, h, w, c], filtered along their height and then along their width, in float32 at least."""
    wide = widened(x)
    for axis in (1, 2):
        wide = filtered(wide, axis=axis)
    return wide.astype(x.dtype)


def downsample(x: Array, taps: Sequence[float]) -> Array:
    """Halve images [b, h, w, c] by the FIR filter; without taps, by the mean of 2x2 pixels."""
    if not taps:
        return rearrange(x, "b (h p) (w q) c -> b h w c (p q)", p=2, q=2).mean(axis=-1)
    padding = (len(taps) - 2) // 2
    return filter_both_axes(x, partial(filter_axis, taps=fir_taps(taps), stride=2, padding=padding))


def upsample(x: Array, taps: Sequence[float]) -> Array:
    """Double images [b, h, w, c] by the FIR filter; without taps, by repeating each pixel 2x2."""
    if not taps:
        return x.repeat(2, axis=1).repeat(2, axis=2)
    return filter_both_axes(x, partial(double_axis, taps=fir_taps(taps, gain=2.0)))


class PyramidDownsample(nnx.Module):
    """Halve images [b, h, w, in] by the FIR filter and a strided 3x3 convolution: -> [b, h / 2, w / 2, out]."""

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float], *, rngs: nnx.Rngs) -> None:
        self.conv = Conv(in_channels, out_channels, stride=2, padding="VALID", rngs=rngs)
        self.taps = tuple(taps)

    def __call__(self, x: Array) -> Array:
        if self.taps:  # the border is so wide that the unpadded convolution returns exactly half
            padding = len(self.taps) // 2
            x = filter_both_axes(x, partial(filter_axis, taps=fir_taps(self.taps), stride=1, padding=padding))
        else:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return self.conv(x)


class ResidualBlock(nnx.Module):
    """BigGAN residual block: norm, swish, resample, conv; + embedding; norm, swish, dropout, conv; + shortcut.

    [b, h, w, in], [b, e] -> [b, h', w', out], where h' is h, h/2 (`spec.down`) or 2h (`spec.up`). `mask`, bool
    [b, h', w', out], says which elements dropout keeps; None keeps all, unscaled.
    """

    def __init__(
        self,
        spec: BlockSpec,
        embedding: int,
        *,
        taps: Sequence[float],
        dropout: float,
        skip_rescale: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm_0 = GroupNorm(spec.in_channels, rngs=rngs)
        self.conv_0 = Conv(spec.in_channels, spec.out_channels, rngs=rngs)
        self.embed = Linear(embedding, spec.out_channels, rngs=rngs)
        self.norm_1 = GroupNorm(spec.out_channels, rngs=rngs)
        self.conv_1 = Conv(spec.out_channels, spec.out_channels, scale=0.0, rngs=rngs)
        self.shortcut = Conv(spec.in_channels, spec.out_channels, 1, rngs=rngs) if spec.has_shortcut else None
        self.up, self.down, self.taps = spec.up, spec.down, tuple(taps)
        self.kept, self.skip_rescale = kept_share(dropout), skip_rescale

    def __call__(self, x: Array, embedding: Array, mask: Array | None) -> Array:
        h = jax.nn.silu(self.norm_0(x)).astype(x.dtype)
        if self.up:
            h, x = upsample(h, self.taps), upsample(x, self.taps)
        elif self.down:
            h, x = downsample(h, self.taps), downsample(x, self.taps)
        h = self.conv_0(h) + self.embed(jax.nn.silu(embedding)).astype(x.dtype)[:, None, None, :]
        h = jax.nn.silu(self.norm_1(h)).astype(x.dtype)
        if mask is not None:
            h = dropped(h, mask, self.kept)
        h = self.conv_1(h)
        if self.shortcut is not None:
            x = self.shortcut(x)
        return add(x, h, rescale=self.skip_rescale)


class Middle(nnx.Module):
    """Block, attention and block at the lowest resolution."""

    def __init__(
        self, spec: tuple[BlockSpec, BlockSpec], block: Callable[[BlockSpec], Any], attention: Callable[[int], Any]
    ) -> None:
        self.block_0 = block(spec[0])
        self.attention = attention(spec[0].out_channels)
        self.block_1 = block(spec[1])


class Embedding(nnx.Embed):
    """Embedding of labels, [b] -> [b, features]: rows of [classes, features], N(0, 1) at first; 0 for `NO_CLASS`."""

    def __init__(self, classes: int, features: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(classes, features, embedding_init=jax.nn.initializers.normal(1.0), rngs=rngs)

    def __call__(self, labels: Array | None) -> Array:  # type: ignore[override]  # the network has labels or None
        assert labels is not None
        known = labels != NO_CLASS
        rows = self.embedding[...][jnp.where(known, labels, 0)]  # flax's own casts to the dtype they were created in
        return jnp.where(known[:, None], rows, 0.0)


class ClassFeatures(Linear):
    """Dense layer of labels, [b] -> [b, features]: of one-hot vectors of n classes, times sqrt n, as EDM has it.

    A label that is no class gives the bias.
    """

    def __call__(self, labels: Array | None) -> Array:  # type: ignore[override]  # the network has labels or None
        assert labels is not None
        one_hot = (labels[:, None] == jnp.arange(self.in_features)).astype(self.kernel[...].dtype)
        return super().__call__(one_hot * math.sqrt(self.in_features))


class Frequencies(nnx.Variable):
    """Frequencies that are stored with the weights, but not trained."""


class NoiseEmbedding(nnx.Module):
    """Features of c_noise and of the label through two dense layers: [b] -> [b, 4 channels].

    Of kind "fourier", the features are sin, then cos, of 2 pi W c_noise, with stored frequencies W ~ N(0, scale^2) that
    have no gradient. Of kind "positional", they are sin, then cos, of scale c_noise at geometric frequencies from 1 to
    1e-4. The label's row is added to the result or, with `labels_at` = "features", a dense layer of it to the features.
    """

    def __init__(
        self,
        channels: int,
        *,
        kind: str,
        scale: float,
        num_classes: int,
        labels_at: str = "embedding",
        rngs: nnx.Rngs,
    ) -> None:
        if kind == "fourier":
            self.frequencies = Frequencies(jax.random.normal(rngs.params(), (channels,)) * scale)
        else:
            self.positions = tuple(map(float, ncsnpp_frequencies(channels)))
        self.kind, self.turns = kind, 2 * math.pi if kind == "fourier" else scale
        self.early = labels_at == "features"
        features = 2 * channels if kind == "fourier" else 2 * (channels // 2)
        self.dense_0 = Linear(features, 4 * channels, rngs=rngs)
        self.dense_1 = Linear(4 * channels, 4 * channels, rngs=rngs)
        layer, width = (ClassFeatures, features) if self.early else (Embedding, 4 * channels)
        self.labels = layer(num_classes, width, rngs=rngs) if num_classes else None

    def __call__(self, c_noise: Array, labels: Array | None) -> Array:
        frequencies = self.frequencies[...] if self.kind == "fourier" else jnp.asarray(self.positions)
        angles = (self.turns * c_noise)[:, None] * frequencies.astype(c_noise.dtype)
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
        if self.labels is not None and self.early:
            return self.dense_1(jax.nn.silu(self.dense_0(features + self.labels(labels))))
        embedding = self.dense_1(jax.nn.silu(self.dense_0(features)))
        return embedding if self.labels is None else embedding + self.labels(labels)
