"""Kernels in Triton for what torch's eager operations do in many passes over memory, on GPUs.

Torch's group normalisation brings images whose channels are last in memory into another order and back, which takes
most of a training step of the paper's network; torch.compile does without, but needs minutes for each new network. So
all that lies between two convolutions is done here, in one reading for the moments and one pass. Images are read and
written in their own dtype and computed in float32; results do not depend on the order in which programs run.

Arrays are [b, h, w, c], which is how channels_last lies in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._triton import has_triton

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without
    triton = None

# Pixels and channels of a tile, and pixels whose moments a program computes.
_PIXELS, _CHANNELS, _ROWS = 32, 128, 256
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def usable(x: Tensor) -> bool:
    """Whether the kernels take a tensor: on a GPU that Triton knows, and not within what torch.compile compiles."""
    return not torch.compiler.is_compiling() and x.device.type == "cuda" and x.dtype in _DTYPES and _has_triton()


@lru_cache
def _has_triton() -> bool:
    return triton is not None and has_triton()


def normalize(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    groups: int,
    eps: float,
    to: torch.dtype,
    silu: bool,
    rate: float = 0.0,
) -> Tensor:
    """Group normalisation of x + shift, then silu, then dropout.

    Args:
        x: [b, c, h, w] in float32, bfloat16 or float16.
        weight, bias: [c] float32.
        shift: [b, c] float32, added to x before.
        mask: bool [b, c, h, w], what dropout keeps, which is divided by 1 - `rate`.
        to: the dtype of the result.
        silu: whether to apply the activation.

    Returns:
        [b, c, h, w], channels last in memory.
    """
    return _Normalize.apply(x, weight, bias, shift, mask, groups, eps, to, silu, rate)


def join(h: Tensor, x: Tensor, bias: Tensor, *, factor: float) -> Tensor:
    """(h + x + bias) factor of [b, c, h, w] images and [c] biases, rounded once."""
    return _Join.apply(h, x, bias, factor)


def halve(x: Tensor, taps: Sequence[float]) -> Tensor:
    """[b, c, h, w] convolved with the outer product of the taps, of sum 1, every second pixel of either axis."""
    return _Resample.apply(x, tuple(t / sum(taps) for t in taps[::-1]), False)


def double(x: Tensor, taps: Sequence[float]) -> Tensor:
    """[b, c, h, w] with zeros between its pixels, convolved with the outer product of the taps, of sum 4."""
    return _Resample.apply(x, tuple(2 * t / sum(taps) for t in taps), True)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shift: Tensor | None,
        mask: Tensor | None,
        groups: int,
        eps: float,
        to: torch.dtype,
        silu: bool,
        rate: float,
    ) -> Tensor:
        pixels, kept = _pixels(x), None if mask is None else _mask(mask)
        b, n, c = pixels.shape
        splits, blocks = triton.cdiv(n, _ROWS), triton.cdiv(c, _CHANNELS)
        partial = torch.empty(2, b, splits, c, device=x.device)
        # By image and channel: what normalises, (x + shift - mean) / deviation = x scale + offset, and the mean of x.
        scale, offset, mean = torch.empty(3, b, c, device=x.device).unbind()
        y = torch.empty(b, n, c, device=x.device, dtype=to)
        with _on(x):
            _moments[(splits, blocks, b)](pixels, partial, n, c, b * splits * c, _ROWS, _PIXELS, _CHANNELS)
            _finish_moments[(b, groups)](
                partial,
                shift,
                scale,
                offset,
                mean,
                n,
                c,
                b * splits * c,
                eps,
                shift is not None,
                c // groups,
                splits,
                _ROWS,
                triton.next_power_of_2(c // groups),
                triton.next_power_of_2(splits),
            )
            grid = (triton.cdiv(n, _PIXELS), blocks, b)
            stride = 0 if kept is None else kept.stride(0)
            keep = 1.0 / (1.0 - rate)
            _apply[grid](
                pixels,
                weight,
                bias,
                scale,
                offset,
                kept,
                y,
                n,
                c,
                stride,
                keep,
                silu,
                kept is not None,
                _PIXELS,
                _CHANNELS,
            )
        ctx.save_for_backward(pixels, weight, bias, kept, scale, offset, mean)
        ctx.settings = groups, silu, keep, stride, splits, shift is not None, x.shape
        return _images(y, x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pixels, weight, bias, kept, scale, offset, mean = ctx.saved_tensors
        groups, silu, keep, stride, splits, shifted, shape = ctx.settings
        b, n, c = pixels.shape
        blocks, g = triton.cdiv(c, _CHANNELS), _pixels(gradient)
        partial = torch.empty(2, b, splits, c, device=g.device)
        # By image and channel: sums of the slope and of slope times normal, what the groups take off, and the shift's.
        sums, of_mean, of_rate, of_shift = torch.empty(5, b, c, device=g.device).split((2, 1, 1, 1))
        dx = torch.empty_like(pixels)
        with _on(g):
            flags = (silu, kept is not None)
            _slopes[(splits, blocks, b)](
                pixels,
                g,
                weight,
                bias,
                scale,
                offset,
                kept,
                partial,
                n,
                c,
                b * splits * c,
                stride,
                keep,
                *flags,
                _ROWS,
                _PIXELS,
                _CHANNELS,
            )
            _finish_slopes[(b, groups)](
                partial,
                weight,
                scale,
                offset,
                mean,
                sums,
                of_mean,
                of_rate,
                of_shift,
                n,
                c,
                b * splits * c,
                b * c,
                c // groups,
                splits,
                triton.next_power_of_2(c // groups),
                triton.next_power_of_2(splits),
            )
            grid = (triton.cdiv(n, _PIXELS), blocks, b)
            _input_slopes[grid](
                pixels,
                g,
                weight,
                bias,
                scale,
                offset,
                of_mean,
                of_rate,
                kept,
                dx,
                n,
                c,
                stride,
                keep,
                *flags,
                _PIXELS,
                _CHANNELS,
            )
        of_bias, of_weight = sums.sum(1)
        of_shift = of_shift[0] if shifted else None
        return _images(dx, shape), of_weight, of_bias, of_shift, None, None, None, None, None, None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, x: Tensor, bias: Tensor, factor: float) -> Tensor:
        first, second = _pixels(h), _pixels(x)
        b, n, c = first.shape
        y = torch.empty_like(first)
        grid = (triton.cdiv(n, _PIXELS), triton.cdiv(c, _CHANNELS), b)
        with _on(h):
            _join[grid](first, second, bias, y, n, c, factor, _PIXELS, _CHANNELS)
        ctx.factor = factor
        return _images(y, h.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = gradient * ctx.factor if ctx.factor != 1.0 else gradient
        return scaled, scaled, scaled.sum((0, 2, 3), dtype=torch.float32), None


class _Resample(torch.autograd.Function):
    """One axis after the other would take two passes; the kernel is small enough for all of it at once."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: tuple[float, ...], up: bool) -> Tensor:
        ctx.settings = weights, up
        return _resample(x, weights, up=up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        weights, up = ctx.settings
        return _resample(gradient, weights, up=not up), None, None


def _resample(x: Tensor, weights: tuple[float, ...], *, up: bool) -> Tensor:
    """Up: y[o] = sum over k of w[k] x[(o + p - k) / 2], where that is whole; else y[o] = sum of w[k] x[2 o + k - p].

    p = n / 2 - 1 for n weights. Each is the other's transpose.
    """
    b, c, height, width = x.shape
    tall, wide = (2 * height, 2 * width) if up else (height // 2, width // 2)
    y = torch.empty(b, tall * wide, c, device=x.device, dtype=x.dtype)
    pixels, count = _pixels(x), len(weights)
    grid = (triton.cdiv(wide, _PIXELS), b * tall, triton.cdiv(c, _CHANNELS))
    with _on(x):
        _filter[grid](
            pixels,
            _on_device(weights, x.device),
            y,
            height,
            width,
            tall,
            wide,
            c,
            count // 2 - 1,
            up,
            count,
            _PIXELS,
            _CHANNELS,
        )
    return _images(y, (b, c, tall, wide))


@lru_cache
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(weights, dtype=torch.float32, device=device)


def _on(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """The context in which kernels are started on a tensor's device."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


def _pixels(x: Tensor) -> Tensor:
    """[b, c, h, w] as [b, h w, c], dense."""
    b, c, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(b, height * width, c).contiguous()


def _images(y: Tensor, shape: Sequence[int]) -> Tensor:
    """[b, h w, c] as [b, c, h, w]."""
    b, c, height, width = shape
    return y.view(b, height, width, c).permute(0, 3, 1, 2)


def _mask(mask: Tensor) -> Tensor:
    """A bool [b, c, h, w] as bytes [b, h w c]; images may be apart from each other, as where all masks are in a row."""
    rows = mask.permute(0, 2, 3, 1).flatten(1)
    return (rows if rows.stride(1) == 1 else rows.contiguous()).view(torch.uint8)


if triton is not None:

    @triton.jit
    def _tile(first, n, c, block, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
        rows, columns = first + tl.arange(0, PIXELS), block * CHANNELS + tl.arange(0, CHANNELS)
        inside = (rows < n)[:, None] & (columns < c)[None, :]
        return rows[:, None] * c + columns[None, :], inside, columns, columns < c

    @triton.jit
    def _moments(
        x, partial, n, c, stride, ROWS: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
    ):  # of each channel's rows: the mean, and the sum of squares around it
        split, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
        mean, squares = tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
        seen = 0.0
        for step in range(ROWS // PIXELS):
            row = split * ROWS + step * PIXELS
            places, inside, columns, known = _tile(row, n, c, block, PIXELS, CHANNELS)
            values = tl.load(x + image * n * c + places, mask=inside, other=0.0).to(tl.float32)
            count = tl.maximum(tl.minimum(n - row, PIXELS), 0).to(tl.float32)
            of_tile = tl.sum(values, axis=0) / tl.maximum(count, 1.0)
            centred = tl.where(inside, values - of_tile[None, :], 0.0)
            difference = of_tile - mean
            squares += tl.sum(centred * centred, axis=0) + difference * difference * (seen * count / (seen + count))
            mean += difference * (count / (seen + count))
            seen += count
        columns = block * CHANNELS + tl.arange(0, CHANNELS)
        out = partial + (image * tl.num_programs(0) + split) * c + columns
        tl.store(out, mean, mask=columns < c)
        tl.store(out + stride, squares, mask=columns < c)

    @triton.jit
    def _finish_moments(
        partial,
        shift,
        scale,
        offset,
        mean,
        n,
        c,
        stride,
        eps,
        SHIFTED: tl.constexpr,
        MEMBERS: tl.constexpr,
        splits,
        ROWS: tl.constexpr,
        MEMBERS_2: tl.constexpr,
        SPLITS_2: tl.constexpr,
    ):
        image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
        split, member = tl.arange(0, SPLITS_2), tl.arange(0, MEMBERS_2)
        known, place = member < MEMBERS, image * c + group * MEMBERS + member
        inside = (split < splits)[:, None] & known[None, :]
        at = partial + (image * splits + split)[:, None] * c + (group * MEMBERS + member)[None, :]
        means = tl.load(at, mask=inside, other=0.0)
        squares = tl.load(at + stride, mask=inside, other=0.0)
        counts = tl.minimum(n - split * ROWS, ROWS).to(tl.float32)[:, None]
        added = tl.load(shift + place, mask=known, other=0.0) if SHIFTED else tl.zeros([MEMBERS_2], tl.float32)
        own = tl.sum(tl.where(inside, means * counts, 0.0), axis=0) / n
        whole = tl.sum(tl.where(known, own + added, 0.0), axis=0) / MEMBERS
        apart = tl.where(inside, means + added[None, :] - whole, 0.0)
        variance = tl.sum(tl.sum(squares + apart * apart * counts, axis=1), axis=0) / (n * MEMBERS)
        rate = 1.0 / tl.sqrt(variance + eps)
        tl.store(scale + place, tl.zeros([MEMBERS_2], tl.float32) + rate, mask=known)
        tl.store(offset + place, (added - whole) * rate, mask=known)
        tl.store(mean + place, own, mask=known)

    @triton.jit
    def _coefficients(weight, bias, scale, offset, image, c, columns, known):
        w = tl.load(weight + columns, mask=known, other=0.0)[None, :]
        b = tl.load(bias + columns, mask=known, other=0.0)[None, :]
        s = tl.load(scale + image * c + columns, mask=known, other=0.0)[None, :]
        o = tl.load(offset + image * c + columns, mask=known, other=0.0)[None, :]
        return w, b, s, o

    @triton.jit
    def _apply(
        x,
        weight,
        bias,
        scale,
        offset,
        kept,
        y,
        n,
        c,
        stride,
        keep,
        SILU: tl.constexpr,
        MASKED: tl.constexpr,
        PIXELS: tl.constexpr,
        CHANNELS: tl.constexpr,
    ):
        image = tl.program_id(2).to(tl.int64)
        places, inside, columns, known = _tile(tl.program_id(0) * PIXELS, n, c, tl.program_id(1), PIXELS, CHANNELS)
        w, b, s, o = _coefficients(weight, bias, scale, offset, image, c, columns, known)
        value = (tl.load(x + image * n * c + places, mask=inside, other=0.0).to(tl.float32) * s + o) * w + b
        if SILU:
            value = value * tl.sigmoid(value)
        if MASKED:
            value = tl.where(tl.load(kept + image * stride + places, mask=inside, other=0) != 0, value * keep, 0.0)
        tl.store(y + image * n * c + places, value.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _slope(
        x,
        gradient,
        kept,
        w,
        b,
        s,
        o,
        image,
        n,
        c,
        stride,
        keep,
        places,
        inside,
        SILU: tl.constexpr,
        MASKED: tl.constexpr,
    ):
        """What is normalised, and the gradient behind the activation."""
        normal = tl.load(x + image * n * c + places, mask=inside, other=0.0).to(tl.float32) * s + o
        slope = tl.load(gradient + image * n * c + places, mask=inside, other=0.0).to(tl.float32)
        if MASKED:
            slope = tl.where(tl.load(kept + image * stride + places, mask=inside, other=0) != 0, slope * keep, 0.0)
        if SILU:
            value = normal * w + b
            sigmoid = tl.sigmoid(value)
            slope = slope * sigmoid * (1.0 + value * (1.0 - sigmoid))
        return normal, slope

    @triton.jit
    def _slopes(
        x,
        gradient,
        weight,
        bias,
        scale,
        offset,
        kept,
        partial,
        n,
        c,
        whole,
        stride,
        keep,
        SILU: tl.constexpr,
        MASKED: tl.constexpr,
        ROWS: tl.constexpr,
        PIXELS: tl.constexpr,
        CHANNELS: tl.constexpr,
    ):
        split, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
        slopes, products = tl.zeros([CHANNELS], tl.float32), tl.zeros([CHANNELS], tl.float32)
        columns = block * CHANNELS + tl.arange(0, CHANNELS)
        w, b, s, o = _coefficients(weight, bias, scale, offset, image, c, columns, columns < c)
        for step in range(ROWS // PIXELS):
            places, inside, _, _ = _tile(split * ROWS + step * PIXELS, n, c, block, PIXELS, CHANNELS)
            normal, slope = _slope(
                x, gradient, kept, w, b, s, o, image, n, c, stride, keep, places, inside, SILU, MASKED
            )
            slopes += tl.sum(slope, axis=0)
            products += tl.sum(slope * normal, axis=0)
        out = partial + (image * tl.num_programs(0) + split) * c + columns
        tl.store(out, slopes, mask=columns < c)
        tl.store(out + whole, products, mask=columns < c)

    @triton.jit
    def _finish_slopes(
        partial,
        weight,
        scale,
        offset,
        mean,
        sums,
        of_mean,
        of_rate,
        of_shift,
        n,
        c,
        stride,
        whole,
        MEMBERS: tl.constexpr,
        splits,
        MEMBERS_2: tl.constexpr,
        SPLITS_2: tl.constexpr,
    ):
        image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
        split, member = tl.arange(0, SPLITS_2), tl.arange(0, MEMBERS_2)
        known, channel = member < MEMBERS, group * MEMBERS + member
        inside = (split < splits)[:, None] & known[None, :]
        at = partial + (image * splits + split)[:, None] * c + channel[None, :]
        slopes = tl.sum(tl.load(at, mask=inside, other=0.0), axis=0)
        products = tl.sum(tl.load(at + stride, mask=inside, other=0.0), axis=0)
        place = image * c + channel
        tl.store(sums + place, slopes, mask=known)
        tl.store(sums + whole + place, products, mask=known)
        w = tl.load(weight + channel, mask=known, other=0.0)
        first = tl.sum(w * slopes, axis=0) / (n * MEMBERS)
        second = tl.sum(w * products, axis=0) / (n * MEMBERS)
        tl.store(of_mean + place, tl.zeros([MEMBERS_2], tl.float32) + first, mask=known)
        tl.store(of_rate + place, tl.zeros([MEMBERS_2], tl.float32) + second, mask=known)
        s = tl.load(scale + place, mask=known, other=0.0)
        normal = tl.load(mean + place, mask=known, other=0.0) * s + tl.load(offset + place, mask=known, other=0.0)
        tl.store(of_shift + place, s * (w * slopes - n * (first + second * normal)), mask=known)

    @triton.jit
    def _input_slopes(
        x,
        gradient,
        weight,
        bias,
        scale,
        offset,
        of_mean,
        of_rate,
        kept,
        dx,
        n,
        c,
        stride,
        keep,
        SILU: tl.constexpr,
        MASKED: tl.constexpr,
        PIXELS: tl.constexpr,
        CHANNELS: tl.constexpr,
    ):
        image = tl.program_id(2).to(tl.int64)
        places, inside, columns, known = _tile(tl.program_id(0) * PIXELS, n, c, tl.program_id(1), PIXELS, CHANNELS)
        w, b, s, o = _coefficients(weight, bias, scale, offset, image, c, columns, known)
        first = tl.load(of_mean + image * c + columns, mask=known, other=0.0)[None, :]
        second = tl.load(of_rate + image * c + columns, mask=known, other=0.0)[None, :]
        normal, slope = _slope(x, gradient, kept, w, b, s, o, image, n, c, stride, keep, places, inside, SILU, MASKED)
        found = s * (slope * w - first - normal * second)
        tl.store(dx + image * n * c + places, found.to(dx.dtype.element_ty), mask=inside)

    @triton.jit
    def _join(h, x, bias, y, n, c, factor, PIXELS: tl.constexpr, CHANNELS: tl.constexpr):
        image = tl.program_id(2).to(tl.int64)
        places, inside, columns, known = _tile(tl.program_id(0) * PIXELS, n, c, tl.program_id(1), PIXELS, CHANNELS)
        first = tl.load(h + image * n * c + places, mask=inside, other=0.0).to(tl.float32)
        second = tl.load(x + image * n * c + places, mask=inside, other=0.0).to(tl.float32)
        total = (first + second + tl.load(bias + columns, mask=known, other=0.0)[None, :]) * factor
        tl.store(y + image * n * c + places, total.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _filter(
        x,
        weights,
        y,
        height,
        width,
        tall,
        wide,
        c,
        padding,
        UP: tl.constexpr,
        COUNT: tl.constexpr,
        PIXELS: tl.constexpr,
        CHANNELS: tl.constexpr,
    ):
        row = tl.program_id(1)
        image, line = (row // tall).to(tl.int64), row % tall
        columns = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
        across, known = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS), columns < c
        total = tl.zeros([PIXELS, CHANNELS], tl.float32)
        for i in tl.static_range(COUNT):
            up = line + padding - i
            source = up // 2 if UP else 2 * line + i - padding
            there = (source >= 0) & (source < height) & ((up % 2 == 0) if UP else True) & ((up >= 0) if UP else True)
            for j in tl.static_range(COUNT):
                left = across + padding - j
                beside = left // 2 if UP else 2 * across + j - padding
                inside = there & (beside >= 0) & (beside < width) & (across < wide)
                if UP:
                    inside = inside & (left % 2 == 0) & (left >= 0)
                places = (source * width + beside)[:, None] * c + columns[None, :]
                values = tl.load(
                    x + image * height * width * c + places, mask=inside[:, None] & known[None, :], other=0.0
                )
                total += values.to(tl.float32) * (tl.load(weights + i) * tl.load(weights + j))
        places = (line * wide + across)[:, None] * c + columns[None, :]
        inside = (across < wide)[:, None] & known[None, :]
        tl.store(y + image * tall * wide * c + places, total.to(y.dtype.element_ty), mask=inside)
