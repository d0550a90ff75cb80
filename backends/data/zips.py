"""A check that `zipfile` does not make: without it, a damaged .zip file could silently leave images out."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterable

# The bytes of a member's header, without its name.
_HEADER = 30
# The records at the end of a file, and the most bytes before its end at which the first of them begins.
_END, _END_64, _FARTHEST = b"PK\5\6", b"PK\6\6", 22 + 2**16 + 76


def check_directory(archive: zipfile.ZipFile, unread: Iterable[str | zipfile.ZipInfo]) -> None:
    """Raise zipfile.BadZipFile where the list of members does not agree with the rest of the file.

    The file has each name twice; where the two differ, one can be that of an image. zipfile compares them only when a
    member is opened. Members may not share bytes, with which a small file could unpack to any size. The number of
    members stands at the end of the file: in 64 bits where the file has room for them, else in 16, of which some
    programs write the lower ones of a larger number.

    Args:
        archive: the open file.
        unread: the members that nothing else opens.
    """
    for member in unread:
        archive.open(member).close()
    ordered = sorted(archive.infolist(), key=lambda info: info.header_offset)
    for one, other in itertools.pairwise(ordered):
        if one.header_offset + _HEADER + one.compress_size > other.header_offset:
            raise zipfile.BadZipFile(f"its members {one.filename} and {other.filename} share bytes")
    file = archive.fp
    assert file is not None  # as long as the archive is open
    file.seek(0, 2)
    file.seek(max(0, file.tell() - _FARTHEST))
    tail = file.read()
    end = tail[tail.rfind(_END) :]
    count, listed = int.from_bytes(end[10:12], "little"), len(archive.infolist())
    wide = tail[tail.rfind(_END_64) :] if count == 0xFFFF and _END_64 in tail else b""
    if wide:
        count = int.from_bytes(wide[32:40], "little")
    if count != (listed if wide else listed % 2**16):
        raise zipfile.BadZipFile(f"it lists {listed} members and says that there are {count}")
