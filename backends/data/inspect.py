"""Inspecting a data set: counts, sizes, statistics, duplicates, unreadable images, and a sheet of some images."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ict_backends.data.dataset import Dataset, find_data, reading_bar
from ict_backends.data.decode import Preparation, describe_shape, from_picture, quiet, resample, to_picture
from ict_backends.data.decode_pool import decoded
from ict_backends.data.source import Source
from ict_backends.errors import DataError
from ict_backends.images import tile

_SHEET_COLUMNS, _SHEET_ROWS = 10, 10
_CELL_SMALLEST, _CELL_LARGEST = 32, 96
_NAMED = 10
# Pixels of a channel that are summed at a time: eight bytes each.
_BLOCK = 2**20


@dataclass
class Inspection:
    """The results of inspecting a data set.

    Attributes:
        where: the user's name for the set.
        count: the number of images that the set lists, unreadable ones included.
        labels: [count] int64, or None.
        classes: the names of the labels, by number; empty where they have none.
        shapes: the number of images of each [channels, height, width].
        mean, std: [3], by channel, of values in [-1, 1]; [1] if all images are grey.
        duplicates: (name, name of the first image with the same pixels).
        unreadable: for each unreadable image, a message that says why.
        sheet: a picture [h, w, c] uint8 of some of the images.
        notes: what was left out or chosen, as `Source` has it.
    """

    where: str
    count: int
    labels: np.ndarray | None
    classes: tuple[str, ...]
    shapes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    mean: np.ndarray = field(default_factory=lambda: np.zeros(1))
    std: np.ndarray = field(default_factory=lambda: np.zeros(1))
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    sheet: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The results in words, as lines of text."""
        return [
            f"images: {self.count:,}",
            *(f"note: {note}" for note in self.notes),
            *self._shape_lines(),
            *self._class_lines(),
            f"mean: {_numbers(self.mean)} by channel, of values in [-1, 1]",
            f"std:  {_numbers(self.std)}",
            f"duplicates: {len(self.duplicates):,} images have the pixels of an earlier one"
            if self.duplicates
            else "duplicates: none",
            *_first(f"{name} = {first}" for name, first in self.duplicates),
            f"unreadable: {len(self.unreadable):,}" if self.unreadable else "unreadable: none",
            *_first(self.unreadable),
        ]

    def _shape_lines(self) -> Iterator[str]:
        common = self.shapes.most_common()
        if not common:
            return
        if len(common) == 1:
            yield f"size: {describe_shape(common[0][0])}"
            channels = common[0][0][0]
        else:
            yield f"sizes: {len(common):,} different"
            yield from _first(f"{describe_shape(shape)}: {count:,}" for shape, count in common)
            channels = max(shape[0] for shape in self.shapes)
        yield f"channels: {channels} ({'grey' if channels == 1 else 'RGB'})"
        if len({shape[0] for shape in self.shapes}) > 1:
            yield "  grey and RGB are mixed: training takes all of them as RGB"
        if len({shape[1:] for shape in self.shapes}) > 1:
            yield "  training needs equal sizes: --size N or HxW resamples, with --crop center where proportions differ"
        if any(min(shape[1:]) < 2 for shape in self.shapes):
            yield "  images of one pixel's height or width are refused in training"

    def _class_lines(self) -> Iterator[str]:
        if self.labels is None:
            yield "classes: none"
            return
        counts = np.bincount(self.labels)
        yield f"classes: {np.count_nonzero(counts)} (--conditional trains on them)"
        names = [self.classes[i] if i < len(self.classes) else str(i) for i in range(len(counts))]
        numbered = [f"{i} {name}" if name != str(i) else name for i, name in enumerate(names)]
        yield from _first((f"{name}: {count:,}" for name, count in zip(numbered, counts, strict=True)), 20)


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _first(lines: Iterator[str] | list[str], most: int = _NAMED) -> list[str]:
    texts = list(lines)
    more = [f"  and {len(texts) - most:,} more"] if len(texts) > most else []
    return [f"  {line}" for line in texts[:most]] + more


def inspect(source: str, *, size: int | tuple[int, ...] = 0, crop: str = "none") -> Inspection:
    """Inspect a data set in one pass over its images, keeping only the results in memory.

    Args:
        source: as for `load_data`.
        size, crop: inspect the images as `load_data` would return them; by default as they are stored.

    Raises:
        DataError, UsageError: there is no set of images, or `size` and `crop` do not fit an image.
    """
    data = find_data(source)
    opened = _of_arrays(source, data) if isinstance(data, Dataset) else data.open()
    seen = Inspection(source, len(opened.names), opened.labels, opened.classes, notes=opened.notes)
    sums, sheet = _Sums(), _Sheet(opened.labels, len(opened.names))
    known: dict[bytes, int] = {}

    preparation = Preparation(size, crop) if size or crop != "none" else None
    same: list[tuple[int, int]] = []
    with quiet(), reading_bar(seen.count) as bar:
        for i, image in decoded(opened, preparation):
            bar.update()
            if isinstance(image, DataError):
                seen.unreadable.append(str(image))
                continue
            seen.shapes[image.shape] += 1
            sums.add(image)
            sheet.add(i, image)
            pixels = _digest(image)
            first = known.setdefault(pixels, i)
            if first != i:
                known[pixels] = min(first, i)  # archives are read in an order of their own
                same.append((max(first, i), min(first, i)))
    if not seen.shapes:
        raise DataError(f"data {source} holds no image that can be read; {seen.count} cannot")
    seen.duplicates = [(opened.names[i], opened.names[first]) for i, first in sorted(same)]
    seen.mean, seen.std = sums.result(colour=any(shape[0] == 3 for shape in seen.shapes))
    seen.sheet = sheet.picture()
    return seen


def _digest(image: np.ndarray) -> bytes:
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.digest()


def _of_arrays(source: str, dataset: Dataset) -> Source:
    names = [f"number {i}" for i in range(len(dataset.images))]
    return Source(source, names, dataset.labels, dataset.classes, lambda: enumerate(dataset.images))


class _Sums:
    """Sums over all pixels by channel, grey counted as three equal channels; whole numbers, so that they are exact."""

    def __init__(self) -> None:
        self._pixels, self._sum, self._squares = 0, np.zeros(3, dtype=object), np.zeros(3, dtype=object)

    def add(self, image: np.ndarray) -> None:
        """Add the pixels of an image, [c, h, w] uint8."""
        pixels = image.reshape(len(image), -1)
        self._pixels += pixels.shape[1]
        for i in range(0, pixels.shape[1], _BLOCK):
            flat = pixels[:, i : i + _BLOCK].astype(np.int64)
            self._sum += flat.sum(axis=1).astype(object)
            self._squares += np.einsum("cp,cp->c", flat, flat).astype(object)

    def result(self, *, colour: bool) -> tuple[np.ndarray, np.ndarray]:
        """The mean and standard deviation of values in [-1, 1], each [3] or, without colour, [1]."""
        mean = (self._sum / self._pixels).astype(np.float64)
        variance = (self._squares / self._pixels).astype(np.float64) - mean**2
        chosen = slice(None) if colour else slice(1)
        return mean[chosen] / 127.5 - 1, np.sqrt(np.maximum(variance[chosen], 0)) / 127.5


class _Sheet:
    """Up to a hundred images: a row for each of ten classes or, without classes, evenly spaced over the set."""

    def __init__(self, labels: np.ndarray | None, count: int) -> None:
        if labels is None or labels.max() == 0:
            rows = min(_SHEET_ROWS, -(-count // _SHEET_COLUMNS))
            chosen = np.unique(np.linspace(0, count - 1, rows * _SHEET_COLUMNS).astype(int))
            self._places = {int(i): place for place, i in enumerate(chosen)}
        else:
            present = np.unique(labels)
            rows = min(_SHEET_ROWS, len(present))
            shown = present[np.linspace(0, len(present) - 1, rows).astype(int)]
            self._places = {
                int(i): row * _SHEET_COLUMNS + column
                for row, label in enumerate(shown)
                for column, i in enumerate(np.flatnonzero(labels == label)[:_SHEET_COLUMNS])
            }
        self._count = rows * _SHEET_COLUMNS
        self._images: dict[int, np.ndarray] = {}

    def add(self, i: int, image: np.ndarray) -> None:
        """Keep the image, [c, h, w] uint8, if it is on the sheet, shrunk to fit into a cell."""
        if i not in self._places:
            return
        longest = max(image.shape[1:])
        if longest > _CELL_LARGEST:
            height, width = (max(1, round(side * _CELL_LARGEST / longest)) for side in image.shape[1:])
            image = from_picture(resample(to_picture(image), height, width))
        self._images[self._places[i]] = image

    def picture(self) -> np.ndarray:
        """The sheet, [h, w, c] uint8: small images enlarged, and white around those that do not fill their cells."""
        channels = max(len(image) for image in self._images.values()) if self._images else 3
        side = max((max(image.shape[1:]) for image in self._images.values()), default=_CELL_SMALLEST)
        cells = np.full((self._count, channels, side, side), 255, dtype=np.uint8)
        for place, image in self._images.items():
            height, width = image.shape[1:]
            top, left = (side - height) // 2, (side - width) // 2
            cells[place, :, top : top + height, left : left + width] = image
        return tile(cells, columns=_SHEET_COLUMNS)
