"""Files that claim or unpack to far more than they are, read by `ict data`: python bench/bombs.py [--limit MIB].

Each is made in a temporary folder and read by a process of its own. It must be refused in one line, or be read, within
--limit MiB of memory and --seconds; anything else is a fault, and makes the exit code 1.
"""

from __future__ import annotations

import bz2
import gzip
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np

_ZEROS = bytes(2**24)
Make = Callable[[Path], Path]


def packed_zeros(gib: float, pack: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """The streams of a packed file that unpacks to zeros."""
    stream = pack(_ZEROS)
    for _ in range(int(gib * 64)):
        yield stream


def tar_with_a_long_description(folder: Path) -> Path:
    """A header that is described by 3 GiB of text, in a .tar.gz of 3 MB."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 3 * 2**30
    return write(folder / "x.tar.gz", [gzip.compress(info.tobuf()), *packed_zeros(3, gzip.compress)])


def tar_of_zeros(folder: Path) -> Path:
    """An image of 16 GiB in a .tar.bz2 of a few kB."""
    info = tarfile.TarInfo("a.bmp")
    info.size = 2**34
    head = bz2.compress(info.tobuf(tarfile.GNU_FORMAT))
    return write(folder / "x.tar.bz2", [head, *packed_zeros(16, bz2.compress)])


def tar_that_does_not_end(folder: Path) -> Path:
    """Zeros behind the end of an archive, in which gzip finds 16 GiB."""
    return write(folder / "x.tar.gz", packed_zeros(16, gzip.compress))


def zip_of_zeros(folder: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Six images of 256 MiB each."""
    with zipfile.ZipFile(folder / "x.zip", "w", method) as archive:
        for i in range(6):
            with archive.open(f"{i}.bmp", "w") as member:
                for _ in range(16):
                    member.write(_ZEROS)
    return folder / "x.zip"


def zip_that_claims(folder: Path) -> Path:
    """A member that claims to have 5 GB, of which there are none."""
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("a.png", b"x")
        archive.infolist()[0].file_size = 5 * 10**9
    return folder / "x.zip"


def zip_of_one_member_many_times(folder: Path) -> Path:
    """A list of members that all lie at the same place."""
    path = zip_of_zeros(folder)
    content = bytearray(path.read_bytes())
    place = 0
    while (place := content.find(b"PK\1\2", place + 1)) > 0:
        content[place + 42 : place + 46] = bytes(4)
    path.write_bytes(content)
    return path


def large_pictures(folder: Path) -> Path:
    """Two PNGs of 89 million pixels in 1 MB each."""
    side = 9459
    row = zlib.compress(bytes((side * 3 + 1) * side), 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    (folder / "set").mkdir()
    for i in range(2):
        (folder / "set" / f"{i}.png").write_bytes(png)
    return folder / "set"


def picture_that_claims(folder: Path) -> Path:
    """A GIF that claims 65535x65535 pixels."""
    (folder / "set").mkdir()
    most = b"\xff" * 4
    (folder / "set" / "0.gif").write_bytes(b"GIF89a" + most + bytes(3) + b"," + bytes(4) + most + bytes(3))
    return folder / "set"


def cifar_that_claims(folder: Path) -> Path:
    """A pickle of 11 bytes that claims a terabyte."""
    (folder / "set").mkdir()
    for i in range(1, 6):
        claim = b"\x80\x05" + pickle.BYTEARRAY8 + (2**40).to_bytes(8, "little")
        (folder / "set" / f"data_batch_{i}").write_bytes(claim)
    return folder / "set"


def parquet_of_zeros(folder: Path) -> Path:
    """Eight images of 64 MiB each, packed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.array([bytes([i]) * 2**26 for i in range(8)], pa.large_binary())
    whole = pa.table({"image": pa.chunked_array([column])})
    pq.write_table(whole, folder / "x.parquet", compression="zstd", use_dictionary=False)
    return folder / "x.parquet"


def parquet_of_one_value(folder: Path) -> Path:
    """A thousand rows that repeat one value of 128 MiB."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([bytes(2**27)]))
    options = {"compression": "zstd", "dictionary_pagesize_limit": 2**30}
    pq.write_table(pa.table({"image": values}), folder / "x.parquet", store_schema=False, **options)
    return folder / "x.parquet"


def npz_of_zeros(folder: Path) -> Path:
    """Two GiB of black images."""
    count = 2**31 // 3072
    archive = zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED)
    with archive, archive.open("images.npy", "w", force_zip64=True) as member:
        head = {"descr": "|u1", "fortran_order": False, "shape": (count, 32, 32, 3)}
        np.lib.format.write_array_header_1_0(member, head)
        for _ in range(127):
            member.write(_ZEROS)
        member.write(bytes(count * 3072 - 127 * 2**24))
    return folder / "x.npz"


def npy_that_claims(folder: Path) -> Path:
    """A head that claims a terabyte."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": (2**30, 32, 32)})
    (folder / "x.npy").write_bytes(stream.getvalue())
    return folder / "x.npy"


def labels_of_depth(folder: Path) -> Path:
    """A dataset.json of a million brackets."""
    (folder / "set").mkdir()
    (folder / "set" / "0.bmp").write_bytes(b"x")
    (folder / "set" / "dataset.json").write_bytes(b"[" * 10**6)
    return folder / "set"


BOMBS: tuple[Make, ...] = (
    tar_with_a_long_description,
    tar_of_zeros,
    tar_that_does_not_end,
    zip_of_zeros,
    zip_that_claims,
    zip_of_one_member_many_times,
    large_pictures,
    picture_that_claims,
    cifar_that_claims,
    parquet_of_zeros,
    parquet_of_one_value,
    npz_of_zeros,
    npy_that_claims,
    labels_of_depth,
)


def write(path: Path, parts: list[bytes] | Iterator[bytes]) -> Path:
    """Write parts one after the other."""
    with open(path, "wb") as file:
        file.writelines(parts)
    return path


@click.command()
@click.option("--limit", default=3072, show_default=True, help="Of the memory of the reading process, in MiB.")
@click.option("--seconds", default=60, show_default=True, help="Of its time.")
@click.option("--make", "made", type=(str, Path), help="Only make this file in this folder, and print its path.")
@click.option("--only", default="", help="Part of the name of the bombs to try.")
def main(limit: int, seconds: int, made: tuple[str, Path] | None, only: str) -> None:
    """Read each file, and print the memory and time that it took and what was said."""
    if made is not None:
        click.echo(next(make for make in BOMBS if make.__name__ == made[0])(made[1]), nl=False)
        return
    click.echo(f"{'file':30}{'size':>12}{'memory':>12}{'time':>9}  outcome")
    faults = 0
    for make in (make for make in BOMBS if only in make.__name__):
        with tempfile.TemporaryDirectory() as place:
            # By a process of its own: the memory of this one would count for those that it starts.
            command = [sys.executable, __file__, "--make", make.__name__, place]
            path = Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            files = [path] if path.is_file() else [*path.iterdir()]
            size = sum(file.stat().st_size for file in files) / 1024
            memory, time_taken, code, said = _read(path, seconds)
            ok = memory <= limit and time_taken < seconds and code in (0, 1) and "Traceback" not in said
            faults += not ok
            last = said.strip().splitlines()[-1].replace(str(path), path.name) if said.strip() else ""
            outcome = ("" if ok else "FAULT ") + (last if code else "read")
            click.echo(f"{make.__name__:30}{size:9,.0f} kB{memory:8,.0f} MiB{time_taken:7.1f} s  {outcome:.110}")
    sys.exit(faults > 0)


def _read(path: Path, seconds: int) -> tuple[float, float, int, str]:
    """Call `ict data`: (peak memory in MiB, seconds, exit code, what it printed)."""
    begin = time.perf_counter()
    words = [sys.executable, "-m", "ict_cli", "data", str(path)]
    environment = os.environ | {"XDG_CACHE_HOME": str(path.parent / "cache")}
    with open(path.parent / "said", "w+b") as said:
        child = subprocess.Popen(words, stdout=said, stderr=said, cwd=path.parent, env=environment)
        done, status, usage = os.wait4(child.pid, os.WNOHANG)
        while not done:
            if time.perf_counter() - begin > seconds:
                child.kill()
            time.sleep(0.02)
            done, status, usage = os.wait4(child.pid, os.WNOHANG)
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read().decode(errors="replace")
    return usage.ru_maxrss / 1024, time.perf_counter() - begin, child.returncode, text


if __name__ == "__main__":
    main()
