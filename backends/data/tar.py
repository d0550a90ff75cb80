"""Images in .tar files, compressed or not, read in place."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self

from ict_backends.data.labels import is_hidden
from ict_backends.data.limits import MAX_BYTES, check_ratio
from ict_backends.data.listing import (
    Listing,
    archive_damage,
    archive_listing,
    by_name,
    holds_labels,
    is_image,
    listed_source,
    safe_name,
)
from ict_backends.data.ours import HEAD, is_our_picture
from ict_backends.data.source import Content, Source
from ict_backends.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
_PIECE = 2**20
# Archives whose images take no more bytes than this are read once and kept in memory.
_HELD = 2**28
# The most zeros after the end of an archive: programs fill a record up with them.
_PADDING = 2**24
# The most bytes of what stands before a member to describe it, such as a long name.
_DESCRIPTION = 2**20


class _StrictHeader(tarfile.TarInfo):
    """A header that must not be damaged or cut off; tarfile takes such a header for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.HeaderError as error:
            if isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]  # typeshed lacks it
                raise
            raise ValueError(f"it is cut off or damaged at byte {archive.offset} ({error})") from error

    def _proc_member(self, archive: tarfile.TarFile) -> Self:
        described = (*(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE), *tarfile.GNU_TYPES[:2])
        if self.type in described and self.size > _DESCRIPTION:
            raise ValueError(f"what describes a member at byte {archive.offset} claims to have {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]  # typeshed lacks it


# Name, header, and a file to read from; None for what is no file.
Member = tuple[str, tarfile.TarInfo, IO[bytes] | None]


def tar_members(path: Path) -> Iterator[Member]:
    """Yield (name, header, file) for each member of a .tar file, compressed or not.

    The file must be read before the next member is asked for; it is None where the member is no regular file.
    Raises DataError where the archive is damaged, or a name leads out of it.
    """
    mode: Any = f"r:{_packing(path)}"
    with archive_damage(path), tarfile.open(path, mode, tarinfo=_StrictHeader) as archive:
        while (info := archive.next()) is not None:
            check_ratio(path, info.offset_data + (info.size if info.isreg() else 0))
            archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep all headers, a KiB each
            name = safe_name(path, info.name)
            yield name, info, archive.extractfile(info) if info.isreg() else None
        # Only zeros may follow, to the end of the file, where the decompressor checks its checksum.
        end = archive.fileobj.tell()
        while piece := archive.fileobj.read(_PIECE):
            if piece.count(0) < len(piece):
                raise ValueError("it goes on after its end; were archives strung together?")
            if archive.fileobj.tell() - end > _PADDING:
                raise ValueError(f"more than {_PADDING:,} zeros follow its end")


def _packing(path: Path) -> str:
    """The compression of a .tar file by its first bytes, since its name can be wrong: "gz", "bz2", "xz" or ""."""
    with open(path, "rb") as file:
        head = file.read(6)
    known = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz"}
    return next((packing for magic, packing in known.items() if head.startswith(magic)), "")


def list_tar(path: Path) -> tuple[Listing, Mapping[str, bytes] | None]:
    """List a .tar file, and return with it the content of images and labels by name, or None if large.

    The content saves reading and decompressing the file a second time.

    Raises:
        DataError: the file is damaged, or an image is a link, which is not followed.
    """
    entries, content, held = list[tuple[str, tarfile.TarInfo]](), dict[str, bytes](), 0
    pictures = dict[str, bytes]()
    for name, info, file in tar_members(path):
        entries.append((name, info))
        if file is not None and (is_image(name) or holds_labels(name)):
            held += info.size
            if held > _HELD:
                content.clear()
                head = file.read(HEAD)
            else:
                content[name] = read_tar_file(path, name, info, file)
                head = content[name][:HEAD]
            if is_our_picture(head):
                pictures[name] = head
    members = by_name(path, entries)
    files, folders = [n for n, info in members.items() if info.isreg()], [n for n, m in members.items() if m.isdir()]
    others = members.keys() - set(files) - set(folders)
    odd = min((name for name in others if is_image(name) and not is_hidden(name)), default=None)
    if odd is not None:
        raise DataError(f"data {path}: {odd} is a link or a device; only files are read from archives")
    listing = archive_listing(path, files, folders, lambda name: pictures.get(name, b""), sorted(others))
    return listing, content if held <= _HELD else None


def open_tar(path: Path, listing: Listing, content: Mapping[str, bytes] | None) -> Source:
    """Open the images of a .tar file: from `content` or, where that is None, in the order of the file.

    Args:
        path: the file.
        listing, content: as `list_tar` returned them.

    Raises:
        DataError: there are no images, or their classes do not fit them.
    """

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
    """Read the content of the current member of `tar_members`. Raises DataError where it is damaged or too large."""
    if info.size > MAX_BYTES:
        raise DataError(f"data {path}: {name} is larger than the {MAX_BYTES >> 30} GiB that are read of one file")
    with archive_damage(path):
        content = file.read()
        if len(content) < info.size:
            raise ValueError(f"it is cut off within {name}")
        return content
