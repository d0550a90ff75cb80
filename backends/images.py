"""Pictures: between uint8 and [-1, 1], into grids, into files."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from PIL import Image

from ict_backends.files import whole_file, write_atomically

# Small pictures are enlarged in grids, so that a person can see them.
_VISIBLE = 32
# Images that are brought from one layout into another at a time.
_TURNED = 256


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]: x / 127.5 - 1."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """[-1, 1] to uint8, rounded to the nearest; values outside are clipped. The inverse of `to_float`."""
    return np.clip(np.rint((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def grid(images: np.ndarray, *, columns: int | None = None) -> np.ndarray:
    """Arrange [n, c, h, w] uint8 in rows, white where there is none: [rows h', columns w', c], enlarged if small."""
    n, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    scale = max(1, _VISIBLE // height)
    padded = np.full((rows * columns, channels, height + 1, width + 1), 255, dtype=np.uint8)
    padded[:n, :, :height, :width] = images
    tiled = rearrange(padded, "(r k) c h w -> (r h) (k w) c", r=rows)
    return tiled.repeat(scale, axis=0).repeat(scale, axis=1)


def encode_png(picture: np.ndarray) -> bytes:
    """The PNG file of [h, w, c] uint8, c = 1 (grey), 3 (RGB) or 4 (RGBA)."""
    if picture.shape[2] == 1:
        picture = picture[:, :, 0]
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()


def save_grid(path: Path, images: np.ndarray, *, columns: int | None = None) -> None:
    """Write [n, c, h, w] uint8 as one PNG."""
    write_atomically(path, encode_png(grid(images, columns=columns)))


def save_folder(path: Path, images: np.ndarray, *, first: int = 0) -> None:
    """Write [n, c, h, w] uint8 as path/000000.png and so on, counting from `first`."""
    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images, start=first):
        write_atomically(path / f"{i:06d}.png", encode_png(rearrange(image, "c h w -> h w c")))


def save_npz(path: Path, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Write images as `arr_0` [n, h, w, c] uint8 and labels as `arr_1`, as the field's evaluators read them."""
    arrays = {"arr_0": rearrange(images, "n c h w -> n h w c")} | ({} if labels is None else {"arr_1": labels})
    write_atomically(path, encode_npz(**arrays))


def save_dataset(path: Path, images: np.ndarray, labels: np.ndarray | None, classes: tuple[str, ...]) -> None:
    """Write a data set that `load_data` reads: `images` [n, h, w, c] uint8 and, where there are some, `labels` [n] and
    `classes`, the names of the labels.

    The images may be a map of a file larger than the memory; they are turned some at a time.
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
    """The .npz file of some arrays."""
    stream = io.BytesIO()
    members: dict[str, Any] = dict(arrays)  # NumPy's stubs take a spread dict's values for its flags too
    np.savez(stream, **members)
    return stream.getvalue()
