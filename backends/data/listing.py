"""The parts that readers of folders and archives share: names, which of them are images, and their classes."""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ict_backends.data.decode import IMAGE_SUFFIXES
from ict_backends.data.labels import (
    CLASS_SUFFIX,
    LABELS_FILE,
    classes_by_class_files,
    classes_by_file,
    classes_by_folder,
    in_order,
    is_hidden,
    printable,
    sample_key,
)
from ict_backends.data.ours import is_our_picture, is_our_sheet, our_folders
from ict_backends.data.source import Content, Source, source_of
from ict_backends.errors import DataError

_Member = TypeVar("_Member")
# The errors that the standard library raises for a damaged archive.
ARCHIVE_ERRORS = (
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    lzma.LZMAError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Listing:
    """The content of a folder or an archive, without hidden files.

    Attributes:
        files: the names a/b/c of the files.
        folders: the names a/b of the folders.
        notes: what was left out or chosen, as `Source` has it.
    """

    files: Sequence[str]
    folders: Sequence[str]
    notes: tuple[str, ...] = ()

    @cached_property
    def images(self) -> list[str]:
        """The names of the images, in order."""
        return in_order(name for name in self.files if is_image(name))

    @cached_property
    def labels_file(self) -> str | None:
        """The name of a `dataset.json` in a folder that all images lie in or below; None where there is none."""
        files = [n for n in self.files if n.rpartition("/")[2] == LABELS_FILE]
        images = self.images
        return next((n for n in files if all(i.startswith(n.removesuffix(LABELS_FILE)) for i in images)), None)

    @cached_property
    def class_files(self) -> dict[str, str]:
        """The names of the files that hold the class of an image, by their keys (`sample_key`)."""
        return {sample_key(name): name for name in self.files if name.endswith(CLASS_SUFFIX)}


def is_image(name: str) -> bool:
    """True if the suffix of a file's name is that of an image."""
    return _suffix(name) in IMAGE_SUFFIXES


def holds_labels(name: str) -> bool:
    """True for a file's name if it may hold the classes of images."""
    return name.endswith((LABELS_FILE, CLASS_SUFFIX))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


# --- what is taken ---------------------------------------------------------------------------------------------------

# The words for splits in the names of folders and tables, as the Hugging Face hub knows them.
_TRAIN = {"train", "training"}
_OTHER = {"test", "testing", "eval", "evaluation", "val", "valid", "validation", "dev", "extra", "unlabeled"}
# Suffixes of files that lie beside images and that nobody takes for one.
_BESIDE = {".cls", ".csv", ".db", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".py", ".rst", ".sh"}
_BESIDE |= {".toml", ".tsv", ".txt", ".url", ".xml", ".yaml", ".yml"}


def chosen_part(listing: Listing, head: Callable[[str], bytes], ours: Collection[str] = ()) -> Listing:
    """The part of a listing that is read: without what commands of this software wrote, and of splits the training one.

    Args:
        listing: all files and folders.
        head: returns the first `HEAD` bytes of the file of a name.
        ours: the folders that commands made, which the listing may lack already.

    Raises:
        DataError: there are several splits, and none for training.
    """
    return _without_others(_training_split(_without_ours(listing, head, ours)))


def _without_ours(listing: Listing, head: Callable[[str], bytes], ours: Collection[str]) -> Listing:
    def within(name: str) -> bool:
        return any(name == folder or name.startswith(f"{folder}/") for folder in ours)

    files = [name for name in listing.files if not within(name)] if ours else listing.files
    pictures = {n for n in files if _suffix(n) == ".png" and (is_our_sheet(n) or is_our_picture(head(n)))}
    files = [name for name in files if name not in pictures] if pictures else files
    # A folder like `runs`, in which nothing else is, is no class.
    emptied = {parent for folder in ours for parent in _above(folder)} - {p for name in files for p in _above(name)}
    folders = [folder for folder in listing.folders if folder not in emptied and not within(folder)]
    left = sorted([*(f"{folder}/" for folder in ours), *pictures])
    note = (f"leaves out what ict wrote there: {_named(left)}",) if left else ()
    return Listing(files, folders, listing.notes + note)


def _training_split(listing: Listing) -> Listing:
    """The images of the training split, where the folders at the top, or in a single one there, are splits."""
    top = ""
    while True:
        inside = sorted({n[len(top) :].split("/")[0] for n in listing.images if "/" in n[len(top) :]})
        outside = [name for name in listing.images if "/" not in name[len(top) :]]
        if len(inside) != 1 or outside:
            break
        top += f"{inside[0]}/"
    own = listing.labels_file
    if own is not None and not own.startswith(tuple(f"{top}{name}/" for name in inside)):
        return listing  # it says itself which images there are
    split = training_split(inside)
    if split is None:
        return listing
    taken = f"{top}{split}/"
    left = [f"{top}{name}/" for name in inside if name != split] + outside
    return Listing(
        [name for name in listing.files if name.startswith(taken)],
        [name for name in listing.folders if f"{name}/".startswith(taken)],
        (*listing.notes, f"takes {taken}, the split for training, and leaves out {_named(left)}"),
    )


def training_split(names: Collection[str]) -> str | None:
    """The one of two or more names of splits that is for training; None where they are not all names of splits.

    Raises DataError if none is for training.
    """
    if len(names) < 2 or not {name.lower() for name in names} <= _TRAIN | _OTHER:
        return None
    training = [name for name in names if name.lower() in _TRAIN]
    if len(training) != 1:
        raise DataError(f"has the splits {', '.join(sorted(names))}, none or several for training; give one of them")
    return training[0]


def split_word(name: str) -> str:
    """The word for a split in the name a/b/c of a table, such as "test" in data/test-00000-of-00001.parquet; or ""."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in _TRAIN | _OTHER]
    return words[-1] if words else ""


def _without_others(listing: Listing) -> Listing:
    """Say which files are left out though they may be images."""
    others = Counter(_suffix(n) for n in listing.files if not is_image(n) and _suffix(n) not in _BESIDE)
    if not others:
        return listing
    kinds = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in others.most_common(10))
    return Listing(listing.files, listing.folders, (*listing.notes, f"leaves out files that are no images: {kinds}"))


def _above(name: str) -> list[str]:
    """The folders a and a/b that a/b/c lies in."""
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _named(names: Sequence[str], most: int = 3) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


# --- opening ---------------------------------------------------------------------------------------------------------


def listed_source(
    where: Path,
    listing: Listing,
    fetch: Callable[[str], bytes],
    read: Callable[[list[str]], Iterator[tuple[int, Content]]],
) -> Source:
    """Open the images of a listing, with the classes that folders, a `dataset.json` or class files give them.

    Args:
        where: the folder or archive.
        listing: its content.
        fetch: returns the content of the file of a name.
        read: yields (index, content) for each of some names of images, in the order that is fastest.

    Raises:
        DataError: there are no images, or their classes do not fit them.
    """
    names = listing.images
    if not names:
        what = "".join(f"; it {note}" for note in listing.notes)
        raise DataError(f"data {where} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}){what}")
    try:
        if listing.labels_file is not None:
            prefix = listing.labels_file.removesuffix(LABELS_FILE)
            labels = classes_by_file(fetch(listing.labels_file), [name.removeprefix(prefix) for name in names])
        elif any(sample_key(name) in listing.class_files for name in names):
            labels = classes_by_class_files(listing.class_files, fetch, names)
        else:
            labels = classes_by_folder(names, listing.folders)
    except DataError as error:
        raise DataError(f"data {where}: {error}") from error
    return source_of(str(where), [printable(name) for name in names], labels, lambda: read(names), listing.notes)


@contextlib.contextmanager
def archive_damage(path: Path) -> Iterator[None]:
    """A context that turns the errors of a damaged archive into DataError."""
    try:
        yield
    except ARCHIVE_ERRORS as error:
        raise DataError(f"data {path} is damaged or no archive: {str(error) or type(error).__name__}") from error


def safe_name(path: Path, name: str) -> str:
    """Write a member's name as a/b/c. Raises DataError where it leads out of the archive."""
    slashed = name.replace("\\", "/")
    parts = slashed.split("/")
    if slashed.startswith("/") or ".." in parts or re.match("[A-Za-z]:", parts[0]):
        raise DataError(f"data {path} is refused: its member {name} leads out of the archive")
    return "/".join(part for part in parts if part not in ("", "."))


def by_name(path: Path, members: Iterable[tuple[str, _Member]]) -> dict[str, _Member]:
    """Key members by their safe names. Raises DataError if two to be read have the same."""
    named: dict[str, _Member] = {}
    for raw, member in members:
        name = safe_name(path, raw)
        if name in named and (is_image(name) or holds_labels(name)):
            raise DataError(f"data {path} has two members called {name}")
        if name:
            named[name] = member
    return named


def archive_listing(
    path: Path, files: Sequence[str], folders: Sequence[str], head: Callable[[str], bytes], links: Sequence[str] = ()
) -> Listing:
    """List what is read of an archive: of its files, and of the folders that it names or that its files lie in.

    Args:
        path: the archive.
        files, folders: the names of its members, hidden ones included.
        head: returns the first `HEAD` bytes of the file of a name.
        links: the names of its links, which are not followed.
    """
    ours = our_folders(files)
    seen = [name for name in files if not is_hidden(name)]
    above = {parent for name in seen for parent in _above(name)}
    left = [name for name in links if not is_hidden(name)]
    note = (f"leaves out links, which are not followed in archives: {_named(left)}",) if left else ()
    folders = sorted(above | {name for name in folders if not is_hidden(name)})
    try:
        return chosen_part(Listing(seen, folders, note), head, ours)
    except DataError as error:
        raise DataError(f"data {path} {error}") from error
