"""The plain version in JAX: Flax NNX modules, NHWC, float32, one compiled step; see plain.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from ict_core import Config, NCSNppConfig


def conv(in_channels: int, out_channels: int, size: int, rngs: nnx.Rngs, **options: Any) -> nnx.Conv:
    """A convolution with a bias; by default of stride 1 and with zero padding."""
    return nnx.Conv(in_channels, out_channels, (size, size), rngs=rngs, **options)


def norm(channels: int, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group normalisation."""
    return nnx.GroupNorm(channels, num_groups=min(channels // 4, 32), epsilon=1e-6, rngs=rngs)


def fir(x: Array, kernel: np.ndarray, *, up: int = 1, down: int = 1, pad: tuple[int, int]) -> Array:
    """Put zeros between pixels, pad, convolve each channel with the same kernel, and take every `down`-th pixel.

    The kernel is symmetric or turned by 180 degrees: lax correlates.
    """
    channels = x.shape[-1]
    weight = jnp.tile(jnp.asarray(kernel[::-1, ::-1], x.dtype)[:, :, None, None], (1, 1, 1, channels))
    return jax.lax.conv_general_dilated(
        x,
        weight,
        window_strides=(down, down),
        padding=[pad, pad],
        lhs_dilation=(up, up),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


def make_kernel(taps: tuple[float, ...], gain: float = 1.0) -> np.ndarray:
    """The outer product of the taps, [n, n], scaled to the sum `gain`."""
    kernel = np.outer(taps, taps)
    return kernel * (gain / kernel.sum())


def upsample(x: Array, taps: tuple[float, ...]) -> Array:
    """Double images: [b, h, w, c] to [b, 2h, 2w, c]."""
    if not taps:
        return x.repeat(2, axis=1).repeat(2, axis=2)
    # Zeros between the pixels, but none after the last one: the padding on that side is one wider.
    p = len(taps) - 2
    return fir(x, make_kernel(taps, 4.0), up=2, pad=((p + 1) // 2 + 1, p // 2 + 1))


def downsample(x: Array, taps: tuple[float, ...]) -> Array:
    """Halve images: [b, h, w, c] to [b, h/2, w/2, c]."""
    if not taps:
        return nnx.avg_pool(x, (2, 2), (2, 2))
    p = len(taps) - 2
    return fir(x, make_kernel(taps), down=2, pad=((p + 1) // 2, p // 2))


class Pyramid(nnx.Module):
    """Filter and strided convolution of the input pyramid."""

    def __init__(self, in_channels: int, out_channels: int, taps: tuple[float, ...], rngs: nnx.Rngs) -> None:
        self.conv = conv(in_channels, out_channels, 3, rngs, strides=2, padding="VALID")
        self.taps = taps

    def __call__(self, x: Array) -> Array:
        """[b, h, w, in] to [b, h/2, w/2, out]."""
        if not self.taps:
            return self.conv(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))
        p = len(self.taps)
        return self.conv(fir(x, make_kernel(self.taps), pad=((p + 1) // 2, p // 2)))


class Attention(nnx.Module):
    """Self-attention over the pixels."""

    def __init__(self, channels: int, rescale: float, rngs: nnx.Rngs) -> None:
        self.norm = norm(channels, rngs)
        self.query, self.key, self.value, self.out = (conv(channels, channels, 1, rngs) for _ in range(4))
        self.rescale = rescale

    def __call__(self, x: Array) -> Array:
        """[b, h, w, c] to the same."""
        b, h, w, c = x.shape
        y = self.norm(x)
        q, k, v = (layer(y).reshape(b, h * w, c) for layer in (self.query, self.key, self.value))
        weights = jax.nn.softmax(jnp.einsum("bqc,bkc->bqk", q, k) * c**-0.5, axis=-1)
        y = jnp.einsum("bqk,bkc->bqc", weights, v).reshape(b, h, w, c)
        return (x + self.out(y)) * self.rescale


class Block(nnx.Module):
    """BigGAN residual block; `way` is "up", "down" or ""."""

    def __init__(
        self, in_channels: int, out_channels: int, config: NCSNppConfig, rngs: nnx.Rngs, way: str = ""
    ) -> None:
        self.norm_0, self.norm_1 = norm(in_channels, rngs), norm(out_channels, rngs)
        self.conv_0 = conv(in_channels, out_channels, 3, rngs)
        self.embed = nnx.Linear(4 * config.channels, out_channels, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)
        self.conv_1 = conv(out_channels, out_channels, 3, rngs)
        self.shortcut = conv(in_channels, out_channels, 1, rngs) if way or in_channels != out_channels else None
        self.way, self.taps = way, config.fir_kernel
        self.rescale = math.sqrt(0.5) if config.skip_rescale else 1.0

    def __call__(self, x: Array, embedding: Array, rngs: nnx.Rngs) -> Array:
        """[b, h, w, in] and [b, e] to [b, h', w', out]."""
        h = nnx.silu(self.norm_0(x))
        if self.way == "up":
            h, x = upsample(h, self.taps), upsample(x, self.taps)
        elif self.way == "down":
            h, x = downsample(h, self.taps), downsample(x, self.taps)
        h = self.conv_0(h) + self.embed(nnx.silu(embedding))[:, None, None, :]
        h = self.conv_1(self.dropout(nnx.silu(self.norm_1(h)), rngs=rngs))
        if self.shortcut is not None:
            x = self.shortcut(x)
        return (x + h) * self.rescale


class Frequencies(nnx.Variable):
    """A variable that is stored but not trained."""


class Embedding(nnx.Module):
    """The embedding of c_noise and of the label."""

    def __init__(self, config: NCSNppConfig, rngs: nnx.Rngs) -> None:
        if config.embedding == "fourier":
            self.frequencies = Frequencies(jax.random.normal(rngs.params(), (config.channels,)))
            self.frequencies[...] *= config.embedding_scale
            self.turns = 2 * math.pi
        else:
            half = config.channels // 2
            self.positions = tuple(np.exp(-math.log(10_000) * np.arange(half) / max(half - 1, 1)).tolist())
            self.turns = config.embedding_scale
        self.fourier, width = config.embedding == "fourier", 4 * config.channels
        features = 2 * (config.channels if self.fourier else config.channels // 2)
        self.dense_0 = nnx.Linear(features, width, rngs=rngs)
        self.dense_1 = nnx.Linear(width, width, rngs=rngs)
        self.labels = nnx.Embed(config.num_classes, width, rngs=rngs) if config.num_classes else None

    def __call__(self, c_noise: Array, labels: Array | None) -> Array:
        """[b] to [b, 4 channels]."""
        frequencies = self.frequencies[...] if self.fourier else jnp.asarray(self.positions)
        angles = c_noise[:, None] * frequencies[None, :] * self.turns
        features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
        h = self.dense_1(nnx.silu(self.dense_0(features)))
        return h if self.labels is None else h + self.labels(labels)


class Level(nnx.Module):
    """The modules of one resolution; modules that it does not have are None."""

    def __init__(self) -> None:
        self.blocks, self.attention = nnx.List([]), nnx.List([])
        self.down, self.pyramid, self.up = (nnx.data(None) for _ in range(3))


class Middle(nnx.Module):
    """The modules of the lowest resolution: block, attention, block."""

    def __init__(self, channels: int, config: NCSNppConfig, rescale: float, rngs: nnx.Rngs) -> None:
        self.block_0 = Block(channels, channels, config, rngs)
        self.attention = Attention(channels, rescale, rngs)
        self.block_1 = Block(channels, channels, config, rngs)


class Network(nnx.Module):
    """NCSN++ for images of `shape`, [channels, height, width]."""

    def __init__(self, config: NCSNppConfig, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        self.rescale = math.sqrt(0.5) if config.skip_rescale else 1.0
        widths = [mult * config.channels for mult in config.channel_mult]
        self.embedding = Embedding(config, rngs)
        self.conv_in = conv(shape[0], config.channels, 3, rngs)
        self.down, channels, pyramid, skips = nnx.List([]), config.channels, shape[0], [config.channels]
        for i, width in enumerate(widths):
            level = Level()
            for _ in range(config.blocks):
                level.blocks.append(Block(channels, width, config, rngs))
                if shape[1] >> i in config.attention_resolutions:
                    level.attention.append(Attention(width, self.rescale, rngs))
                channels = width
                skips.append(channels)
            if i + 1 < len(widths):
                level.down = Block(channels, channels, config, rngs, "down")
                if config.input_pyramid:
                    level.pyramid = Pyramid(pyramid, channels, config.fir_kernel, rngs)
                    pyramid = channels
                skips.append(channels)
            self.down.append(level)
        self.middle, self.up = Middle(channels, config, self.rescale, rngs), nnx.List([])
        for i, width in reversed(list(enumerate(widths))):
            level = Level()
            for _ in range(config.blocks + 1):
                level.blocks.append(Block(channels + skips.pop(), width, config, rngs))
                channels = width
            if shape[1] >> i in config.attention_resolutions:
                level.attention.append(Attention(width, self.rescale, rngs))
            if i > 0:
                level.up = Block(channels, channels, config, rngs, "up")
            self.up.append(level)
        self.norm_out = norm(channels, rngs)
        self.conv_out = conv(channels, shape[0], 3, rngs)

    def __call__(self, x_in: Array, c_noise: Array, labels: Array | None, rngs: nnx.Rngs) -> Array:
        """F: [b, h, w, c] and [b] to [b, h, w, c]; `rngs` sets the dropout."""
        embedding = self.embedding(c_noise, labels)
        h, pyramid = self.conv_in(x_in), x_in
        skips = [h]
        for level in self.down:
            for i, block in enumerate(level.blocks):
                h = block(h, embedding, rngs)
                if len(level.attention):
                    h = level.attention[i](h)
                skips.append(h)
            if level.down is not None:
                h = level.down(h, embedding, rngs)
                if level.pyramid is not None:
                    h = pyramid = (level.pyramid(pyramid) + h) * self.rescale
                skips.append(h)
        h = self.middle.block_0(h, embedding, rngs)
        h = self.middle.block_1(self.middle.attention(h), embedding, rngs)
        for level in self.up:
            for block in level.blocks:
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), embedding, rngs)
            for attention in level.attention:
                h = attention(h)
            if level.up is not None:
                h = level.up(h, embedding, rngs)
        return self.conv_out(nnx.silu(self.norm_out(h)))


def consistency(
    network: Network, config: Config, x: Array, sigma: Array, labels: Array | None, rngs: nnx.Rngs
) -> Array:
    """f(x, sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4)."""
    data, least = config.noise.sigma_data, config.noise.sigma_min
    s = sigma[:, None, None, None]
    c_skip = data**2 / ((s - least) ** 2 + data**2)
    c_out = data * (s - least) / jnp.sqrt(s**2 + data**2)
    c_in = 1 / jnp.sqrt(s**2 + data**2)
    return c_skip * x + c_out * network(c_in * x, jnp.log(sigma) / 4, labels, rngs)


def batch_loss(
    network: Network,
    config: Config,
    x: Array,
    z: Array,
    lo: Array,
    hi: Array,
    weight: Array,
    labels: Array | None,
    key: Array,
) -> Array:
    """The mean of the weighted Pseudo-Huber distances; `key` sets the dropout of both passes."""
    student = consistency(network, config, x + hi[:, None, None, None] * z, hi, labels, nnx.Rngs(dropout=key))
    teacher = consistency(network, config, x + lo[:, None, None, None] * z, lo, labels, nnx.Rngs(dropout=key))
    c = config.loss.huber_factor * math.sqrt(math.prod(x.shape[1:]))
    squared = jnp.sum((student - jax.lax.stop_gradient(teacher)) ** 2, axis=(1, 2, 3))
    return jnp.mean(weight * (jnp.sqrt(squared + c**2) - c))


def make_step(
    config: Config, images: np.ndarray, labels: np.ndarray | None, draw: Callable[[int], Any], device: str
) -> Callable[[], float]:
    """A function that does one further training step and returns its loss; `draw` maps its number to a `Draw`."""
    platform, _, number = device.partition(":")
    where = jax.devices(None if device == "auto" else platform)[int(number or 0)]
    network = Network(config.network, config.data.shape, nnx.Rngs(config.train.seed))
    graph, *weights = nnx.split(network, nnx.Param, ...)
    params, rest = jax.device_put(weights, where)
    average = params
    optimizer = optax.radam(config.train.learning_rate, *config.train.betas)
    moments = optimizer.init(params)
    held = jax.device_put(images.transpose(0, 2, 3, 1), where)
    classes = None if labels is None else jax.device_put(labels, where)
    done = 0

    @jax.jit
    def train_step(
        params: nnx.State,
        average: nnx.State,
        moments: optax.OptState,
        held: Array,
        classes: Array | None,
        indices: Array,
        flips: Array,
        lo: Array,
        hi: Array,
        weight: Array,
        key: Array,
    ) -> tuple[nnx.State, nnx.State, optax.OptState, Array]:
        noise, dropout = jax.random.split(key)
        x = held[indices]
        x = jnp.where(flips[:, None, None, None], x[:, :, ::-1], x).astype(jnp.float32) / 127.5 - 1.0
        z = jax.random.normal(noise, x.shape)
        y = None if classes is None else classes[indices]

        def loss(params: nnx.State) -> Array:
            return batch_loss(nnx.merge(graph, params, rest), config, x, z, lo, hi, weight, y, dropout)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        params = optax.apply_updates(params, updates)
        decay = config.train.ema_decay
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)
        return params, average, moments, value

    def step() -> float:
        nonlocal params, average, moments, done
        drawn = draw(done)
        arrays = (drawn.indices, drawn.flips, drawn.lo, drawn.hi, drawn.weight)
        params, average, moments, value = train_step(
            params, average, moments, held, classes, *arrays, jax.random.key(drawn.seed)
        )
        done += 1
        return float(value)

    return step
