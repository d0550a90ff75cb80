"""Folders of images, and .zip and .tar archives of the same, read in place.

All three are reduced to names a/b/c of images and folders, so that a folder and its archives give the same data set.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from ict_backends.data.decode import IMAGE_SUFFIXES, MAX_BYTES
from ict_backends.data.labels import LABELS_FILE, classes_by_file, classes_by_folder, in_order, is_hidden
from ict_backends.data.source import Content, Source
from ict_backends.data.zips import check_directory
from ict_backends.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
# What the standard library raises of a damaged archive.
_DAMAGED = (
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
_PIECE = 2**20
# Archives whose images take no more bytes than this are read once and held.
_HELD = 2**28


@dataclass(frozen=True)
class Listing:
    """What a folder or an archive holds, hidden files left out.

    Attributes:
        files: names of files.
        folders: names of folders.
    """

    files: Sequence[str]
    folders: Sequence[str]

    @cached_property
    def images(self) -> list[str]:
        """The names of the images, in order."""
        return in_order(name for name in self.files if is_image(name))

    @cached_property
    def labels_file(self) -> str | None:
        """The name of a `dataset.json` beside all images, or in a folder that holds them all."""
        found = [n for n in self.files if n.rpartition("/")[2] == LABELS_FILE]
        images = self.images
        return next((n for n in found if all(i.startswith(n.removesuffix(LABELS_FILE)) for i in images)), None)


def is_image(name: str) -> bool:
    """Whether a file is one of the set, by its name."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _source(
    where: Path, listing: Listing, fetch: Callable[[str], bytes], read: Callable[[list[str]], Iterator]
) -> Source:
    """The images of a listing.

    Args:
        fetch: gives the content of one file.
        read: gives (index, content) of images by name.
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


# --- folders ---------------------------------------------------------------------------------------------------------


def list_folder(folder: Path) -> Listing:
    """All below a folder. Links to files are followed, those to folders are not. Raises OSError."""

    def fail(error: OSError) -> None:
        raise error  # a folder that may not be read would otherwise be left out without a word

    files, folders = list[str](), list[str]()
    for place, inside, here in os.walk(folder, onerror=fail):
        relative = Path(place).relative_to(folder).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        inside[:] = [name for name in inside if not is_hidden(name)]
        folders += [prefix + name for name in inside]
        files += [prefix + name for name in here if not is_hidden(name)]
    return Listing(files, folders)


def open_folder(folder: Path, listing: Listing) -> Source:
    """The images of a folder."""

    def read(names: list[str]) -> Iterator[tuple[int, Content]]:
        for i, name in enumerate(names):
            try:
                yield i, _read_file(folder / name)
            except OSError as error:
                yield i, DataError(f"image {folder / name} cannot be read: {error.strerror or error}")

    return _source(folder, listing, lambda name: _read_file(folder / name), read)


def _read_file(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
        raise OSError("it is no regular file")
    if status.st_size > MAX_BYTES:
        raise OSError(f"it is larger than the {MAX_BYTES >> 30} GiB that are read of one file")
    return path.read_bytes()


# --- zip -------------------------------------------------------------------------------------------------------------


def open_zip(path: Path) -> Source:
    """The images of a .zip file."""
    with _damage(path), zipfile.ZipFile(path) as archive:
        members = _by_name(path, ((info.filename, info) for info in archive.infolist()))
        for name, info in members.items():
            if info.flag_bits & 1:
                raise DataError(f"data {path}: {name} is encrypted; unpack it with its password first")
        check_directory(archive, [info for info in archive.infolist() if not is_image(info.filename)])
        files = [name for name, info in members.items() if not info.is_dir()]
    listing = _listing(files, sorted(members.keys() - set(files)))

    def fetch(name: str) -> bytes:
        with _damage(path), zipfile.ZipFile(path) as archive:
            return _read_member(archive, members[name])

    def read(names: list[str]) -> Iterator[tuple[int, Content]]:
        with _damage(path), zipfile.ZipFile(path) as archive:
            for i, name in enumerate(names):
                try:
                    yield i, _read_member(archive, members[name])
                except (*_DAMAGED, DataError) as error:
                    yield i, DataError(f"image {path}/{name} cannot be read: {error}")

    return _source(path, listing, fetch, read)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_BYTES:
        raise DataError(f"it unpacks to more than the {MAX_BYTES >> 30} GiB that are read of one file")
    with archive.open(info) as file:
        # No more than the archive says that there is; `read()` then checks the checksum.
        content = file.read(info.file_size)
        return content + file.read(1)


# --- tar -------------------------------------------------------------------------------------------------------------


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a damaged header, or the end of the file, for the end of the archive; here it is an error."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise ValueError(f"it is cut off or damaged at byte {archive.offset} ({error})") from error


Member = tuple[str, tarfile.TarInfo, IO[bytes] | None]


def tar_members(path: Path) -> Iterator[Member]:
    """(name, header, file to read from at once; None for what is no file) of all in a .tar, packed or not.

    Raises DataError where it is damaged, or a name leads out of it.
    """
    with _damage(path), tarfile.open(path, f"r:{_packing(path)}", tarinfo=_StrictHeader) as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # they would be kept, a KiB each
            name = _safe_name(path, info.name)
            yield name, info, archive.extractfile(info) if info.isreg() else None
        # Zeros to the end of the file; what packs it checks its checksum there.
        while piece := archive.fileobj.read(_PIECE):
            if any(piece):
                raise ValueError("it goes on after its end; were archives strung together?")


def _packing(path: Path) -> str:
    """How a .tar is packed, by its first bytes; names lie at times."""
    with open(path, "rb") as file:
        head = file.read(6)
    known = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
    return next((packing for magic, packing in known.items() if head.startswith(magic)), "")


def list_tar(path: Path) -> tuple[Listing, Mapping[str, bytes] | None]:
    """All in a .tar file, and the content of its images and labels; None for that where it is large.

    The content saves reading, and unpacking, a second time.

    Raises:
        DataError: it is damaged, or an image is a link, which is not followed.
    """
    entries, content, held = list[tuple[str, tuple[bool, bool]]](), dict[str, bytes](), 0
    for name, info, file in tar_members(path):
        entries.append((name, (info.isreg(), info.isdir())))
        if file is not None and (is_image(name) or name.endswith(LABELS_FILE)):
            held += info.size
            if held <= _HELD:
                content[name] = read_tar_file(path, name, info, file)
            else:
                content.clear()
    members = _by_name(path, entries)
    other = next((n for n, (is_file, is_dir) in members.items() if is_image(n) and not (is_file or is_dir)), None)
    if other is not None:
        raise DataError(f"data {path}: {other} is a link or a device; only files are read from archives")
    listing = _listing([n for n, kind in members.items() if kind[0]], [n for n, kind in members.items() if kind[1]])
    return listing, content if held <= _HELD else None


def open_tar(path: Path, listing: Listing, content: Mapping[str, bytes] | None) -> Source:
    """The images of a .tar file: from the content, or read from front to end, whatever its order is."""

    def fetch(wanted: str) -> bytes:
        if content is not None:
            return content[wanted]
        return next(read_tar_file(path, name, info, file) for name, info, file in tar_members(path) if name == wanted)

    def read(names: list[str]) -> Iterator[tuple[int, Content]]:
        if content is not None:
            yield from ((i, content[name]) for i, name in enumerate(names))
            return
        index = {name: i for i, name in enumerate(names)}
        for name, info, file in tar_members(path):
            if name in index:
                yield index[name], read_tar_file(path, name, info, file)

    return _source(path, listing, fetch, read)


def read_tar_file(path: Path, name: str, info: tarfile.TarInfo, file: IO[bytes]) -> bytes:
    """The content of a member, in the turn of `tar_members`. Raises DataError where it is damaged or too large."""
    if info.size > MAX_BYTES:
        raise DataError(f"data {path}: {name} is larger than the {MAX_BYTES >> 30} GiB that are read of one file")
    with _damage(path):
        content = file.read()
        if len(content) < info.size:
            raise ValueError(f"it is cut off within {name}")
        return content


# --- names -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGED as error:
        raise DataError(f"data {path} is damaged or no archive: {str(error) or type(error).__name__}") from error


def _safe_name(path: Path, name: str) -> str:
    """A member's name as a/b/c. Raises DataError where it leads out of the archive."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or re.match("[A-Za-z]:", parts[0]):
        raise DataError(f"data {path} is refused: its member {name} leads out of the archive")
    return "/".join(part for part in parts if part not in ("", "."))


def _by_name(path: Path, members: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Members by safe name, hidden ones left out. Raises DataError where two that are read have the same."""
    found: dict[str, Any] = {}
    for raw, member in members:
        name = _safe_name(path, raw)
        if name in found and (is_image(name) or name.endswith(LABELS_FILE)):
            raise DataError(f"data {path} has two members called {name}")
        if name and not is_hidden(name):
            found[name] = member
    return found


def _listing(files: list[str], folders: list[str]) -> Listing:
    """The files, and the folders that the archive names or that its files lie in."""
    above = {"/".join(parts[:i]) for name in files if (parts := name.split("/")) for i in range(1, len(parts))}
    return Listing(files, sorted(above | set(folders)))
