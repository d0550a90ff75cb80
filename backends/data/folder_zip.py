"""Folders of images and .zip archives of such folders, read in place."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from ict_backends.data.labels import is_hidden
from ict_backends.data.limits import MAX_BYTES, check_ratio, read_file
from ict_backends.data.listing import (
    ARCHIVE_ERRORS,
    Listing,
    archive_damage,
    archive_listing,
    by_name,
    chosen_part,
    holds_labels,
    is_image,
    listed_source,
)
from ict_backends.data.ours import HEAD, is_our_folder
from ict_backends.data.source import Content, Source
from ict_backends.data.zips import check_directory
from ict_backends.errors import DataError


def list_folder(folder: Path) -> Listing:
    """List what is read of a folder and of the folders below, links followed.

    Raises:
        DataError: a folder is reached twice through links, or there is no training split among several.
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error  # otherwise a folder without read permission would be left out silently

    files, folders, ours = list[str](), list[str](), list[str]()
    reached: dict[tuple[int, int], str] = {}
    for place, inside, here in os.walk(folder, onerror=fail, followlinks=True):
        relative = Path(place).relative_to(folder).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        status = os.stat(place)
        first = reached.setdefault((status.st_dev, status.st_ino), prefix or "./")
        if first != (prefix or "./"):
            raise DataError(
                f"data {folder}: {prefix} is {first} once more, by a link, so that images would be there twice; "
                "remove one of the two"
            )
        if prefix and is_our_folder([*inside, *here]):
            ours.append(relative)
            inside.clear()
            continue
        inside[:] = [name for name in inside if not is_hidden(name)]
        folders += [prefix + name for name in inside]
        files += [prefix + name for name in here if not is_hidden(name)]

    def head(name: str) -> bytes:
        path = folder / name
        try:
            if not path.is_file():  # opening a pipe would wait for its writer
                return b""
            with open(path, "rb") as file:
                return file.read(HEAD)
        except OSError:  # the reader of the image reports it
            return b""

    try:
        return chosen_part(Listing(files, folders), head, ours)
    except DataError as error:
        raise DataError(f"data {folder} {error}") from error


def open_folder(folder: Path, listing: Listing) -> Source:
    """Open the images of a folder. Raises DataError where there are none, or their classes do not fit."""

    def read(names: list[str]) -> Iterator[tuple[int, Content]]:
        for i, name in enumerate(names):
            try:
                yield i, read_file(folder / name)
            except OSError as error:
                yield i, DataError(f"image {folder / name} cannot be read: {error.strerror or error}")

    return listed_source(folder, listing, lambda name: read_file(folder / name), read)


def open_zip(path: Path) -> Source:
    """Open the images of a .zip file. Raises DataError where it is damaged or encrypted, or holds no images."""
    with archive_damage(path), zipfile.ZipFile(path) as archive:
        members = by_name(path, ((_member_name(info), info) for info in archive.infolist()))
        for name, info in members.items():
            if info.flag_bits & 1 and not is_hidden(name):
                raise DataError(f"data {path}: {name} is encrypted; unpack it with its password first")
        check_directory(archive, [info for info in archive.infolist() if not is_image(info.filename)])
        check_ratio(path, sum(info.file_size for name, info in members.items() if is_image(name) or holds_labels(name)))
        files = [name for name, info in members.items() if not info.is_dir()]
        listing = archive_listing(
            path, files, sorted(members.keys() - set(files)), lambda name: _read_head(archive, members[name])
        )

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


def _member_name(info: zipfile.ZipInfo) -> str:
    """The name of a member; many programs write UTF-8 without the flag that says so."""
    if info.flag_bits & 0x800 or info.filename.isascii():
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _read_head(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(info) as file:
            return file.read(HEAD)
    except ARCHIVE_ERRORS:  # the reader of the image reports it
        return b""


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_BYTES:
        raise DataError(f"it unpacks to more than the {MAX_BYTES >> 30} GiB that are read of one file")
    with archive.open(info) as file:
        # No more bytes than the archive says that there are; the second `read` then checks the checksum.
        content = file.read(info.file_size)
        return content + file.read(1)
