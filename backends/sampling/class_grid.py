"""Pictures of the samples of a conditional model: a class a row, with its name beside it."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ict_backends.images import tile

# A class with more images goes on in another row, unless there are more rows than columns then.
_COLUMNS = 16
# The size of letters in pixels is a part of a row's height, within these bounds; longer captions are cut off.
_SHARE, _SMALLEST, _LARGEST = 3, 9, 24
_LETTERS = 24


def class_grid(
    images: np.ndarray, labels: np.ndarray, names: Sequence[str] | None, *, scale: int | None = None
) -> np.ndarray:
    """Arrange images so that each class has rows of its own, with a caption at their left.

    Args:
        images: [n, c, h, w] uint8, n >= 1.
        labels: [n], their classes.
        names: the names of the classes, by number; None to write the numbers.
        scale: how many times larger each image is drawn; as for `tile`.

    Returns:
        [h', w', c] uint8.
    """
    classes, counts = np.unique(labels, return_counts=True)
    columns = min(int(counts.max()), max(_COLUMNS, math.ceil(math.sqrt(len(images)))))
    cells, captions = list[np.ndarray](), list[str]()
    for label, count in zip(classes, counts, strict=True):
        rows = math.ceil(count / columns)
        blank = np.full((rows * columns - count, *images.shape[1:]), 255, dtype=np.uint8)
        cells += [images[labels == label], blank]
        captions += [caption(int(label), names), *[""] * (rows - 1)]
    return with_captions(tile(np.concatenate(cells), columns=columns, scale=scale), captions)


def caption(label: int, names: Sequence[str] | None) -> str:
    """The name of a class, without accents; its number where it has none, or none in Latin letters.

    The font that comes with Pillow has no other letters.
    """
    parts = unicodedata.normalize("NFKD", names[label] if names else "")
    name = "".join(c for c in parts if not unicodedata.combining(c))
    return name if name and name.isascii() and name.isprintable() else str(label)


def with_captions(picture: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Write a caption at the left of each of the equally high rows of a picture, black on white.

    Args:
        picture: [h, w, c] uint8, whose height is a multiple of the number of rows.
        captions: one a row; "" for none.

    Returns:
        [h, w', c] uint8, wider than the picture.
    """
    height = picture.shape[0] // len(captions)
    font = ImageFont.load_default(min(max(height // _SHARE, _SMALLEST), _LARGEST))
    written = [text if len(text) <= _LETTERS else f"{text[: _LETTERS - 3]}..." for text in captions]
    gap = height // 8 + 2
    width = math.ceil(max(font.getlength(text) for text in written)) + 2 * gap
    strip = Image.new("L", (width, picture.shape[0]), 255)
    draw = ImageDraw.Draw(strip)
    for row, text in enumerate(written):
        draw.text((width - gap, (row + 0.5) * height), text, fill=0, font=font, anchor="rm")
    return np.concatenate([np.repeat(np.asarray(strip)[:, :, None], picture.shape[2], axis=2), picture], axis=1)
