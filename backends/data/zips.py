"""A check that `zipfile` does not make: without it, a damaged .zip file could silently leave images out."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable

_END, _END_SIZE, _COMMENT = b"PK\5\6", 22, 2**16


def check_directory(archive: zipfile.ZipFile, unread: Iterable[str | zipfile.ZipInfo]) -> None:
    """Raise zipfile.BadZipFile where the list of members does not agree with the rest of the file.

    The file has each name twice; where the two differ, one can be that of an image. zipfile compares them only when a
    member is opened. The number of members stands at the end of the file, in 16 bits.

    Args:
        archive: the open file.
        unread: the members that nothing else opens.
    """
    for member in unread:
        archive.open(member).close()
    file = archive.fp
    assert file is not None  # as long as the archive is open
    file.seek(0, 2)
    file.seek(max(0, file.tell() - _END_SIZE - _COMMENT))
    tail = file.read()
    end = tail[tail.rfind(_END) :]
    count, listed = int.from_bytes(end[10:12], "little"), len(archive.infolist())
    if count != min(listed, 0xFFFF):
        raise zipfile.BadZipFile(f"it lists {listed} members and says that there are {count}")
