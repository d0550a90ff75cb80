"""The layers of the networks, in torch: NCHW shapes, channels_last in memory, the authors' initialisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from ict_backends.networks.layers import BlockSpec, kept_share
from ict_backends.networks.ncsnpp import PROJECTION_SCALE, groups, ncsnpp_frequencies
from ict_core import NO_CLASS


def variance_scaling_(weight: Tensor, *, scale: float = 1.0) -> Tensor:
    """Fill `weight`, [out, in, ...], in place with U(-a, a), a = sqrt(3 scale / ((fan_in + fan_out) / 2)).

    A scale of 0 means 1e-10, as in the authors' code.
    """
    fan_in = weight[0].numel()
    fan_out = weight.shape[0] * math.prod(weight.shape[2:])
    bound = math.sqrt(3.0 * max(scale, 1e-10) / ((fan_in + fan_out) / 2))
    with torch.no_grad():
        return weight.uniform_(-bound, bound)


class Linear(nn.Linear):
    """Dense layer [b, in] -> [b, out]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        variance_scaling_(self.weight)
        nn.init.zeros_(self.bias)


class CastConv(nn.Conv2d):
    """Torch's biased convolution, [b, in, h, w] -> [b, out, h', w'].

    It is computed in the dtype of its input, whatever the dtype of its weights.
    """

    bias: nn.Parameter

    def forward(self, x: Tensor) -> Tensor:
        return self.with_bias(x, self.bias)

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve x, [b, in, h, w], with another bias, [out], or without one."""
        return self._conv_forward(x, self.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


class Conv(CastConv):
    """Biased convolution [b, in, h, w] -> [b, out, h, w] of an odd kernel size, zero padding."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        scale: float = 1.0,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        width = kernel_size // 2 if padding is None else padding
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=width)
        variance_scaling_(self.weight, scale=scale)
        nn.init.zeros_(self.bias)

    def with_bias(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve x, [b, in, h, w], with another bias, [out], or without one."""
        if self.kernel_size != (1, 1) or self.in_channels % 16 == self.out_channels % 16 == 0:
            return super().with_bias(x, bias)
        # A matrix product over the pixels, both of whose views are free in channels_last. It beats the convolution
        # where the channels do not fill the CPU's vectors.
        weight, bias = self.weight[:, :, 0, 0].to(x.dtype), None if bias is None else bias.to(x.dtype)
        return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


def sum_of_branches(conv: CastConv, h: Tensor, shortcut: CastConv | None, x: Tensor, *, rescale: bool) -> Tensor:
    """conv(h) + shortcut(x), or conv(h) + x without a shortcut, divided by sqrt 2 with `rescale`: [b, out, h, w]."""
    # One bias is enough for both: in a convolution's own gradient, it costs the CPU a twentieth of the whole.
    bias = conv.bias if shortcut is None else conv.bias + shortcut.bias
    x = x if shortcut is None else shortcut.with_bias(x, None)
    return rescaled(conv.with_bias(h, bias).add_(x), rescale=rescale)


class CastGroupNorm(nn.GroupNorm):
    """Torch's group normalisation, computed in the dtype of its weights, whatever the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x, [b, c, h, w]; the result has the dtype of the weights."""
        return self._normalized(x, to=self.weight.dtype, silu=False)

    def rounded(self, x: Tensor) -> Tensor:
        """Normalise x, [b, c, h, w]; the result has the dtype of x."""
        return self._normalized(x, to=x.dtype, silu=False)

    def activated(
        self,
        x: Tensor,
        shift: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        kept: float = 1.0,
        to: torch.dtype | None = None,
    ) -> Tensor:
        """silu of the normalised x + shift, with dropout, [b, c, h, w], rounded once.

        Args:
            x: [b, c, h, w]; with a shift, it may be overwritten.
            shift: [b, c]; None for 0.
            mask: bool [b, c, h, w], True for the elements that dropout keeps and divides by `kept`; None keeps all.
            kept: the share of elements that dropout keeps.
            to: the dtype of the result; by default that of x.
        """
        return self._normalized(x, shift, mask, to=to or x.dtype, silu=True, kept=kept)

    def _normalized(
        self,
        x: Tensor,
        shift: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        to: torch.dtype,
        silu: bool,
        kept: float = 1.0,
    ) -> Tensor:
        """Do everything between two convolutions: add the shift, normalise, activate, drop out."""
        if torch.compiler.is_compiling():  # the compiler fuses what is written out; in place would add a pass
            h = x if shift is None else x + shift.to(x.dtype)[:, :, None, None]
            h = group_norm(h, self.weight, self.bias, groups=self.num_groups, eps=self.eps)
            h = F.silu(h) if silu else h
            return (h if mask is None else torch.where(mask, h / kept, 0.0)).to(to)
        if shift is not None:
            x = x.add_(shift.to(x.dtype)[:, :, None, None])
        h = super().forward(x.to(self.weight.dtype))
        h = (F.silu(h) if silu else h).to(to)
        return h if mask is None else h.mul_(mask).div_(kept)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float) -> Tensor:
    """Group normalisation of x, [b, c, h, w], written out for a compiler; channels are last in memory.

    The moments of each channel are computed first, and those of the groups from them, so that memory is read in order.

    Args:
        x: [b, c, h, w].
        weight, bias: [c]; the result has their dtype.
        groups: number of groups; divides c.
        eps: added to the variance.
    """
    wide = x.permute(0, 2, 3, 1).to(weight.dtype)
    variances, means = torch.var_mean(wide, dim=(1, 2), correction=0)
    means, variances = (m.unflatten(1, (groups, -1)) for m in (means, variances))
    mean = means.mean(2, keepdim=True)
    rate = torch.rsqrt((variances + (means - mean) ** 2).mean(2, keepdim=True) + eps)
    mean, rate = (m.expand_as(means).flatten(1)[:, None, None] for m in (mean, rate))
    return ((wide - mean) * rate * weight + bias).permute(0, 3, 1, 2)


class GroupNorm(CastGroupNorm):
    """Group normalisation with the authors' number of groups (`networks.ncsnpp.groups`) and epsilon (1e-6)."""

    def __init__(self, channels: int) -> None:
        super().__init__(groups(channels), channels, eps=1e-6)


def dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Dot-product attention of queries, keys and values, [b, heads, n, d] each, in the same shape.

    The softmax is computed at least in float32.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    # On the CPU, torch's own attention is no faster in float32 and several times slower in bfloat16.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # in this order, no overflow in float16
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(q.dtype) @ v


class Attention(nn.Module):
    """Self-attention over the pixels with one head and the residual connection: [b, c, h, w] -> the same shape."""

    def __init__(self, channels: int, *, skip_rescale: bool) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.query = Conv(channels, channels, 1, scale=PROJECTION_SCALE)
        self.key = Conv(channels, channels, 1, scale=PROJECTION_SCALE)
        self.value = Conv(channels, channels, 1, scale=PROJECTION_SCALE)
        self.out = Conv(channels, channels, 1, scale=0.0)
        self.skip_rescale = skip_rescale

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm.rounded(x)
        q, k, v = (rearrange(layer(h), "b c h w -> b 1 (h w) c") for layer in (self.query, self.key, self.value))
        h = dot_product_attention(q, k, v)
        h = self.out(rearrange(h, "b 1 (h w) c -> b c h w", h=x.shape[2]))
        return add(x, h, rescale=self.skip_rescale)


def call(module: nn.Module, *inputs: Tensor | None, checkpoint: bool) -> Tensor:
    """Call the module; with `checkpoint`, its inner results are not kept but computed again for the gradient."""
    if not checkpoint:
        return module(*inputs)
    # Nothing in a module is random: the dropout mask is an input.
    return torch_checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)


def add(a: Tensor, b: Tensor, *, rescale: bool) -> Tensor:
    """The sum of two branches of equal shape, divided by sqrt 2 with `rescale`."""
    return rescaled(a + b, rescale=rescale)


def rescaled(x: Tensor, *, rescale: bool) -> Tensor:
    """A sum of two branches, of any shape, divided by sqrt 2 in place with `rescale`."""
    return x.mul_(math.sqrt(0.5)) if rescale else x


def fir_kernel(taps: Sequence[float], *, gain: float = 1.0, like: Tensor | None = None) -> Tensor:
    """The FIR kernel, [n, n]: the outer product of the n taps, scaled to the sum `gain`.

    It has the dtype and the device of `like`, by default float64 on the CPU.
    """
    like = torch.empty(0, dtype=torch.float64) if like is None else like
    # Filled on the device, not copied to it: a copy would make the host wait.
    row = torch.stack([like.new_full((), tap) for tap in taps])
    return torch.outer(row, row) * (gain / sum(taps) ** 2)


def filter2d(x: Tensor, taps: Sequence[float], *, stride: int, padding: int) -> Tensor:
    """Convolve every channel of [b, c, h, w] with the same kernel, the outer product of the taps with sum 1."""
    wide = widened(x)  # torch's depthwise convolutions are slow on the CPU in narrower types
    weight = fir_kernel(taps[::-1], like=wide).expand(x.shape[1], 1, -1, -1)  # turned, since torch only correlates
    return F.conv2d(wide, weight, stride=stride, padding=padding, groups=x.shape[1]).to(x.dtype)


def widened(x: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def downsample(x: Tensor, taps: Sequence[float]) -> Tensor:
    """Halve images [b, c, h, w] by the FIR filter; without taps, by the mean of 2x2 pixels."""
    if not taps:
        return F.avg_pool2d(x, 2)
    return filter2d(x, taps, stride=2, padding=(len(taps) - 2) // 2)


def upsample(x: Tensor, taps: Sequence[float]) -> Tensor:
    """Double images [b, c, h, w] by the FIR filter; without taps, by repeating each pixel 2x2."""
    if not taps:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    wide = widened(x)
    weight = fir_kernel(taps, gain=4.0, like=wide).expand(x.shape[1], 1, -1, -1)
    return F.conv_transpose2d(wide, weight, stride=2, padding=(len(taps) - 2) // 2, groups=x.shape[1]).to(x.dtype)


class PyramidDownsample(nn.Module):
    """Halve images [b, in, h, w] by the FIR filter and a strided 3x3 convolution: -> [b, out, h / 2, w / 2]."""

    def __init__(self, in_channels: int, out_channels: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.conv = Conv(in_channels, out_channels, stride=2, padding=0)
        self.taps = tuple(taps)

    def forward(self, x: Tensor) -> Tensor:
        if not self.taps:
            return self.conv(F.pad(x, (0, 1, 0, 1)))
        # The border is so wide that the unpadded convolution returns exactly half.
        return self.conv(filter2d(x, self.taps, stride=1, padding=len(self.taps) // 2))


class ResidualBlock(nn.Module):
    """BigGAN residual block: norm, swish, resample, conv; + embedding; norm, swish, dropout, conv; + shortcut.

    [b, in, h, w], [b, e] -> [b, out, h', w'], where h' is h, h/2 (`spec.down`) or 2h (`spec.up`). `mask`, bool
    [b, out, h', w'], says which elements dropout keeps; None keeps all, unscaled.
    """

    def __init__(
        self, spec: BlockSpec, embedding: int, *, taps: Sequence[float], dropout: float, skip_rescale: bool
    ) -> None:
        super().__init__()
        self.norm_0 = GroupNorm(spec.in_channels)
        self.conv_0 = Conv(spec.in_channels, spec.out_channels)
        self.embed = Linear(embedding, spec.out_channels)
        self.norm_1 = GroupNorm(spec.out_channels)
        self.conv_1 = Conv(spec.out_channels, spec.out_channels, scale=0.0)
        self.shortcut = Conv(spec.in_channels, spec.out_channels, 1) if spec.has_shortcut else None
        self.up, self.down, self.taps = spec.up, spec.down, tuple(taps)
        self.kept, self.skip_rescale = kept_share(dropout), skip_rescale

    def forward(self, x: Tensor, embedding: Tensor, mask: Tensor | None) -> Tensor:
        h = self.norm_0.activated(x)
        if self.up:
            h, x = upsample(h, self.taps), upsample(x, self.taps)
        elif self.down:
            h, x = downsample(h, self.taps), downsample(x, self.taps)
        # The bias joins the shift: its gradient there is a sum over the pixels, cheaper than in the convolution's own.
        shift = self.embed(F.silu(embedding)) + self.conv_0.bias
        h = self.norm_1.activated(self.conv_0.with_bias(h, None), shift, mask, kept=self.kept)
        return sum_of_branches(self.conv_1, h, self.shortcut, x, rescale=self.skip_rescale)


class Middle(nn.Module):
    """Block, attention and block at the lowest resolution."""

    def __init__(
        self, spec: tuple[BlockSpec, BlockSpec], block: Callable[[BlockSpec], Any], attention: Callable[[int], Any]
    ) -> None:
        super().__init__()
        self.block_0 = block(spec[0])
        self.attention = attention(spec[0].out_channels)
        self.block_1 = block(spec[1])


class Embedding(nn.Embedding):
    """Embedding of labels, [b] -> [b, features]: rows of [classes, features], N(0, 1) at first; 0 for `NO_CLASS`."""

    def forward(self, labels: Tensor | None) -> Tensor:
        assert labels is not None
        known = labels != NO_CLASS
        return torch.where(known[:, None], super().forward(torch.where(known, labels, 0)), 0.0)


class ClassFeatures(Linear):
    """Dense layer of labels, [b] -> [b, features]: of one-hot vectors of n classes, times sqrt n, as EDM has it.

    A label that is no class gives the bias.
    """

    def forward(self, labels: Tensor | None) -> Tensor:
        assert labels is not None
        classes = torch.arange(self.in_features, device=labels.device)
        one_hot = (labels[:, None] == classes).to(self.weight.dtype)
        return super().forward(one_hot * math.sqrt(self.in_features))


class NoiseEmbedding(nn.Module):
    """Features of c_noise and of the label through two dense layers: [b] -> [b, 4 channels].

    Of kind "fourier", the features are sin, then cos, of 2 pi W c_noise, with stored frequencies W ~ N(0, scale^2) that
    have no gradient. Of kind "positional", they are sin, then cos, of scale c_noise at geometric frequencies from 1 to
    1e-4. The label's row is added to the result or, with `labels_at` = "features", a dense layer of it to the features.
    """

    frequencies: Tensor

    def __init__(
        self, channels: int, *, kind: str, scale: float, num_classes: int, labels_at: str = "embedding"
    ) -> None:
        super().__init__()
        if kind == "fourier":
            self.register_buffer("frequencies", torch.randn(channels) * scale)
        else:
            self.register_buffer("frequencies", torch.from_numpy(ncsnpp_frequencies(channels)), persistent=False)
        self.turns = 2 * math.pi if kind == "fourier" else scale
        features, self.early = 2 * self.frequencies.shape[0], labels_at == "features"
        self.dense_0 = Linear(features, 4 * channels)
        self.dense_1 = Linear(4 * channels, 4 * channels)
        layer, width = (ClassFeatures, features) if self.early else (Embedding, 4 * channels)
        self.labels = layer(num_classes, width) if num_classes else None

    def forward(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        angles = (self.turns * c_noise)[:, None] * self.frequencies.to(c_noise)
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        if self.labels is not None and self.early:
            return self.dense_1(F.silu(self.dense_0(features + self.labels(labels))))
        embedding = self.dense_1(F.silu(self.dense_0(features)))
        return embedding if self.labels is None else embedding + self.labels(labels)
