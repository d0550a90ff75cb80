"""Decoding one image file to pixels: which images become grey and which RGB, and of what size (docs/data.md)."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image, ImageCms, UnidentifiedImageError

from ict_backends.data.limits import MAX_PIXELS
from ict_backends.errors import DataError

IMAGE_SUFFIXES = {
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
}
# Pillow knows more formats, and runs another program for some of them.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112
# How a picture is turned upright, by the orientation that the file names (EXIF 2.3, sec. 4.6.4).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# A tag of TIFF and one of its values; the kind of a PNG's pixels.
_PHOTOMETRIC, _WHITE_IS_ZERO, _PNG_GREY_ALPHA = 262, 0, 4


def read_image(path: Path) -> np.ndarray:
    """Read an image file as [c, h, w] uint8: grey images stay grey (c = 1), all others become RGB (c = 3).

    Raises DataError where the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error.strerror or error}") from error
    with quiet():
        return decode(content, str(path))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A context without the warnings of Pillow, on which a user can do nothing.

    It holds for all threads, so it is entered once around the work on many images, not once an image.
    """
    logger = logging.getLogger("PIL")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)


def decode(content: bytes, name: str) -> np.ndarray:
    """Decode the content of an image file to [c, h, w] uint8, c = 1 or 3.

    Args:
        content: the bytes of the file.
        name: names the image in the error.

    Raises:
        DataError: the content is damaged, too large or of no format that is read.
    """
    try:
        _check_png(content)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"its {width}x{height} pixels are more than the {MAX_PIXELS:,} that are read")
            _scale_transparency(image, content)
            return _pixels(_upright(image), grey=_is_grey(image, content))
    except UnidentifiedImageError as error:
        raise DataError(f"image {name} cannot be read: it is of no format that is known") from error
    except Exception as error:  # no library documents what its decoder raises on damaged content
        raise DataError(f"image {name} cannot be read: {str(error) or type(error).__name__}") from error


def _check_png(content: bytes) -> None:
    """Raise ValueError unless each chunk of a PNG has its checksum; Pillow does not check those of the pixels.

    Pillow's `Image.verify` needs a second open: 13 us for 32x32 pixels where this takes 2.6 (a decode takes 43), and of
    3,000 files with a flipped bit or a cut it passes 7, damaged in the last chunk, that this refuses.
    """
    place = 8
    if content[:place] != b"\x89PNG\r\n\x1a\n":
        return
    while True:
        length = int.from_bytes(content[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(content):
            raise ValueError("the file is cut off")
        kind = content[place + 4 : place + 8]
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise ValueError(f"the checksum of its chunk {kind!r} is wrong")
        if kind == b"IEND":
            return
        place = end + 4


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture upright where the file says how the camera was held."""
    if "exif" not in image.info and image.format != "TIFF":  # looking for EXIF data is slow where there are none
        return image
    image.load()  # which turns a TIFF, and tells that it needs no more turning
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # metadata that cannot be read are no fault of the picture; Pillow raises whatever it meets
        return image
    return image if turn is None else image.transpose(turn)


def _is_grey(image: Image.Image, content: bytes) -> bool:
    """True if the file holds no colours; Pillow opens a PNG of 16 bits with grey and alpha as RGBA."""
    return image.mode in ("1", "L", "LA", "La") or (image.format == "PNG" and content[25] == _PNG_GREY_ALPHA)


def _scale_transparency(image: Image.Image, content: bytes) -> None:
    """Bring the transparent value of a PNG (tRNS) to the scale of its pixels.

    Pillow scales grey pixels of 2 and 4 bits to 8, and colours of 16 bits to their upper 8, but not that value.
    """
    value = image.info.get("transparency")
    if image.format != "PNG" or value is None:
        return
    bits = content[24]
    if isinstance(value, int) and image.mode == "L" and bits < 8:
        image.info["transparency"] = value * 255 // (2**bits - 1)
    elif isinstance(value, tuple) and bits == 16:
        image.info["transparency"] = tuple(part >> 8 for part in value)


def _pixels(image: Image.Image, *, grey: bool) -> np.ndarray:
    """The pixels, [c, h, w] uint8: grey images as grey, all others as RGB, transparent ones on white."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if image.mode.startswith("I"):
        return _eight_bits(_sixteen_bits(image))[None]
    kind = "L" if grey else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None  # it is None only where the image is changed in place
        image = converted
    return from_picture(image.convert(kind))


def _sixteen_bits(image: Image.Image) -> np.ndarray:
    """The grey pixels, [h, w], of an image of 16 bits: 0 is black, and transparent ones are white."""
    pixels = np.asarray(image).astype(np.int64)
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # type: ignore[attr-defined]
        pixels = 65535 - pixels
    transparent = image.info.get("transparency")
    return pixels if transparent is None else np.where(pixels == transparent, 65535, pixels)


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Convert [h, w] pixels in 0..65535 to uint8: the v for which v * 257 is nearest."""
    wide = pixels.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ValueError("its pixels are of more than 16 bits")
    return ((wide + 128) // 257).astype(np.uint8)


def from_picture(picture: Image.Image) -> np.ndarray:
    """Convert a picture of mode L or RGB to [c, h, w] uint8, c = 1 or 3."""
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else rearrange(pixels, "h w c -> c h w")


def to_picture(image: np.ndarray) -> Image.Image:
    """Convert an image, [c, h, w] uint8 with c = 1 or 3, to a picture of mode L or RGB."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(rearrange(image, "c h w -> h w c")))


def middle(image: np.ndarray, height: int = 1, width: int = 1) -> np.ndarray:
    """The largest part in the middle of an image that has the proportions height : width, by default a square.

    It is a view, [c, h, w] to [c, h', w'], with h' = h or w' = w; the other one is rounded, and >= 1.
    """
    _, h, w = image.shape
    if h * width > w * height:
        h = max(1, round(w * height / width))
    else:
        w = max(1, round(h * width / height))
    top, left = (image.shape[1] - h) // 2, (image.shape[2] - w) // 2
    return image[:, top : top + h, left : left + w]


def resample(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Resample a picture of mode L or RGB to another size in pixels: Lanczos, with a larger support when shrinking."""
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


class Preparation(NamedTuple):
    """The arguments of `prepare` for all images of a set."""

    size: int | tuple[int, ...] = 0
    crop: str = "none"


def prepare(image: np.ndarray, name: str, *, size: int | tuple[int, ...] = 0, crop: str = "none") -> np.ndarray:
    """Crop an image, then resample it: [c, h, w] uint8 to the wanted size, or to its own where `size` is 0.

    Args:
        image: [c, h, w] uint8.
        name: names the image in the error.
        size: the wanted (height, width) in pixels, or a number for both; 0 keeps those of the image.
        crop: "center" first takes the middle part of the wanted proportions, a square where `size` is 0; "none" does
            not crop.

    Raises:
        DataError: the image is only one pixel high or wide, or has other proportions than the size that is wanted.
    """
    if min(image.shape[1:]) < 2:
        raise DataError(
            f"image {name} is {describe_shape(image.shape)}; a network needs at least 2x2, and a size that divides "
            "by 2 for each of its levels but one"
        )
    wanted = size if isinstance(size, tuple) else (size or 1, size or 1)
    if crop == "center":
        image = middle(image, *wanted)
    if not size or image.shape[1:] == wanted:
        return image
    if crop != "center" and image.shape[1] * wanted[1] != image.shape[2] * wanted[0]:
        kind = "no square" if wanted[0] == wanted[1] else f"not of the proportions of {wanted[0]}x{wanted[1]}"
        raise DataError(
            f"image {name} is {describe_shape(image.shape)}, which is {kind}; --crop center takes the middle one"
        )
    return from_picture(resample(to_picture(image), *wanted))


def fit_image(image: np.ndarray, shape: Sequence[int], *, resize: bool, what: str) -> np.ndarray:
    """Make an image, [c, h, w] uint8, one of `shape`.

    With `resize`, the middle part of the wanted proportions is resampled, grey is repeated and RGB becomes luma.

    Args:
        image: [c, h, w] uint8.
        shape: the wanted [channels, height, width].
        resize: allow another shape than that of the image.
        what: names the image in the error, such as "--image x.png".

    Raises:
        DataError: the image has another shape, and `resize` is not set; the message has both sizes.
    """
    if image.shape == tuple(shape):
        return image
    if not resize:
        raise DataError(
            f"{what} is {describe_shape(image.shape)}, but {describe_shape(shape)} is needed; --resize makes it fit"
        )
    channels, height, width = shape
    picture = to_picture(middle(image, height, width)).convert("L" if channels == 1 else "RGB")
    return from_picture(resample(picture, height, width))


def to_grey_pixels(image: np.ndarray) -> np.ndarray:
    """Convert an image, [c, h, w] uint8, to grey, [1, h, w] uint8."""
    if len(image) == 1:
        return image
    return np.asarray(Image.fromarray(rearrange(image, "c h w -> h w c")).convert("L"))[None]


def describe_shape(shape: Sequence[int]) -> str:
    """Describe a shape [channels, height, width] in words, height first as everywhere: "64x48 RGB"."""
    channels, height, width = shape
    return f"{height}x{width} {'grey' if channels == 1 else 'RGB'}"
