"""Images converted between uint8 and [-1, 1], arranged in grids, and written into files."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ict_backends.errors import NonFiniteError
from ict_backends.files import whole_file, write_atomically

# In grids, small images are enlarged up to this height in pixels, so that a person can see them.
_VISIBLE = 32
# What a PNG says that it was written by, if it shows several images or an edited one, and the chunk that says so.
PICTURE_SOFTWARE = "ict, a picture"
PICTURE_MARK = b"tEXtSoftware\0" + PICTURE_SOFTWARE.encode()
# Images that are brought from [c, h, w] into [h, w, c] at a time.
_TURNED = 256


def to_float(images: np.ndarray) -> np.ndarray:
    """Convert uint8 images of any shape to float32 in [-1, 1]: x / 127.5 - 1."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_uint8(images: np.ndarray, *, truncate: bool = False) -> np.ndarray:
    """Convert images of any shape in [-1, 1] to uint8, rounded to the nearest: the inverse of `to_float`.

    Values outside of [-1, 1] are clipped.

    Args:
        images: of any shape.
        truncate: cut the fraction off instead, as released samplers do: half a level darker on average.

    Raises:
        NonFiniteError: a value is NaN or infinite; rounding would make it black or white, as if nothing were wrong.
    """
    if not np.isfinite(images).all():
        raise NonFiniteError("an image has values that are NaN or infinite: the weights, or their precision, fail")
    scaled = (images + 1.0) * 127.5
    return np.clip(scaled if truncate else np.rint(scaled), 0, 255).astype(np.uint8)


def tile(images: np.ndarray, *, columns: int | None = None, scale: int | None = None) -> np.ndarray:
    """Arrange images in rows on white, each with a white line below and to the right.

    Args:
        images: [n, c, h, w] uint8, n >= 1.
        columns: images in a row; by default the smallest number for which there are no more rows than columns.
        scale: how many times larger each pixel is drawn, >= 1; by default only small images are enlarged, up to a
            height of 32 pixels.

    Returns:
        [rows * h', columns * w', c] uint8 with h' = scale * (h + 1) and w' = scale * (w + 1).
    """
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = scale or max(1, _VISIBLE // height)
    padded = np.full((rows * columns, channels, height + 1, width + 1), 255, dtype=np.uint8)
    padded[:n, :, :height, :width] = images
    tiled = rearrange(padded, "(r k) c h w -> (r h) (k w) c", r=rows)
    return tiled.repeat(scale, axis=0).repeat(scale, axis=1)


def encode_png(picture: np.ndarray) -> bytes:
    """Encode an image, [h, w, c] uint8 with c = 1 (grey), 3 (RGB) or 4 (RGBA), as the content of a PNG file."""
    return _encode_png(picture, None)


def encode_picture(picture: np.ndarray) -> bytes:
    """Encode a picture for people, as `encode_png` does, marked so that it is never read as an image of a data set."""
    mark = PngInfo()
    mark.add_text("Software", PICTURE_SOFTWARE)
    return _encode_png(picture, mark)


def _encode_png(picture: np.ndarray, info: PngInfo | None) -> bytes:
    if picture.shape[2] == 1:
        picture = picture[:, :, 0]
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def save_grid(path: Path, images: np.ndarray, *, columns: int | None = None) -> None:
    """Write images, [n, c, h, w] uint8, as one PNG file, arranged by `tile`."""
    write_atomically(path, encode_picture(tile(images, columns=columns)))


def save_folder(path: Path, images: np.ndarray, *, first: int = 0) -> None:
    """Write images, [n, c, h, w] uint8, as path/000000.png and so on, counting from `first`."""
    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images, start=first):
        write_atomically(path / f"{i:06d}.png", encode_png(rearrange(image, "c h w -> h w c")))


def save_npz(path: Path, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Write images and labels as an .npz file that the evaluators of other projects read.

    Args:
        images: [n, c, h, w] uint8, written as `arr_0` [n, h, w, c].
        labels: [n], written as `arr_1`, or None.
    """
    arrays = {"arr_0": rearrange(images, "n c h w -> n h w c")} | ({} if labels is None else {"arr_1": labels})
    write_atomically(path, encode_npz(**arrays))


def save_dataset(path: Path, images: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...]) -> None:
    """Write a data set as an .npz file that `load_data` reads.

    Args:
        images: [n, c, h, w] uint8, written as `images` [n, h, w, c] a few at a time, so that they may be a memory map
            of a file larger than the memory.
        labels: [n], written as `labels`, or None.
        classes: the names of the labels, written as `classes` where there are some.
    """
    n, channels, height, width = images.shape
    with whole_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": (n, height, width, channels)}
            np.lib.format.write_array_header_1_0(member, header)
            for i in range(0, n, _TURNED):
                member.write(rearrange(images[i : i + _TURNED], "n c h w -> n h w c").tobytes())
        small = {} if labels is None else {"labels": labels}
        small |= {"classes": np.array(classes, dtype=str)} if classes else {}
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def encode_npz(**arrays: np.ndarray) -> bytes:
    """Encode named arrays as the content of an .npz file."""
    stream = io.BytesIO()
    members: dict[str, Any] = dict(arrays)  # NumPy's stubs take a spread dict's values for its flags too
    np.savez(stream, **members)
    return stream.getvalue()
