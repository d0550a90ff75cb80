"""The layers of a network without any framework: one record a layer, from which shapes, counts and costs are read.

The parts of both families of networks are here, too: residual blocks, and the layers of a block and of attention.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from typing import NamedTuple

# The shapes of named arrays, in the layout of checkpoints: convolutions [out, in, h, w], dense layers [out, in].
Shapes = dict[str, tuple[int, ...]]


class ImageSize(NamedTuple):
    """The size of images at a level of a network, in pixels."""

    height: int
    width: int

    @property
    def pixels(self) -> int:
        """The number of pixels."""
        return self.height * self.width

    def halved(self, times: int = 1) -> ImageSize:
        """The size `times` levels further down."""
        return ImageSize(self.height >> times, self.width >> times)

    def doubled(self) -> ImageSize:
        """The size of the level above."""
        return ImageSize(2 * self.height, 2 * self.width)

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


class Kind(Enum):
    """The kind of a layer."""

    CONVOLUTION = "convolution"
    PROJECTION = "1x1 convolution of attention"
    DENSE = "dense layer"
    NORM = "group norm"
    TABLE = "row a class"
    FREQUENCIES = "stored frequencies"
    ATTENTION = "products of queries, keys and values"


class Layer(NamedTuple):
    """A layer of a network.

    Attributes:
        name: the name of its module in checkpoints.
        kind: determines which arrays the layer has, and what it computes with them.
        in_size, out_size: channels or features of its input and of its result; for a table, classes and features.
        kernel: height and width of a convolution's kernel in pixels; 1 for all other layers.
        size: of the images in its result; 1x1 where the result is vectors.
        trained: True if its arrays have a gradient.
    """

    name: str
    kind: Kind
    in_size: int
    out_size: int
    kernel: int = 1
    size: ImageSize = ImageSize(1, 1)
    trained: bool = True

    @property
    def arrays(self) -> Shapes:
        """The shapes of its arrays: of "weight" and "bias", or of "" for an array with the name of the layer."""
        match self.kind:
            case Kind.CONVOLUTION | Kind.PROJECTION:
                return {"weight": (self.out_size, self.in_size, self.kernel, self.kernel), "bias": (self.out_size,)}
            case Kind.DENSE:
                return {"weight": (self.out_size, self.in_size), "bias": (self.out_size,)}
            case Kind.NORM:
                return {"weight": (self.out_size,), "bias": (self.out_size,)}
            case Kind.TABLE:
                return {"weight": (self.in_size, self.out_size)}
            case Kind.FREQUENCIES:
                return {"": (self.out_size,)}
            case Kind.ATTENTION:
                return {}

    def array_name(self, leaf: str) -> str:
        """The name in checkpoints of the array that `arrays` calls `leaf`."""
        return f"{self.name}.{leaf}" if leaf else self.name

    @property
    def flops(self) -> int:
        """The operations for one image, as `forward_flops` counts them: norms, which memory limits, have none."""
        match self.kind:
            case Kind.CONVOLUTION | Kind.PROJECTION:
                return 2 * self.in_size * self.out_size * self.kernel**2 * self.size.pixels
            case Kind.DENSE:
                return 2 * self.in_size * self.out_size
            case Kind.ATTENTION:
                return 2 * 2 * self.size.pixels**2 * self.out_size
            case _:
                return 0


def array_shapes(layers: Iterable[Layer]) -> Shapes:
    """The shapes of all arrays of some layers, by the arrays' names in checkpoints."""
    return {layer.array_name(leaf): shape for layer in layers for leaf, shape in layer.arrays.items()}


class BlockSpec(NamedTuple):
    """A residual block.

    Attributes:
        in_channels, out_channels: channels of its input and of its output.
        size: of the images in its output.
        up, down: True if the block doubles or halves height and width.
        project: True if the shortcut of a block that resamples has a convolution even where the channels stay the same.
        dropout: True if the block takes a dropout mask.
    """

    in_channels: int
    out_channels: int
    size: ImageSize
    up: bool = False
    down: bool = False
    project: bool = True
    dropout: bool = True

    @property
    def has_shortcut(self) -> bool:
        """True if the shortcut needs a 1x1 convolution."""
        return self.in_channels != self.out_channels or (self.project and (self.up or self.down))

    @property
    def entering(self) -> ImageSize:
        """The size of the images in the block's input."""
        return self.size.doubled() if self.down else self.size.halved() if self.up else self.size

    @property
    def mask_shape(self) -> tuple[int, int, int]:
        """The shape [channels, height, width] of the block's dropout mask."""
        return (self.out_channels, *self.size)


def block_layers(name: str, block: BlockSpec, embedding: int, *, embed_channels: int) -> Iterator[Layer]:
    """Yield the layers of a residual block.

    Args:
        name: the name of the block in checkpoints.
        block: its specification.
        embedding: the number of features of the noise embedding.
        embed_channels: the number of channels that the block projects these features to.
    """
    entering, leaving, size = block.in_channels, block.out_channels, block.size
    yield Layer(f"{name}.norm_0", Kind.NORM, entering, entering, size=block.entering)
    yield Layer(f"{name}.conv_0", Kind.CONVOLUTION, entering, leaving, 3, size)
    yield Layer(f"{name}.embed", Kind.DENSE, embedding, embed_channels)
    yield Layer(f"{name}.norm_1", Kind.NORM, leaving, leaving, size=size)
    yield Layer(f"{name}.conv_1", Kind.CONVOLUTION, leaving, leaving, 3, size)
    if block.has_shortcut:
        yield Layer(f"{name}.shortcut", Kind.CONVOLUTION, entering, leaving, 1, size)


def attention_layers(
    name: str, projections: Iterable[tuple[str, int]], channels: int, size: ImageSize
) -> Iterator[Layer]:
    """Yield the layers of self-attention over the pixels.

    Args:
        name: the name of the attention in checkpoints.
        projections: name and output channels of each 1x1 convolution, the one after the attention last.
        channels: channels of the images.
        size: of the images.
    """
    yield Layer(f"{name}.norm", Kind.NORM, channels, channels, size=size)
    for layer, width in projections:
        yield Layer(f"{name}.{layer}", Kind.PROJECTION, channels, width, 1, size)
    yield Layer(name, Kind.ATTENTION, channels, channels, size=size)


def embedding_layers(features: int, width: int, num_classes: int, labels_at: str = "embedding") -> Iterator[Layer]:
    """Yield the layers that turn `features` features of the noise level, and a label, into `width` numbers.

    The label's row is added to the `width` numbers or, with `labels_at` = "features", a dense layer of it to the
    features.
    """
    yield Layer("embedding.dense_0", Kind.DENSE, features, width)
    yield Layer("embedding.dense_1", Kind.DENSE, width, width)
    if num_classes and labels_at == "features":
        yield Layer("embedding.labels", Kind.DENSE, num_classes, features)
    elif num_classes:
        yield Layer("embedding.labels", Kind.TABLE, num_classes, width)


def dropped_numbers(rate: float) -> int:
    """The count of 2^16 equally likely numbers that drop an element of a mask: nearest to the rate, but never all."""
    return min(round(rate * 2**16), 2**16 - 1)


def kept_share(rate: float) -> float:
    """The share of elements that dropout with this rate keeps, in (0, 1]: what the kept ones are divided by.

    It is a multiple of 2^-16, as `dropped_numbers` is of 1, so that the mean stays the same exactly.
    """
    return 1.0 - dropped_numbers(rate) / 2**16
