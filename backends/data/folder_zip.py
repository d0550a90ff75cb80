"""Folders of images and .zip archives of such folders, read in place."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ict_backends.data.decode import MAX_BYTES
from ict_backends.data.labels import is_hidden
from ict_backends.data.listing import (
    ARCHIVE_ERRORS,
    Listing,
    archive_damage,
    archive_listing,
    by_name,
    is_image,
    listed_source,
)
from ict_backends.data.source import Content, Source
from ict_backends.data.zips import check_directory
from ict_backends.errors import DataError


def list_folder(folder: Path) -> Listing:
    """List all files and folders below a folder, without hidden ones. Raises OSError.

    Links to files are followed, links to folders are not.
    """

    def fail(error: OSError) -> None:
        raise error  # otherwise a folder without read permission would be left out silently

    files, folders = list[str](), list[str]()
    for place, inside, here in os.walk(folder, onerror=fail):
        relative = Path(place).relative_to(folder).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        inside[:] = [name for name in inside if not is_hidden(name)]
        folders += [prefix + name for name in inside]
        files += [prefix + name for name in here if not is_hidden(name)]
    return Listing(files, folders)


def open_folder(folder: Path, listing: Listing) -> Source:
    """Open the images of a folder. Raises DataError where there are none, or their classes do not fit."""

    def read(names: list[str]) -> Iterator[tuple[int, Content]]:
        for i, name in enumerate(names):
            try:
                yield i, _read_file(folder / name)
            except OSError as error:
                yield i, DataError(f"image {folder / name} cannot be read: {error.strerror or error}")

    return listed_source(folder, listing, lambda name: _read_file(folder / name), read)


def _read_file(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for its writer
        raise OSError("it is no regular file")
    if status.st_size > MAX_BYTES:
        raise OSError(f"it is larger than the {MAX_BYTES >> 30} GiB that are read of one file")
    return path.read_bytes()


def open_zip(path: Path) -> Source:
    """Open the images of a .zip file. Raises DataError where it is damaged or encrypted, or holds no images."""
    with archive_damage(path), zipfile.ZipFile(path) as archive:
        members = by_name(path, ((info.filename, info) for info in archive.infolist()))
        for name, info in members.items():
            if info.flag_bits & 1:
                raise DataError(f"data {path}: {name} is encrypted; unpack it with its password first")
        check_directory(archive, [info for info in archive.infolist() if not is_image(info.filename)])
        files = [name for name, info in members.items() if not info.is_dir()]
    listing = archive_listing(files, sorted(members.keys() - set(files)))

    def fetch(name: str) -> bytes:
        with archive_damage(path), zipfile.ZipFile(path) as archive:
            return _read_member(archive, members[name])

    def read(names: list[str]) -> Iterator[tuple[int, Content]]:
        with archive_damage(path), zipfile.ZipFile(path) as archive:
            for i, name in enumerate(names):
                try:
                    yield i, _read_member(archive, members[name])
                except (*ARCHIVE_ERRORS, DataError) as error:
                    yield i, DataError(f"image {path}/{name} cannot be read: {error}")

    return listed_source(path, listing, fetch, read)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_BYTES:
        raise DataError(f"it unpacks to more than the {MAX_BYTES >> 30} GiB that are read of one file")
    with archive.open(info) as file:
        # No more bytes than the archive says that there are; the second `read` then checks the checksum.
        content = file.read(info.file_size)
        return content + file.read(1)
