"""One image file to pixels: the rule of what becomes grey and what RGB, and the rule of sizes (docs/data.md)."""

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
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from ict_backends.errors import DataError

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Pillow knows more formats, and runs another program for some of them.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What a small file that unpacks to an enormous picture may claim; Pillow itself only warns there.
MAX_PIXELS = 89_478_485
# Of one file, packed or unpacked.
MAX_BYTES = 2**30
_ORIENTATION = 0x0112


def read_image(path: Path) -> np.ndarray:
    """[c, h, w] uint8 of a file: grey images stay grey, all others become RGB. Raises DataError if unreadable."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"image {path} cannot be read: {error.strerror or error}") from error
    with quiet():
        return decode(content, str(path))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of Pillow, which say nothing of what is done about them.

    It holds for all threads, so that it is entered once around the work of many and not for each image.
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
    """[c, h, w] uint8 of the content of an image file, c = 1 or 3.

    Raises:
        DataError: in one line that has the name, where it is damaged, too large or of no format that is read.
    """
    try:
        _check_png(content)
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"its {width}x{height} pixels are more than the {MAX_PIXELS:,} that are read")
            return _pixels(_upright(image))
    except UnidentifiedImageError as error:
        raise DataError(f"image {name} cannot be read: it is of no format that is known") from error
    except Exception as error:  # which ones a decoder raises on damaged content, no library says
        raise DataError(f"image {name} cannot be read: {str(error) or type(error).__name__}") from error


def _check_png(content: bytes) -> None:
    """Raise ValueError unless each chunk of a PNG has its checksum: Pillow checks those of the pixels not."""
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
    """The picture as the camera was held, where the file says so."""
    if "exif" not in image.info and image.format != "TIFF":  # to ask for it is slow where there is none
        return image
    return ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image


def _pixels(image: Image.Image) -> np.ndarray:
    """[c, h, w] uint8: grey of what is grey, RGB of all else, on white where it is transparent."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if image.mode.startswith("I"):
        return _eight_bits(np.asarray(image))[None]
    kind = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB")
        assert converted is not None  # which it is where the image is changed in place
        image = converted
    return from_picture(image.convert(kind))


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """[h, w] uint8 of 0..65535: the nearest v with v * 257."""
    wide = pixels.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ValueError("its pixels are of more than 16 bits")
    return ((wide + 128) // 257).astype(np.uint8)


def from_picture(picture: Image.Image) -> np.ndarray:
    """[c, h, w] uint8 of a picture of mode L or RGB."""
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else rearrange(pixels, "h w c -> c h w")


def to_picture(image: np.ndarray) -> Image.Image:
    """The picture, of mode L or RGB, of [c, h, w] uint8."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(rearrange(image, "c h w -> h w c")))


def middle_square(image: np.ndarray) -> np.ndarray:
    """The largest square in the middle of [c, h, w]."""
    side = min(image.shape[1:])
    top, left = (image.shape[1] - side) // 2, (image.shape[2] - side) // 2
    return image[:, top : top + side, left : left + side]


def resample(picture: Image.Image, height: int, width: int) -> Image.Image:
    """A picture of mode L or RGB at another size: Lanczos, whose support grows where the picture shrinks."""
    return picture if picture.size == (width, height) else picture.resize((width, height), Image.Resampling.LANCZOS)


class Preparation(NamedTuple):
    """How the images of a set are prepared: the arguments of `prepare`."""

    size: int = 0
    crop: str = "none"


def prepare(image: np.ndarray, name: str, *, size: int = 0, crop: str = "none") -> np.ndarray:
    """[c, h, w] uint8 as a data set takes it: cropped, then resampled.

    Args:
        size: height and width wanted; 0 for those that it has.
        crop: "center" takes the middle square first, "none" nothing.

    Raises:
        DataError: it is but one pixel high or wide, or no square where one is needed.
    """
    if min(image.shape[1:]) < 2:
        raise DataError(
            f"image {name} is {describe_shape(image.shape)}; a network needs at least 2x2, and a size that divides "
            "by 2 for each of its levels but one"
        )
    if crop == "center":
        image = middle_square(image)
    if not size or image.shape[1:] == (size, size):
        return image
    if image.shape[1] != image.shape[2]:
        raise DataError(
            f"image {name} is {describe_shape(image.shape)}, which is no square; --crop center takes the middle one"
        )
    return from_picture(resample(to_picture(image), size, size))


def fit_image(image: np.ndarray, shape: Sequence[int], *, resize: bool, what: str) -> np.ndarray:
    """[c, h, w] uint8 as one of `shape`.

    With `resize`, the middle square is resampled, grey is repeated and RGB becomes luma.

    Args:
        what: names the image in the error, such as "--image x.png".

    Raises:
        DataError: the image has another shape, and `resize` is not set; it gives both sizes.
    """
    if image.shape == tuple(shape):
        return image
    if not resize:
        raise DataError(
            f"{what} is {describe_shape(image.shape)}, but {describe_shape(shape)} is needed; --resize makes it fit"
        )
    channels, height, width = shape
    picture = to_picture(middle_square(image)).convert("L" if channels == 1 else "RGB")
    return from_picture(resample(picture, height, width))


def to_grey_pixels(image: np.ndarray) -> np.ndarray:
    """[c, h, w] uint8 as grey, [1, h, w], of the same size."""
    if len(image) == 1:
        return image
    return np.asarray(Image.fromarray(rearrange(image, "c h w -> h w c")).convert("L"))[None]


def describe_shape(shape: Sequence[int]) -> str:
    """[channels, height, width] in words: "32x32 RGB"."""
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"
