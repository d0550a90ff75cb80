"""Zero-shot editing: what is known of an image stays fixed while sampling fills in the rest.

Like `multistep_sample`, each function takes any consistency function f(x [b, c, h, w], sigma [b]) and noise that the
caller has drawn. What is known are some coordinates of the image under an orthogonal transform A: its pixels (A = I),
the luma of each pixel, or the mean of each patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ict_core._arrays import (
    Array,
    Namespace,
    check_count,
    check_floating,
    check_number,
    check_per_sample,
    check_same,
    constant,
    full_batch,
    host_constant,
    namespace,
    unstack,
)
from ict_core.loss import ConsistencyFunction
from ict_core.sampling import check_falling_sigmas

# Of red, green and blue in luma (ITU-R BT.601); their sum is 1, so that grey keeps its value.
LUMA = (0.299, 0.587, 0.114)


def reflection(direction: Sequence[float]) -> list[list[float]]:
    """A symmetric orthogonal matrix whose first row points along a direction: it is its own inverse.

        A = I - 2 v v^T / (v^T v),  v = e_1 - u,  u = direction / |direction|              Householder

    Args:
        direction: n numbers, not all zero.

    Returns:
        n rows of n numbers: not an array, so that compilers take them for constants.
    """
    length = math.sqrt(sum(d * d for d in direction))
    v = [(i == 0) - d / length for i, d in enumerate(direction)]
    # Along e_1 already, v is zero and nothing has to turn.
    factor = 2.0 / (sum(a * a for a in v) or 1.0)
    return [[(i == j) - factor * a * b for j, b in enumerate(v)] for i, a in enumerate(v)]


def mix_colors(x: Array, *, xp: Namespace | None = None) -> Array:
    """Images in the colour basis whose first channel is luma / |LUMA|; the transform is its own inverse.

    An orthogonal A of CM algorithm 4, by which `colorize` keeps the luma.

    Args:
        x: [b, 3, h, w] RGB images, real floating.
        xp: array namespace; inferred from `x` when omitted.

    Returns:
        [b, 3, h, w] in the dtype of `x`.
    """
    xp = namespace("x", x, xp)
    _check_images("x", x, xp, channels=3)
    b, c, h, w = x.shape
    matrix = host_constant(reflection(LUMA), x, xp)
    return xp.reshape(matrix @ xp.reshape(x, (b, c, h * w)), (b, c, h, w))


def mix_patches(x: Array, *, size: int, xp: Namespace | None = None) -> Array:
    """Images in the basis of patches: the first pixel of each becomes `size` times the patch's mean.

    An orthogonal A of CM algorithm 4, its own inverse, by which `super_resolve` keeps the means.

    Args:
        x: [b, c, h, w] images, real floating.
        size: >= 1, the height and width of a patch; divides h and w.
        xp: array namespace; inferred from `x` when omitted.

    Returns:
        [b, c, h, w] in the dtype of `x`.
    """
    xp = namespace("x", x, xp)
    b, c, h, w = _check_patches(x, size, xp)
    matrix = host_constant(reflection([1.0] * size**2), x, xp)
    patches = xp.reshape(x, (b, c, h // size, size, w // size, size))
    rows = xp.reshape(xp.permute_dims(patches, (0, 1, 2, 4, 3, 5)), (-1, size * size))
    mixed = xp.reshape(rows @ matrix, (b, c, h // size, w // size, size, size))
    return xp.reshape(xp.permute_dims(mixed, (0, 1, 2, 4, 3, 5)), (b, c, h, w))


def linear_edit(
    f: ConsistencyFunction[Array],
    start: Array,
    known: Array,
    target: Array,
    noises: Array | Sequence[Array],
    sigmas: Sequence[float],
    *,
    transform: Callable[[Array], Array] = lambda x: x,
    sigma_min: float = 0.002,
    xp: Namespace | None = None,
) -> Array:
    """Continue sampling from images while the known coordinates of their transform stay fixed.

        x <- A^-1 [ known target + (1 - known) A f(x + noise) ]                              CM algorithm 4

    Args:
        f: the consistency function.
        start: [b, c, h, w] what the first noise is added to.
        known: bool, of a shape that broadcasts to that of `target`: the coordinates to keep.
        target: [b, c, h, w] the coordinates A y of the images that are known in part.
        noises: one [b, c, h, w] a level.
        sigmas: falling levels, each one evaluation of f.
        transform: A, orthogonal and its own inverse; the coordinates are the pixels when it is omitted.
        sigma_min, xp: as for `multistep_sample`.

    Returns:
        [b, c, h, w], not clipped.
    """
    xp = namespace("start", start, xp)

    def keep(x: Array) -> Array:
        return transform(xp.where(known, target, transform(x)))

    return _sample_on(f, start, noises, sigmas, keep=keep, sigma_min=sigma_min, xp=xp)


def inpaint(
    f: ConsistencyFunction[Array],
    y: Array,
    known: Array,
    noises: Array | Sequence[Array],
    sigmas: Sequence[float],
    *,
    sigma_min: float = 0.002,
    xp: Namespace | None = None,
) -> Array:
    """Fill in the pixels that are not known.                                              CM algorithm 4

    Args:
        f: the consistency function.
        y: [b, c, h, w] images in [-1, 1]; what is not known of them is not read.
        known: bool, of the shape of y: the pixels to keep.
        noises, sigmas, sigma_min, xp: as for `multistep_sample`; each level is one evaluation of f.

    Returns:
        [b, c, h, w] in [-1, 1]: y where it is known.
    """
    xp = namespace("y", y, xp)
    _check_images("y", y, xp)
    if not xp.isdtype(known.dtype, "bool"):
        raise TypeError(f"known must be an array of bool, not {known.dtype}")
    if tuple(known.shape) != tuple(y.shape):
        raise ValueError(f"known must have the shape of y, {tuple(y.shape)}, not {tuple(known.shape)}")
    start = xp.where(known, y, constant(0.0, y, xp))
    x = linear_edit(f, start, known, y, noises, sigmas, sigma_min=sigma_min, xp=xp)
    return xp.where(known, y, _clip(x, xp))


def colorize(
    f: ConsistencyFunction[Array],
    y: Array,
    noises: Array | Sequence[Array],
    sigmas: Sequence[float],
    *,
    sigma_min: float = 0.002,
    xp: Namespace | None = None,
) -> Array:
    """Colorize images; their luma stays.                                                    CM algorithm 4

    Args:
        f: the consistency function, of RGB images.
        y: [b, 3, h, w] images in [-1, 1], of which only the luma is read.
        noises, sigmas, sigma_min, xp: as for `inpaint`.

    Returns:
        [b, 3, h, w] in [-1, 1], of the luma of y to its dtype's rounding.
    """
    xp = namespace("y", y, xp)
    _check_images("y", y, xp, channels=3)
    transform = partial(mix_colors, xp=xp)
    luma, target = _first_channel(y, xp), transform(y)
    start = transform(xp.where(luma, target, constant(0.0, y, xp)))
    x = linear_edit(f, start, luma, target, noises, sigmas, transform=transform, sigma_min=sigma_min, xp=xp)
    # A colour outside of [-1, 1] moves towards the grey of its luma until it is inside.
    return _shrink(x, to_grey(y, xp=xp), (1,), xp)


def super_resolve(
    f: ConsistencyFunction[Array],
    y: Array,
    noises: Array | Sequence[Array],
    sigmas: Sequence[float],
    *,
    size: int,
    sigma_min: float = 0.002,
    xp: Namespace | None = None,
) -> Array:
    """Enlarge images `size` times; each pixel stays as the mean of a patch.                 CM algorithm 4

    Args:
        f: the consistency function, of the large images.
        y: [b, c, h / size, w / size] images in [-1, 1].
        noises: one [b, c, h, w] a level.
        size: >= 1, the height and width of a patch.
        sigmas, sigma_min, xp: as for `inpaint`.

    Returns:
        [b, c, h, w] in [-1, 1], with y as the means of its patches, to its dtype's rounding.
    """
    xp = namespace("y", y, xp)
    _check_images("y", y, xp)
    check_count("size", size, at_least=1)
    blocks = repeat_pixels(y, size=size, xp=xp)
    transform = partial(mix_patches, size=size, xp=xp)
    means, target = _first_of_patch(blocks, size, xp), transform(blocks)
    x = linear_edit(f, blocks, means, target, noises, sigmas, transform=transform, sigma_min=sigma_min, xp=xp)
    # A patch that leaves [-1, 1] moves towards its mean until it is inside.
    b, c, h, w = blocks.shape
    shape = (b, c, h // size, size, w // size, size)
    return xp.reshape(_shrink(xp.reshape(x, shape), xp.reshape(blocks, shape), (3, 5), xp), (b, c, h, w))


def denoise(f: ConsistencyFunction[Array], x: Array, sigma: Array, *, xp: Namespace | None = None) -> Array:
    """Remove noise of a known level from images, in one evaluation.                        CM sec. 6.3

    Args:
        f: the consistency function.
        x: [b, c, h, w] images in [-1, 1] plus sigma times standard normal noise.
        sigma: [b] their levels, in the dtype of x.

    Returns:
        [b, c, h, w] in [-1, 1].
    """
    xp = namespace("x", x, xp)
    _check_images("x", x, xp)
    check_per_sample("sigma", sigma, "x", x)
    return _clip(f(x, sigma), xp)


def stroke(
    f: ConsistencyFunction[Array],
    y: Array,
    noises: Array | Sequence[Array],
    sigmas: Sequence[float],
    *,
    sigma_min: float = 0.002,
    xp: Namespace | None = None,
) -> Array:
    """Turn coarse drawings into images, by sampling from the noised drawing.               CM sec. 6.3, after SDEdit

    Args:
        f: the consistency function.
        y: [b, c, h, w] drawings in [-1, 1].
        noises: one [b, c, h, w] a level.
        sigmas: falling levels; the larger the first, the freer the result.
        sigma_min, xp: as for `inpaint`.

    Returns:
        [b, c, h, w] in [-1, 1].
    """
    xp = namespace("y", y, xp)
    _check_images("y", y, xp)
    return _clip(_sample_on(f, y, noises, sigmas, keep=lambda x: x, sigma_min=sigma_min, xp=xp), xp)


def interpolate_noise(a: Array, b: Array, fractions: Sequence[float], *, xp: Namespace | None = None) -> Array:
    """Interpolate between two noise arrays along the great circle, which keeps their norm.

        slerp(a, b, t) = (sin((1 - t) w) a + sin(t w) b) / sin w,  w the angle of a and b     CM sec. 6.3

    Args:
        a, b: [*event] standard normal noise of several elements, not parallel.
        fractions: n numbers; 0 gives a, 1 gives b.

    Returns:
        [n, *event] in the dtype of a, for `multistep_sample`.
    """
    xp = namespace("a", a, xp)
    check_floating("a", a, xp)
    check_same("a", a, "b", b)
    shares = [constant(check_number("fractions", fraction), a, xp) for fraction in fractions]
    one = constant(1.0, a, xp)
    cosine = xp.sum(a * b) / xp.sqrt(xp.sum(a * a) * xp.sum(b * b))
    angle = xp.acos(xp.clip(cosine, -one, one))
    return xp.stack([(xp.sin((one - t) * angle) * a + xp.sin(t * angle) * b) / xp.sin(angle) for t in shares])


def to_grey(x: Array, *, xp: Namespace | None = None) -> Array:
    """Grey images of the same luma: [b, 3, h, w] -> [b, 3, h, w] with equal channels."""
    xp = namespace("x", x, xp)
    _check_images("x", x, xp, channels=3)
    weights = xp.reshape(host_constant(LUMA, x, xp), (1, 3, 1, 1))
    return xp.broadcast_to(xp.sum(weights * x, axis=1, keepdims=True), tuple(x.shape))


def patch_means(x: Array, *, size: int, xp: Namespace | None = None) -> Array:
    """The means of size x size patches: [b, c, h, w] -> [b, c, h / size, w / size]."""
    xp = namespace("x", x, xp)
    b, c, h, w = _check_patches(x, size, xp)
    return xp.mean(xp.reshape(x, (b, c, h // size, size, w // size, size)), axis=(3, 5))


def repeat_pixels(x: Array, *, size: int, xp: Namespace | None = None) -> Array:
    """Images enlarged by repeating each pixel: [b, c, h, w] -> [b, c, size h, size w]."""
    xp = namespace("x", x, xp)
    _check_images("x", x, xp)
    check_count("size", size, at_least=1)
    b, c, h, w = x.shape
    spread = xp.broadcast_to(xp.reshape(x, (b, c, h, 1, w, 1)), (b, c, h, size, w, size))
    return xp.reshape(spread, (b, c, h * size, w * size))


def _sample_on(
    f: ConsistencyFunction[Array],
    start: Array,
    noises: Array | Sequence[Array],
    sigmas: Sequence[float],
    *,
    keep: Callable[[Array], Array],
    sigma_min: float,
    xp: Namespace,
) -> Array:
    """At each level: add noise to the images, denoise them, and restore what is to be kept."""
    check_number("sigma_min", sigma_min, above=0.0)
    levels = check_falling_sigmas(sigmas, sigma_min=sigma_min)
    zs: list[Any] = unstack(noises)
    if len(zs) != len(levels):
        raise ValueError(f"noises must hold one array a level: {len(levels)}, not {len(zs)}")
    x = start
    for j, (level, z) in enumerate(zip(levels, zs, strict=True)):
        check_same("the images", x, f"noises[{j}]", z)
        std = level if j == 0 else math.sqrt(level**2 - sigma_min**2)
        x = keep(f(x + std * z, full_batch(level, x, xp)))
    return x


def _shrink(x: Array, anchor: Array, axes: tuple[int, ...], xp: Namespace) -> Array:
    """anchor + s (x - anchor) with the largest s <= 1, the same along `axes`, that stays within [-1, 1].

    The anchor is within [-1, 1].
    """
    one = constant(1.0, x, xp)
    off = x - anchor
    room = xp.where(off > 0, one - anchor, one + anchor)
    # Where nothing is off, there is no limit; the other branch must not divide by zero.
    size = xp.abs(off)
    ratio = xp.where(size > room, room / xp.where(size > room, size, one), one)
    scale = xp.min(ratio, axis=axes, keepdims=True)
    return _clip(anchor + scale * off, xp)


def _clip(x: Array, xp: Namespace) -> Array:
    return xp.clip(x, constant(-1.0, x, xp), constant(1.0, x, xp))


def _first_channel(x: Array, xp: Namespace) -> Array:
    """Mask of the channel that is luma, bool [1, c, 1, 1]."""
    index = xp.arange(x.shape[1], device=getattr(x, "device", None))
    return xp.reshape(index == 0, (1, -1, 1, 1))


def _first_of_patch(x: Array, size: int, xp: Namespace) -> Array:
    """Mask of the pixels that are means, bool [1, 1, h, w]."""
    device = getattr(x, "device", None)
    rows, columns = (xp.arange(n, device=device) % size == 0 for n in x.shape[2:])
    return xp.reshape(rows, (1, 1, -1, 1)) & xp.reshape(columns, (1, 1, 1, -1))


def _check_patches(x: Array, size: int, xp: Namespace) -> tuple[int, int, int, int]:
    """The shape of images that can be cut into patches."""
    _check_images("x", x, xp)
    check_count("size", size, at_least=1)
    b, c, h, w = x.shape
    if h % size or w % size:
        raise ValueError(f"size must divide the height and width of x, {h} and {w}, not {size}")
    return b, c, h, w


def _check_images(name: str, x: Array, xp: Namespace, *, channels: int | None = None) -> None:
    check_floating(name, x, xp)
    if x.ndim != 4:
        raise ValueError(f"{name} must be [b, c, h, w], not of shape {tuple(x.shape)}")
    if channels is not None and x.shape[1] != channels:
        raise ValueError(f"{name} must have {channels} channels, not {x.shape[1]}")
