"""The least time of a training step: the sum over its operations of the larger of two times.

For each operation, one is the time of its arithmetic, at the rate that products and convolutions reach; the other is
the time of moving its bytes, at the rate of a large copy. Whatever a compiler could fuse is fused: biases, embeddings,
activations, dropout, rescaling and sums of branches belong to the operation that reads or writes the array. These
operations are left:

- A group norm reads its input once for the statistics, and once to normalise it and do everything up to the next
  product. Its gradient reads input and gradient once for two sums over the pixels, and once more for the result.
- A convolution and a dense layer read input and weights and write the result. The gradient of the weights and that of
  the input each need as much arithmetic as the forward pass. Arrays that are joined along the channels are read from
  where they lie; an array that is resampled before a convolution is written for it.
- Attention writes no scores, and computing them again for its gradient does not count.
- A dropout mask, a byte an element, is written once, and read by each network and by the gradient.
- The optimiser and the averages go over all weights once.

Weights, their gradients, the noise embedding and the last convolution's input are float32 in every precision; all
other activations have the precision of the network. In a network of less precision, the few float32 products (less
than a thousandth of the arithmetic of `cifar10`) count at the rate of the lower precision. Exchange between devices
does not count. The gradient of the images, which nothing needs, counts, as it does in `model_flops`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ict_backends.networks.adm import ADMLevelSpec, adm_spec
from ict_backends.networks.cost import count_averages
from ict_backends.networks.families import mask_shapes, trained_shapes
from ict_backends.networks.layers import BlockSpec, ImageSize
from ict_backends.networks.ncsnpp import ncsnpp_spec
from ict_core import ADMConfig, Config, NCSNppConfig

# Kinds of operations.
CONVOLUTIONS, PRODUCTS, ATTENTION = "convolutions", "1x1 convolutions, dense layers", "attention"
NORMS, RESAMPLING, SUMS = "norms and activations", "resampling", "sums of gradients"
NOISE, IMAGES, OPTIMISER = "noise and masks", "images and loss", "optimiser and averages"
_FLOAT32 = 4
# The float32 numbers that are read and written for each weight: by RAdam, Adam or AdamW (which reads gradient, weight
# and two moments, and writes the last three), and by an average.
_OF_OPTIMIZER, _OF_AVERAGE = 4 + 3, 2
_OPTIMIZERS = {"radam": "RAdam", "adam": "Adam", "adamw": "AdamW"}


class Operation(NamedTuple):
    """One operation of one pass of a training step on a device: its arithmetic operations, and the bytes it moves."""

    name: str
    kind: str
    flops: int
    bytes: int


class Share(NamedTuple):
    """The least seconds of one kind of operations; `of_memory` are those of operations that memory limits."""

    kind: str
    seconds: float
    of_memory: float


class Work(NamedTuple):
    """An operation of one pass, before the number of images is known.

    Attributes:
        name, kind: as for `Operation`.
        moved: bytes read and written for each image.
        flops: floating-point operations for each image.
        weights: the size of a float32 array that is read, or whose gradient is written, once for all images.
        adds: True if `weights` is that of a gradient, to which every further micro-batch adds.
    """

    name: str
    kind: str
    moved: int
    flops: int = 0
    weights: int = 0
    adds: bool = False


class _Walk:
    """Collects the work of a network, layer by layer.

    Attributes:
        size: the bytes of an element of the activations.
        dropout: True if the network has dropout.
        forward, gradient: the work of one evaluation and of its gradient.
        again: the part of `forward` that checkpointing does once more: the inside of blocks and attention, without
            their last products, whose results nothing needs.
    """

    def __init__(self, config: Config) -> None:
        self.size = _activation_bytes(config)
        self.dropout = config.network.dropout > 0
        self.forward: list[Work] = []
        self.gradient: list[Work] = []
        self.again: list[Work] = []

    def _array(self, channels: int, images: ImageSize) -> int:
        """The bytes of one image's activations."""
        return self.size * channels * images.pixels

    def _product(
        self, name: str, kind: str, sizes: tuple[int, int], flops: int, weights: int, *, added: int = 0, mask: int = 0
    ) -> None:
        """Add a product and its two gradients.

        Args:
            sizes: bytes of the input and of the result.
            flops: operations for each image.
            weights: the number of weights.
            added: bytes of the other branch that is added to the result.
            mask: bytes of the dropout mask of the input.
        """
        moved = sum(sizes)
        self.forward.append(Work(name, kind, moved + added, flops, weights))
        self.gradient.append(Work(f"{name}, weights", kind, moved, flops, weights, adds=True))
        self.gradient.append(Work(f"{name}, input", kind, moved + mask, flops, weights))

    def conv(
        self,
        name: str,
        channels: tuple[int, int],
        images: ImageSize,
        kernel: int = 3,
        *,
        entering: ImageSize | None = None,
        sizes: tuple[int, int] | None = None,
        added: int = 0,
        mask: int = 0,
    ) -> None:
        """Add a convolution of (in, out) channels whose result has `images` of this size.

        Args:
            entering: the size of the images in the input; by default that of the result.
            sizes: bytes of an element of the input and of the result; by default those of the activations.
            added, mask: as for `_product`.
        """
        sizes = sizes or (self.size, self.size)
        pixels = ((entering or images).pixels, images.pixels)
        read, written = (s * c * p for s, c, p in zip(sizes, channels, pixels, strict=True))
        weights = math.prod(channels) * kernel**2
        kind = PRODUCTS if kernel == 1 else CONVOLUTIONS
        self._product(
            name, kind, (read, written), 2 * weights * images.pixels, weights + channels[1], added=added, mask=mask
        )

    def dense(self, name: str, in_features: int, out_features: int, *, added: int = 0) -> None:
        """Add a dense layer, which is float32."""
        weights, sizes = in_features * out_features, (_FLOAT32 * in_features, _FLOAT32 * out_features)
        self._product(name, PRODUCTS, sizes, 2 * weights, weights + out_features, added=added)

    def norm(
        self, name: str, channels: int, images: ImageSize, written: int, *, mask: int = 0, other_gradient: int = 0
    ) -> None:
        """Add a group norm and everything that follows up to the next product.

        Args:
            written: bytes that the next product reads.
            mask: bytes of the dropout mask.
            other_gradient: bytes of the gradient that the input has from other operations.
        """
        read, weights = self._array(channels, images), 2 * channels
        self.forward.append(Work(f"{name}, statistics", NORMS, read))
        self.forward.append(Work(name, NORMS, read + written + mask, weights=weights))
        self.gradient.append(Work(f"{name}, weights and sums", NORMS, read + written, weights=weights, adds=True))
        moved = written + read + other_gradient + read
        self.gradient.append(Work(f"{name}, input", NORMS, moved, weights=weights))

    def embedding(self, features: int, width: int, classes: int, labels_at: str = "embedding") -> None:
        """Add the two dense layers of the noise level's features and, with labels, a table of `classes` rows.

        With `labels_at` = "features", the labels have a dense layer before these.
        """
        early = labels_at == "features"
        row = _FLOAT32 * width if classes and not early else 0
        if classes and early:
            self.dense("embedding.labels", classes, features, added=_FLOAT32 * features)
        self.dense("embedding.dense_0", features, width)
        self.dense("embedding.dense_1", width, width, added=row)
        if row:
            self.gradient.append(Work("embedding.labels, weights", SUMS, row, weights=classes * width, adds=True))

    def block(self, name: str, spec: BlockSpec, embedding: int, embed_channels: int) -> None:
        """Add a residual block, which projects `embedding` features to `embed_channels` channels."""
        first, images, (before, after) = len(self.forward), spec.size, (spec.in_channels, spec.out_channels)
        inside, result = self._array(before, images), self._array(after, images)
        mask = after * images.pixels if self.dropout and spec.dropout else 0
        self.norm(f"{name}.norm_0", before, spec.entering, inside, other_gradient=inside)
        if spec.entering != images and spec.has_shortcut:
            # The norm's operation, which reads the input anyway, writes this result, too.
            self.forward.append(Work(f"{name}, resampled", RESAMPLING, inside))
        self.conv(f"{name}.conv_0", (before, after), images)
        self.dense(f"{name}.embed", embedding, embed_channels)
        self.norm(f"{name}.norm_1", after, images, result, mask=mask)
        self.again += self.forward[first:]
        if spec.has_shortcut:
            self.conv(f"{name}.shortcut", (before, after), images, 1)
        added = result if spec.has_shortcut else self._array(before, spec.entering)
        self.conv(f"{name}.conv_1", (after, after), images, added=added, mask=mask)

    def attention(self, name: str, channels: int, images: ImageSize) -> None:
        """Add attention over the pixels, of any number of heads. Queries, keys and values are one product."""
        first, array, flops = len(self.forward), self._array(channels, images), 4 * images.pixels**2 * channels
        self.norm(f"{name}.norm", channels, images, array, other_gradient=array)
        self.conv(f"{name}.qkv", (channels, 3 * channels), images, 1)
        self.forward.append(Work(name, ATTENTION, 4 * array, flops))
        # It reads queries, keys, values, the result and its gradient, and writes three gradients.
        self.gradient.append(Work(f"{name}, input", ATTENTION, 8 * array, 2 * flops))
        self.again += self.forward[first:]
        self.conv(f"{name}.out", (channels, channels), images, 1, added=array)

    def skip(self, name: str, channels: int, images: ImageSize) -> None:
        """Add reading the gradient of a result that is used on the way up, too."""
        self.gradient.append(Work(f"{name}, skip", SUMS, self._array(channels, images)))

    def pyramid(self, name: str, channels: tuple[int, int], images: ImageSize, *, filtered: bool) -> None:
        """Add the input pyramid's step of (in, out) channels to `images` in size, and its sum with the level's."""
        above = images.doubled()
        entering = ImageSize(above.height + filtered, above.width + filtered)
        padded = self._array(channels[0], entering)
        if filtered:
            self.forward.append(Work(f"{name}.filter", RESAMPLING, self._array(channels[0], above) + padded))
        self.conv(f"{name}.conv", channels, images, entering=entering, added=self._array(channels[1], images))
        self.gradient.append(Work(f"{name}, input", RESAMPLING if filtered else SUMS, padded))

    def resampling_conv(self, name: str, channels: int, images: ImageSize, *, up: bool) -> None:
        """Add a convolution to `images` of a size: a strided one or, with `up`, one of repeated pixels."""
        if up:
            moved = self._array(channels, images.halved()) + self._array(channels, images)
            for works in (self.forward, self.gradient):
                works.append(Work(f"{name}.up", RESAMPLING, moved))
        self.conv(f"{name}.conv", (channels, channels), images, entering=images if up else images.doubled())

    def ends(self, image: int, first: int, last: int, images: ImageSize) -> None:
        """Add the first and the last convolution: `image` to `first` channels, and `last` to `image` channels."""
        self.conv("conv_in", (image, first), images)
        self.skip("conv_in", first, images)
        self.norm("norm_out", last, images, _FLOAT32 * last * images.pixels)
        self.conv("conv_out", (last, image), images, sizes=(_FLOAT32, _FLOAT32))


def _activation_bytes(config: Config) -> int:
    """The bytes of an element of the activations."""
    return 2 if config.train.precision in ("bf16", "fp16") else _FLOAT32


def activation_bytes(config: Config) -> int:
    """About the bytes that the gradient needs kept of each image in a forward pass.

    They are nine tenths of the bytes that the pass moves: for the presets of the paper, the bytes that torch keeps are
    0.82 to 0.90 of these. With checkpointing it is less.
    """
    return round(0.9 * sum(work.moved for work in _walk(config).forward))


def _walk(config: Config) -> _Walk:
    walk = _Walk(config)
    if isinstance(config.network, ADMConfig):
        _walk_adm(walk, config.network, config.data.shape)
    else:
        _walk_ncsnpp(walk, config.network, config.data.shape)
    return walk


def _walk_ncsnpp(walk: _Walk, config: NCSNppConfig, shape: Sequence[int]) -> None:
    spec, width = ncsnpp_spec(config, shape), 4 * config.channels
    features = (2 if config.embedding == "fourier" else 1) * config.channels
    walk.embedding(features, width, config.num_classes, config.labels_at)
    walk.ends(spec.image_channels, config.channels, spec.out_channels, ImageSize(*shape[1:]))
    for name, block in spec.blocks():
        walk.block(name, block, width, block.out_channels)
    for i, level in enumerate(spec.down):
        _leave_blocks(walk, f"down.{i}", level.blocks, attention=level.attention, skips=True)
        if level.down is not None:
            walk.skip(f"down.{i}.down", level.down.out_channels, level.down.size)
        if level.down is not None and level.pyramid is not None:
            walk.pyramid(f"down.{i}.pyramid", level.pyramid, level.down.size, filtered=bool(config.fir_kernel))
    walk.attention("middle.attention", spec.middle[0].out_channels, spec.middle[0].size)
    for i, up_level in enumerate(spec.up):
        _leave_blocks(walk, f"up.{i}", up_level.blocks[-1:], attention=up_level.attention, skips=False)


def _walk_adm(walk: _Walk, config: ADMConfig, shape: Sequence[int]) -> None:
    spec, width = adm_spec(config, shape), 4 * config.channels
    walk.embedding(config.channels, width, config.num_classes)
    walk.ends(spec.image_channels, spec.in_channels, spec.in_channels, ImageSize(*shape[1:]))
    for name, block in spec.blocks():
        walk.block(name, block, width, block.out_channels * (2 if config.scale_shift else 1))
    for i, level in enumerate(spec.down):
        _leave_blocks(walk, f"down.{i}", level.blocks, attention=level.attention, skips=True)
        _take_step(walk, f"down.{i}.down", level, up=False)
    walk.attention("middle.attention", spec.middle[0].out_channels, spec.middle[0].size)
    for i, level in enumerate(spec.up):
        _leave_blocks(walk, f"up.{i}", level.blocks, attention=level.attention, skips=False)
        _take_step(walk, f"up.{i}.up", level, up=True)


def _leave_blocks(walk: _Walk, name: str, blocks: Sequence[BlockSpec], *, attention: bool, skips: bool) -> None:
    """Add attention and skip connections after each of a level's blocks."""
    for j, block in enumerate(blocks):
        if attention:
            walk.attention(f"{name}.attention.{j}", block.out_channels, block.size)
        if skips:
            walk.skip(f"{name}.blocks.{j}", block.out_channels, block.size)


def _take_step(walk: _Walk, name: str, level: ADMLevelSpec, *, up: bool) -> None:
    """Add ADM's step to the next level, except for a residual block, which is added elsewhere."""
    if level.step is None:
        return
    leaving = level.blocks[0].size
    images = leaving.doubled() if up else leaving.halved()
    channels = level.step if isinstance(level.step, int) else level.step.out_channels
    if isinstance(level.step, int):
        walk.resampling_conv(name, channels, images, up=up)
    if not up:
        walk.skip(name, channels, images)


def _batch(config: Config) -> list[Work]:
    """The work before and after the networks: images, noise, masks, two noisy images, the loss."""
    dim = config.data.dim
    masks = sum(map(math.prod, mask_shapes(config))) if config.network.dropout else 0
    pair = 2 * _FLOAT32 * dim  # image and noise; or the results of both networks
    return [
        Work("images", IMAGES, dim + _FLOAT32 * dim),
        Work("noise", NOISE, _FLOAT32 * dim),
        Work("dropout masks", NOISE, masks if config.teacher.share_dropout else 2 * masks),
        Work("noisy images", IMAGES, pair + 2 * _activation_bytes(config) * dim),
        Work("distance", IMAGES, 2 * pair),
        Work("distance, input", IMAGES, 2 * pair + _FLOAT32 * dim),
    ]


def _update(config: Config, devices: int) -> list[Operation]:
    """The operations after the gradient: each device updates all weights or, where they are sharded, its part."""
    size = _FLOAT32 * sum(map(math.prod, trained_shapes(config).values()))
    if config.train.shard_weights:
        size = -(-size // devices)
    averages = count_averages(config)
    return [
        Operation(_OPTIMIZERS[config.train.optimizer], OPTIMISER, 0, _OF_OPTIMIZER * size),
        Operation("averages", OPTIMISER, 0, _OF_AVERAGE * averages * size),
    ]


def operations(config: Config, devices: int = 1) -> list[Operation]:
    """The operations of one of `devices` devices in a training step, when each has its share of the batch."""
    walk, images = _walk(config), config.train.batch_size // devices
    parts = images // config.train.micro_batch if config.train.micro_batch else 1
    passes = {"batch": _batch(config), "teacher": walk.forward, "student": walk.forward, "gradient": walk.gradient}
    if not config.curriculum.has_teacher:
        del passes["teacher"]
    if config.network.checkpoint:
        passes["again"] = walk.again

    def operation(when: str, work: Work) -> Operation:
        arrays = 2 * parts - 1 if work.adds else parts  # each part except the first also reads the sum
        moved = images * work.moved + _FLOAT32 * arrays * work.weights
        return Operation(f"{when}: {work.name}", work.kind, images * work.flops, moved)

    done = [operation(when, work) for when, works in passes.items() for work in works]
    return [*done, *_update(config, devices)]


def least_seconds(found: Sequence[Operation], product_rate: float, memory_rate: float) -> float:
    """The sum of the least seconds of the operations in `found`, by operations and bytes a second."""
    return sum(max(o.flops / product_rate, o.bytes / memory_rate) for o in found)


def shares(found: Sequence[Operation], product_rate: float, memory_rate: float) -> list[Share]:
    """The share of each kind of operations in `least_seconds`, the largest first."""
    kinds: dict[str, list[Operation]] = {}
    for o in found:
        kinds.setdefault(o.kind, []).append(o)
    parts = []
    for kind, some in kinds.items():
        bound = [o for o in some if o.bytes / memory_rate > o.flops / product_rate]
        rates = (product_rate, memory_rate)
        parts.append(Share(kind, least_seconds(some, *rates), least_seconds(bound, *rates)))
    return sorted(parts, key=lambda share: -share.seconds)
