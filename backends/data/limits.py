"""Bounds on what a file may unpack to: what it claims is believed only up to them."""

from __future__ import annotations

import stat
from pathlib import Path

from ict_backends.errors import DataError

# The most bytes of one file, packed or unpacked, and the most pixels of an image: a small file may claim to unpack to
# an enormous one.
MAX_BYTES, MAX_PIXELS = 2**30, 89_478_485
# Anything may unpack to so many bytes, and a file to so many times its own: encoded images hardly shrink, plain ones
# (BMP, PPM) of few colours do.
FREE_BYTES, MAX_RATIO = 2**28, 200


def check_ratio(where: Path, unpacked: int) -> None:
    """Raise DataError where a file's content, in bytes, is far more than a file of its size can hold of images."""
    packed = where.stat().st_size
    if unpacked > max(FREE_BYTES, MAX_RATIO * packed):
        raise DataError(
            f"data {where} is refused: it unpacks to {unpacked / 2**20:,.0f} MiB, more than {MAX_RATIO} times its size"
        )


def read_file(path: Path) -> bytes:
    """Read a file of an image. Raises OSError, also where it is no regular file or larger than MAX_BYTES."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for its writer
        raise OSError("it is no regular file")
    if status.st_size > MAX_BYTES:
        raise OSError(f"it is larger than the {MAX_BYTES >> 30} GiB that are read of one file")
    return path.read_bytes()
