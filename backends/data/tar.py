"""Archives of images as .tar files, packed or not, read in place."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from ict_backends.data.decode import MAX_BYTES
from ict_backends.data.labels import LABELS_FILE
from ict_backends.data.listing import (
    Listing,
    archive_damage,
    archive_listing,
    by_name,
    is_image,
    listed_source,
    safe_name,
)
from ict_backends.data.source import Content, Source
from ict_backends.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_PIECE = 2**20
# Archives whose images take no more bytes than this are read once and held.
_HELD = 2**28


class _StrictHeader(tarfile.TarInfo):
    """tarfile takes a damaged header, or the end of the file, for the end of the archive; here it is an error."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # typeshed lacks it
                raise
            raise ValueError(f"it is cut off or damaged at byte {archive.offset} ({error})") from error


Member = tuple[str, tarfile.TarInfo, IO[bytes] | None]


def tar_members(path: Path) -> Iterator[Member]:
    """(name, header, file to read from at once; None for what is no file) of all in a .tar, packed or not.

    Raises DataError where it is damaged, or a name leads out of it.
    """
    mode: Any = f"r:{_packing(path)}"
    with archive_damage(path), tarfile.open(path, mode, tarinfo=_StrictHeader) as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined]  # they would be kept, a KiB each
            name = safe_name(path, info.name)
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
    members = by_name(path, entries)
    other = next((n for n, (is_file, is_dir) in members.items() if is_image(n) and not (is_file or is_dir)), None)
    if other is not None:
        raise DataError(f"data {path}: {other} is a link or a device; only files are read from archives")
    files, folders = ([n for n, kind in members.items() if kind[i]] for i in (0, 1))
    listing = archive_listing(files, folders)
    return listing, content if held <= _HELD else None


def open_tar(path: Path, listing: Listing, content: Mapping[str, bytes] | None) -> Source:
    """The images of a .tar file: from the content, or read from front to end, whatever its order is."""

    def fetch(wanted: str) -> bytes:
        if content is not None:
            return content[wanted]
        members = tar_members(path)
        return next(read_tar_file(path, name, info, file) for name, info, file in members if file and name == wanted)

    def read(names: list[str]) -> Iterator[tuple[int, Content]]:
        if content is not None:
            yield from ((i, content[name]) for i, name in enumerate(names))
            return
        index = {name: i for i, name in enumerate(names)}
        for name, info, file in tar_members(path):
            if file is not None and name in index:
                yield index[name], read_tar_file(path, name, info, file)

    return listed_source(path, listing, fetch, read)


def read_tar_file(path: Path, name: str, info: tarfile.TarInfo, file: IO[bytes]) -> bytes:
    """The content of a member, in the turn of `tar_members`. Raises DataError where it is damaged or too large."""
    if info.size > MAX_BYTES:
        raise DataError(f"data {path}: {name} is larger than the {MAX_BYTES >> 30} GiB that are read of one file")
    with archive_damage(path):
        content = file.read()
        if len(content) < info.size:
            raise ValueError(f"it is cut off within {name}")
        return content
