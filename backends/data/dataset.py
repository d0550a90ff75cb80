"""Data sets of every format as arrays, uint8 NCHW, in memory or mapped from the cache (docs/data.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ict_backends.console import progress_bar, warn
from ict_backends.data import cifar, folder_zip, huggingface, imagenet, listing, npz, parquet, tar
from ict_backends.data.cache import Room, content_key, read_cached
from ict_backends.data.decode import Preparation, describe_shape, prepare, quiet
from ict_backends.data.decode_pool import decoded
from ict_backends.data.labels import Labels
from ict_backends.data.source import Located, Source
from ict_backends.errors import DataError, UsageError
from ict_core.config import DataConfig

if TYPE_CHECKING:
    from tqdm import tqdm

# A set with more images, or more bytes of files, than these is decoded only once, into the cache.
CACHED_IMAGES, CACHED_BYTES = 2000, 2**26
_KINDS = (
    "a folder of images, a .zip or .tar (.gz, .xz, .bz2) of one, an .npz, .npy or .parquet file, "
    'hf:NAME of a Hugging Face dataset, or "digits"'
)


class Dataset(NamedTuple):
    """A set of images.

    Attributes:
        images: [n, c, h, w] uint8; for a large set, this may be a read-only map of a file.
        labels: [n] int64 >= 0, or None.
        classes: the names of the labels, by number; empty where they have none.
    """

    images: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """[channels, height, width]."""
        return self.images.shape[1:]

    @property
    def num_classes(self) -> int:
        """The number of classes: of names or, without them, the largest label + 1; 0 where there are no labels."""
        if self.labels is None:
            return 0
        return max(len(self.classes), int(self.labels.max(initial=0)) + 1)


# Turns an image, [c, h, w] uint8, into another one.
Fit = Callable[[np.ndarray], np.ndarray]


def load_data(
    source: str,
    *,
    size: int | tuple[int, ...] = 0,
    crop: str = "none",
    unreadable: list[str] | None = None,
    fit: Fit | None = None,
) -> Dataset:
    """Read a data set.

    Args:
        source: "digits" for those of scikit-learn; "hf:NAME" or "hf:NAME:SPLIT"; or a path to a format of docs/data.md.
        size: (height, width) in pixels to resample all images to, or a number for squares; 0 to keep theirs.
        crop: "center" to take first the middle of each that has the proportions of `size`, or "none".
        unreadable: a list that the names of unreadable images are added to, which are then left out; without it, an
            unreadable image is an error.
        fit: turns each image, [c, h, w] uint8, into one of the wanted shape; without it, all must have the same size.

    Raises:
        DataError: the data are missing, empty, unreadable, of mixed sizes or of a wrong type.
        UsageError: the format needs a library that is not installed.
    """
    preparation = Preparation(size, crop)
    try:
        data = find_data(source)
        if isinstance(data, Dataset):
            return _prepare_all(data, preparation, fit)
        loaded, notes = _load(source, data, preparation, fit, unreadable)
    except OSError as error:
        raise _unreadable(source, error) from error
    except MemoryError as error:
        raise DataError(f"data {source} is larger than the memory") from error
    for note in notes:
        warn(f"data {source}: {note}")
    return loaded


def load_data_of(data: DataConfig) -> Dataset:
    """Read the data set of a configuration. Raises the errors of `load_data`."""
    return load_data(data.source, size=data.size, crop=data.crop)


def find_data(source: str) -> Dataset | Located:
    """Find a data set without decoding images: a `Dataset` where it is arrays, else the location of its files.

    Args:
        source: as for `load_data`.

    Raises:
        DataError, UsageError: as for `load_data`.
    """
    if source == "digits":
        return _load_digits()
    if source.startswith(huggingface.HUB):
        return huggingface.locate_hub(source)
    path, name = Path(source), source.lower()
    try:
        if not path.exists():
            raise DataError(f"data {source} does not exist; give {_KINDS}")
        if path.is_dir():
            return _find_in_folder(path)
        if not path.is_file():
            raise DataError(f"data {source} is neither a file nor a folder")
        return _find_in_file(path, name)
    except OSError as error:
        raise _unreadable(source, error) from error


# The word for each kind of file in the key of the cache (`content_key`). Users' caches hold sets under these words, so
# the words stay as they are, whatever the functions are called.
_ARRAY, _ZIP, _TAR, _PARQUET = "open_array", "open_zip", "_open_tar", "_open_parquet"


def _find_in_file(path: Path, name: str) -> Dataset | Located:
    def located(word: str, open_it: Callable[[Path], Source]) -> Located:
        return Located([("", path)], word, lambda: open_it(path))

    if name.endswith((".npz", ".npy")) and npz.is_too_large(path):
        return located(_ARRAY, npz.open_array)
    if name.endswith(".npz"):
        read = imagenet.read_imagenet_batch if imagenet.is_imagenet_batch(path) else npz.read_npz
        return _of_arrays(path, *read(path))
    if name.endswith(".npy"):
        return _of_arrays(path, *npz.read_npy(path))
    if imagenet.is_imagenet_batch(path):
        return _of_arrays(path, *imagenet.read_imagenet_batch(path))
    if name.endswith(".zip"):
        if batches := imagenet.batches_in_zip(path):
            return located("imagenet", lambda file: imagenet.open_imagenet(file, batches))
        return located(_ZIP, folder_zip.open_zip)
    if name.endswith(tar.TAR_SUFFIXES):
        return located(_TAR, _open_tar)
    if name.endswith(".parquet"):
        return located(_PARQUET, lambda file: parquet.open_parquet(file, [file]))
    raise DataError(f"data {path} is of an unknown kind; give {_KINDS}")


def _of_arrays(path: Path, images: np.ndarray, labels: Labels) -> Dataset:
    if labels.note:
        warn(f"data {path}: {labels.note}")
    return Dataset(images, labels.numbers, labels.classes)


def _open_tar(path: Path) -> Source:
    listing, content = tar.list_tar(path)
    batches = cifar.find_cifar(listing.files)
    return tar.open_tar(path, listing, content) if batches is None else cifar.open_cifar_tar(path, batches)


def _find_in_folder(folder: Path) -> Located:
    found = folder_zip.list_folder(folder)
    names = sorted(found.files)

    def located(files: Sequence[str], note: str, open_it: Callable[[], Source]) -> Located:
        return Located([(name, folder / name) for name in files], note, open_it)

    if huggingface.is_saved_dataset(folder):
        return located(names, "saved", lambda: huggingface.open_saved(folder))
    if files := cifar.find_cifar(names):
        return located(names, "cifar", lambda: cifar.open_cifar_folder(folder, files))
    if batches := imagenet.batches_in_folder(folder, names):
        used = [n for n in names if n.endswith((".zip", ".npz")) or "batch" in n]
        return located(used, "imagenet", lambda: imagenet.open_imagenet(folder, batches))
    tables, notes = _tables(folder, names)
    if tables and found.images and not parquet.holds_images(folder / tables[0]):
        tables, found = [], replace(found, notes=(*found.notes, f"leaves out {tables[0]}, no table of images"))
    if tables:
        beside = len(found.images)
        more = [f"takes the Parquet files and leaves out {beside:,} image files beside them"] if beside else []
        paths = [folder / name for name in tables]
        return located(tables, "parquet", lambda: parquet.open_parquet(folder, paths, [*notes, *more]))
    used = [*found.images, *filter(None, [found.labels_file])]
    note = f"folder {sorted(found.folders)}"  # empty folders count, since a class without images is an error
    return located(used, note, lambda: folder_zip.open_folder(folder, found))


def _tables(folder: Path, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The Parquet files of a folder that are read, and what is said about the others: those of other splits.

    Raises DataError where there are several splits and none is for training, or several configurations.
    """
    tables = [name for name in names if name.lower().endswith(".parquet")]
    splits = {listing.split_word(name) for name in tables} - {""}
    try:
        chosen = listing.training_split(splits)
    except DataError as error:
        raise DataError(f"data {folder} {error}") from error
    taken = tables if chosen is None else [name for name in tables if listing.split_word(name) == chosen]
    if configurations := huggingface.configurations(folder):
        raise DataError(
            f"data {folder} has several configurations: {', '.join(configurations)}; give the folder of one, or "
            f"hf:{folder}:{configurations[0]}:train"
        )
    left = [name for name in tables if name not in taken]
    note = [f"takes the split {chosen} and leaves out {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}"]
    return taken, note if left else []


def _unreadable(source: str, error: OSError) -> DataError:
    place = f"{error.filename}: " if error.filename and str(error.filename) != source else ""
    return DataError(f"data {source} cannot be read: {place}{error.strerror or error}")


def _load_digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError("data digits needs scikit-learn: pip install 'ict[digits]'") from error
    digits = load_digits()
    # Sixteen grey levels and white; 255/16 is not whole, so the values are off by up to 1/510 of the range.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Dataset(images[:, None], digits.target.astype(np.int64))


def _prepare_all(dataset: Dataset, preparation: Preparation, fit: Fit | None) -> Dataset:
    """Prepare the images of arrays, which all have the same shape."""
    size, crop = preparation
    if fit is None and preparation == Preparation():
        prepare(dataset.images[0], "number 0")
        return dataset
    images = [prepare(image, f"number {i}", size=size, crop=crop) for i, image in enumerate(dataset.images)]
    return dataset._replace(images=np.stack(images if fit is None else [fit(image) for image in images]))


def _load(
    source: str, located: Located, preparation: Preparation, fit: Fit | None, unreadable: list[str] | None
) -> tuple[Dataset, tuple[str, ...]]:
    """Take encoded images from the cache, or decode them and, where they are many or large, put them there.

    Returns the set and notes, as `Source` has them.
    """
    # A custom `fit` cannot be part of a cache key, so its result is not cached.
    note = f"{located.note} {preparation.size} {preparation.crop}" if fit is None else None
    key = None if note is None else content_key(located.files, note)
    known = read_cached(key) if key else None
    if known is not None:
        labelled, notes = known
        return Dataset(*labelled), notes
    opened = located.open()
    size = sum(path.stat().st_size for _, path in located.files if path.is_file())
    large = len(opened.names) > CACHED_IMAGES or size > CACHED_BYTES
    with Room(key if large else None) as room:
        return _collect(source, opened, preparation, fit, room, unreadable), opened.notes


def _collect(
    source: str,
    opened: Source,
    preparation: Preparation,
    fit: Fit | None,
    room: Room,
    unreadable: list[str] | None,
) -> Dataset:
    """Decode all images into one array, each in its place. Where some are grey and some are RGB, all become RGB."""
    count = len(opened.names)
    images, first, there, seen = np.empty((0, 0, 0, 0), dtype=np.uint8), "", np.zeros(count, dtype=bool), 0
    with quiet(), reading_bar(count) as progress:
        for i, image in decoded(opened, preparation):
            progress.update()
            seen += 1
            if isinstance(image, DataError):
                if unreadable is None:
                    raise image
                unreadable.append(opened.names[i])
                continue
            if fit is not None:
                image = fit(image)
            if not first:
                images, first = room.allocate((count, *image.shape)), opened.names[i]
            if image.shape[1:] != images.shape[2:]:
                raise _mixed(source, (first, images.shape[1:]), (opened.names[i], image.shape))
            if len(image) > images.shape[1]:
                images = _repeat_grey(images, room)
            images[i], there[i] = image, True
    if seen != count:
        raise DataError(f"data {source} is damaged: it lists {count} images and gives another number of them")
    if not first:
        raise DataError(f"data {source} holds no image that can be read; {count} cannot")
    if there.all():
        return Dataset(*room.keep(images, opened.labels, opened.classes, opened.notes))
    labels = None if opened.labels is None else opened.labels[there]
    return Dataset(images[there], labels, opened.classes)


def reading_bar(count: int) -> tqdm[Any]:
    """A progress bar over `count` images, which appears only where reading them takes more than a second."""
    return progress_bar(count, desc="reading", unit="image", leave=False, delay=1)


def _repeat_grey(images: np.ndarray, room: Room) -> np.ndarray:
    wide = room.allocate((len(images), 3, *images.shape[2:]))
    wide[:] = images
    return wide


def _mixed(source: str, one: tuple[str, Sequence[int]], other: tuple[str, Sequence[int]]) -> DataError:
    (a, shape_a), (b, shape_b) = one, other
    return DataError(
        f"data {source}: all images must be alike, but {a} is {describe_shape(shape_a)} and {b} is "
        f"{describe_shape(shape_b)}; --size N resamples all (with --crop center where their proportions differ)"
    )
