"""The plain version in torch: NCHW, eager, float32; see plain.py."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ict_core import Config, NCSNppConfig


def upfirdn2d(x: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int]) -> Tensor:
    """Put zeros between pixels, pad, convolve each channel with the same kernel, and take every `down`-th pixel."""
    b, c, h, w = x.shape
    x = x.reshape(b * c, 1, h, 1, w, 1)
    x = F.pad(x, [0, up - 1, 0, 0, 0, up - 1]).reshape(b * c, 1, h * up, w * up)
    x = F.pad(x, [*pad, *pad])
    x = F.conv2d(x, kernel.flip(0, 1)[None, None].to(x.dtype))
    x = x[:, :, ::down, ::down]
    return x.reshape(b, c, *x.shape[2:])


class Resample(nn.Module):
    """Halve or double images by a FIR filter, or by means and repetition if there are no taps."""

    def __init__(self, taps: tuple[float, ...]) -> None:
        super().__init__()
        kernel = torch.outer(torch.tensor(taps), torch.tensor(taps)) if taps else torch.ones(1, 1)
        self.register_buffer("kernel", kernel / kernel.sum(), persistent=False)
        self.taps = len(taps)

    def up(self, x: Tensor) -> Tensor:
        """Double images: [b, c, h, w] to [b, c, 2h, 2w]."""
        if not self.taps:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        p = self.taps - 2
        return upfirdn2d(x, 4 * self.kernel, up=2, pad=((p + 1) // 2 + 1, p // 2))

    def down(self, x: Tensor) -> Tensor:
        """Halve images: [b, c, h, w] to [b, c, h/2, w/2]."""
        if not self.taps:
            return F.avg_pool2d(x, 2)
        p = self.taps - 2
        return upfirdn2d(x, self.kernel, down=2, pad=((p + 1) // 2, p // 2))

    def smooth(self, x: Tensor) -> Tensor:
        """Filter images without resampling, with the border that a strided 3x3 convolution needs."""
        if not self.taps:
            return F.pad(x, (0, 1, 0, 1))
        p = self.taps
        return upfirdn2d(x, self.kernel, pad=((p + 1) // 2, p // 2))


class Pyramid(nn.Module):
    """Filter and strided convolution of the input pyramid."""

    def __init__(self, in_channels: int, out_channels: int, resample: Resample) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2)
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        """[b, in, h, w] to [b, out, h/2, w/2]."""
        return self.conv(self.resample.smooth(x))


class Attention(nn.Module):
    """Self-attention over the pixels."""

    def __init__(self, channels: int, *, rescale: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.rescale = rescale

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, h, w] to the same."""
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = self.query(y), self.key(y), self.value(y)
        scores = torch.einsum("bchw,bcij->bhwij", q, k) * c**-0.5
        scores = scores.reshape(b, h, w, h * w).softmax(dim=-1).reshape(b, h, w, h, w)
        y = torch.einsum("bhwij,bcij->bchw", scores, v)
        return (x + self.out(y)) * self.rescale


class Block(nn.Module):
    """BigGAN residual block; `way` is "up", "down" or ""."""

    def __init__(
        self, in_channels: int, out_channels: int, config: NCSNppConfig, resample: Resample, way: str = ""
    ) -> None:
        super().__init__()
        self.norm_0 = nn.GroupNorm(min(in_channels // 4, 32), in_channels, eps=1e-6)
        self.conv_0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embed = nn.Linear(4 * config.channels, out_channels)
        self.norm_1 = nn.GroupNorm(min(out_channels // 4, 32), out_channels, eps=1e-6)
        self.dropout = nn.Dropout(config.dropout)
        self.conv_1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if way or in_channels != out_channels else None
        self.resample, self.way = resample, way
        self.rescale = math.sqrt(0.5) if config.skip_rescale else 1.0

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """[b, in, h, w] and [b, e] to [b, out, h', w']."""
        h = F.silu(self.norm_0(x))
        if self.way:
            step = getattr(self.resample, self.way)
            h, x = step(h), step(x)
        h = self.conv_0(h) + self.embed(F.silu(embedding))[:, :, None, None]
        h = self.conv_1(self.dropout(F.silu(self.norm_1(h))))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return (x + h) * self.rescale


class Embedding(nn.Module):
    """The embedding of c_noise and of the label."""

    def __init__(self, config: NCSNppConfig) -> None:
        super().__init__()
        if config.embedding == "fourier":
            self.register_buffer("frequencies", torch.randn(config.channels) * config.embedding_scale)
            self.turns = 2 * math.pi
        else:
            half = config.channels // 2
            exponents = torch.arange(half) / max(half - 1, 1)
            self.register_buffer("frequencies", torch.exp(-math.log(10_000) * exponents), persistent=False)
            self.turns = config.embedding_scale
        width = 4 * config.channels
        self.dense_0, self.dense_1 = nn.Linear(2 * len(self.frequencies), width), nn.Linear(width, width)
        self.labels = nn.Embedding(config.num_classes, width) if config.num_classes else None

    def forward(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        """[b] to [b, 4 channels]."""
        angles = c_noise[:, None] * self.frequencies[None, :] * self.turns
        h = self.dense_1(F.silu(self.dense_0(torch.cat([angles.sin(), angles.cos()], dim=1))))
        return h if self.labels is None else h + self.labels(labels)


class Network(nn.Module):
    """NCSN++ for images of `shape`, [channels, height, width]."""

    def __init__(self, config: NCSNppConfig, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.config, resample = config, Resample(config.fir_kernel)
        self.rescale = math.sqrt(0.5) if config.skip_rescale else 1.0
        widths = [mult * config.channels for mult in config.channel_mult]
        self.embedding = Embedding(config)
        self.conv_in = nn.Conv2d(shape[0], config.channels, 3, padding=1)
        self.down, channels, pyramid, skips = nn.ModuleList(), config.channels, shape[0], [config.channels]
        for i, width in enumerate(widths):
            level = nn.Module()
            level.blocks, level.attention = nn.ModuleList(), nn.ModuleList()
            for _ in range(config.blocks):
                level.blocks.append(Block(channels, width, config, resample))
                if shape[1] >> i in config.attention_resolutions:
                    level.attention.append(Attention(width, rescale=self.rescale))
                channels = width
                skips.append(channels)
            if i + 1 < len(widths):
                level.down = Block(channels, channels, config, resample, "down")
                if config.input_pyramid:
                    level.pyramid = Pyramid(pyramid, channels, resample)
                    pyramid = channels
                skips.append(channels)
            self.down.append(level)
        self.middle = nn.Module()
        self.middle.block_0 = Block(channels, channels, config, resample)
        self.middle.attention = Attention(channels, rescale=self.rescale)
        self.middle.block_1 = Block(channels, channels, config, resample)
        self.up = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            level = nn.Module()
            level.blocks = nn.ModuleList()
            for _ in range(config.blocks + 1):
                level.blocks.append(Block(channels + skips.pop(), width, config, resample))
                channels = width
            if shape[1] >> i in config.attention_resolutions:
                level.attention = Attention(width, rescale=self.rescale)
            if i > 0:
                level.up = Block(channels, channels, config, resample, "up")
            self.up.append(level)
        self.norm_out = nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, shape[0], 3, padding=1)

    def forward(self, x_in: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """F: [b, c, h, w] and [b] to [b, c, h, w]."""
        embedding = self.embedding(c_noise, labels)
        h, pyramid = self.conv_in(x_in), x_in
        skips = [h]
        for level in self.down:
            for i, block in enumerate(level.blocks):
                h = block(h, embedding)
                if len(level.attention):
                    h = level.attention[i](h)
                skips.append(h)
            if hasattr(level, "down"):
                h = level.down(h, embedding)
                if hasattr(level, "pyramid"):
                    h = pyramid = (level.pyramid(pyramid) + h) * self.rescale
                skips.append(h)
        h = self.middle.block_0(h, embedding)
        h = self.middle.block_1(self.middle.attention(h), embedding)
        for level in self.up:
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), embedding)
            if hasattr(level, "attention"):
                h = level.attention(h)
            if hasattr(level, "up"):
                h = level.up(h, embedding)
        return self.conv_out(F.silu(self.norm_out(h)))


def consistency(network: nn.Module, config: Config, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """f(x, sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4)."""
    data, least = config.noise.sigma_data, config.noise.sigma_min
    s = sigma[:, None, None, None]
    c_skip = data**2 / ((s - least) ** 2 + data**2)
    c_out = data * (s - least) / (s**2 + data**2).sqrt()
    c_in = 1 / (s**2 + data**2).sqrt()
    return c_skip * x + c_out * network(c_in * x, sigma.log() / 4, labels)


def batch_loss(
    network: nn.Module,
    config: Config,
    x: Tensor,
    z: Tensor,
    lo: Tensor,
    hi: Tensor,
    weight: Tensor,
    labels: Tensor | None,
    seed: int,
) -> Tensor:
    """The mean of the weighted Pseudo-Huber distances; `seed` sets the dropout of both passes."""
    torch.manual_seed(seed)
    student = consistency(network, config, x + hi[:, None, None, None] * z, hi, labels)
    with torch.no_grad():
        torch.manual_seed(seed)
        teacher = consistency(network, config, x + lo[:, None, None, None] * z, lo, labels)
    c = config.loss.huber_factor * math.sqrt(x[0].numel())
    squared = ((student - teacher) ** 2).sum(dim=(1, 2, 3))
    return (weight * ((squared + c**2).sqrt() - c)).mean()


def make_step(
    config: Config, images: np.ndarray, labels: np.ndarray | None, draw: Callable[[int], Any], device: str
) -> Callable[[], float]:
    """A function that does one further training step and returns its loss; `draw` maps its number to a `Draw`."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(config.train.seed)
    network = Network(config.network, config.data.shape).to(device)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.RAdam(network.parameters(), lr=config.train.learning_rate, betas=config.train.betas)
    held = torch.tensor(images, device=device)
    classes = None if labels is None else torch.tensor(labels, device=device)
    done = 0

    def step() -> float:
        nonlocal done
        drawn = draw(done)
        indices = torch.tensor(drawn.indices, device=device)
        flips = torch.tensor(drawn.flips, device=device)[:, None, None, None]
        x = held[indices]
        x = torch.where(flips, x.flip(3), x).float() / 127.5 - 1.0
        z = torch.randn_like(x)
        lo, hi, weight = (torch.tensor(a, device=device) for a in (drawn.lo, drawn.hi, drawn.weight))
        y = None if classes is None else classes[indices]
        optimizer.zero_grad()
        loss = batch_loss(network, config, x, z, lo, hi, weight, y, drawn.seed)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for a, p in zip(average.parameters(), network.parameters(), strict=True):
                a.mul_(config.train.ema_decay).add_(p, alpha=1 - config.train.ema_decay)
        done += 1
        return loss.item()

    return step
