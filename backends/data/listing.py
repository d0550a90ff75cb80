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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ict_backends.data.decode import IMAGE_SUFFIXES
from ict_backends.data.labels import LABELS_FILE, classes_by_file, classes_by_folder, in_order, is_hidden
from ict_backends.data.source import Content, Source
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
    """

    files: Sequence[str]
    folders: Sequence[str]

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


def is_image(name: str) -> bool:
    """True if the suffix of a file's name is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def listed_source(
    where: Path,
    listing: Listing,
    fetch: Callable[[str], bytes],
    read: Callable[[list[str]], Iterator[tuple[int, Content]]],
) -> Source:
    """Open the images of a listing, with the classes that folders or a `dataset.json` give them.

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
        raise DataError(f"data {where} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    try:
        if listing.labels_file is None:
            labels, classes = classes_by_folder(names, listing.folders)
        else:
            prefix = listing.labels_file.removesuffix(LABELS_FILE)
            labels = classes_by_file(fetch(listing.labels_file), [name.removeprefix(prefix) for name in names])
            classes = ()
    except DataError as error:
        raise DataError(f"data {where}: {error}") from error
    return Source(str(where), names, labels, classes, lambda: read(names))


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
    """Key members by their safe names, hidden ones left out. Raises DataError if two to be read have the same."""
    named: dict[str, _Member] = {}
    for raw, member in members:
        name = safe_name(path, raw)
        if name in named and (is_image(name) or name.endswith(LABELS_FILE)):
            raise DataError(f"data {path} has two members called {name}")
        if name and not is_hidden(name):
            named[name] = member
    return named


def archive_listing(files: list[str], folders: list[str]) -> Listing:
    """List the files, and the folders that the archive names or that its files lie in."""
    above = {"/".join(parts[:i]) for name in files if (parts := name.split("/")) for i in range(1, len(parts))}
    return Listing(files, sorted(above | set(folders)))
