"""Large sets are decoded once: the cache gives the same, notices changes and damage, and can be done without."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_samples import IMAGES, LABELS, NAMES, encoded, png_files, write_folder, write_tar, write_zip

from ict_backends.data import cache as cache_module
from ict_backends.data import dataset, decode_pool, npz, source
from ict_backends.data.cache import content_key
from ict_backends.data.dataset import Dataset, find_data, load_data
from ict_backends.data.source import Located
from ict_backends.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's folder, where sets of any size go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(dataset, "CACHED_IMAGES", 0)
    return tmp_path / "home" / "ict"


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by a name with each image that is decoded."""
    seen: list[str] = []
    decode = source.decode
    monkeypatch.setattr(source, "decode", lambda content, name: (seen.append(name), decode(content, name))[1])
    return seen


def is_whole(found: Dataset) -> bool:
    same = np.array_equal(found.images, IMAGES) and np.array_equal(found.labels, LABELS)
    return same and found.classes == ("a", "b")


def test_the_second_time_nothing_is_decoded(tmp_path: Path, cache: Path, decodings: list[str]) -> None:
    for path in (
        write_folder(tmp_path / "folder", png_files()),
        write_zip(tmp_path / "x.zip", png_files()),
        write_tar(tmp_path / "x.tar.gz", png_files(), "gz"),
    ):
        assert is_whole(load_data(str(path)))
        assert len(decodings) == 6
        found = load_data(str(path))
        assert is_whole(found)
        assert isinstance(found.images, np.memmap)
        assert not found.images.flags.writeable
        assert len(decodings) == 6
        decodings.clear()
    assert len(list(cache.iterdir())) == 6


def test_small_sets_are_not_kept(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CACHED_IMAGES", 6)
    path = str(write_zip(tmp_path / "x.zip", png_files()))
    assert not isinstance(load_data(path).images, np.memmap)
    assert not cache.exists()
    monkeypatch.setattr(dataset, "CACHED_BYTES", 100)
    assert isinstance(load_data(path).images, np.memmap)


def test_the_key_is_the_content_and_what_is_made_of_it(tmp_path: Path, cache: Path, decodings: list[str]) -> None:
    """Not the place or the time; but the names, since they are the order and the classes."""
    folder = write_folder(tmp_path / "folder", png_files())
    load_data(str(folder))
    os.utime(folder / "a" / "0.png", (1, 1))
    folder.rename(tmp_path / "moved")
    assert is_whole(load_data(str(tmp_path / "moved")))
    assert len(decodings) == 6
    image = tmp_path / "moved" / "a" / "0.png"
    times, content = image.stat(), encoded(IMAGES[0] ^ 1)
    image.write_bytes(content)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a tool that keeps them leaves it
    assert np.array_equal(load_data(str(tmp_path / "moved")).images[0], IMAGES[0] ^ 1)
    image.rename(image.with_name("9.png"))
    assert np.array_equal(load_data(str(tmp_path / "moved")).images[2], IMAGES[0] ^ 1)
    assert load_data(str(tmp_path / "moved"), size=4).shape == (3, 4, 4)
    assert load_data(str(tmp_path / "moved"), crop="center").shape == (3, 8, 8)
    assert len(decodings) == 30
    (tmp_path / "moved" / "c").mkdir()
    with pytest.raises(DataError, match="class folder c"):
        load_data(str(tmp_path / "moved"))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("set.zip", "6de0f9264c3fcc9fccafe64c7e0d5430"),
        ("set.tar.gz", "0cabd37f23676e41d916fa7801c5f4a5"),
        ("set.parquet", "a641b52872b2e06f43ca2dab0344244e"),
        ("set.npy", "ae44e3faa5552935e1a6ee241241eb93"),
    ],
)
def test_the_keys_of_before_stay_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str) -> None:
    """A user's cache must outlive every change of a name in the code."""
    (tmp_path / name).write_bytes(b"abc")
    monkeypatch.setattr(npz, "is_too_large", lambda path: True)
    found = find_data(str(tmp_path / name))
    assert isinstance(found, Located)
    assert content_key(found.files, f"{found.note} 32 center") == key


@pytest.mark.parametrize("how", ["cut", "changed", "no labels", "labels cut", "empty", "other sums"])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, cache: Path, decodings: list[str], how: str) -> None:
    path = str(write_zip(tmp_path / "x.zip", png_files()))
    load_data(path)
    (images,), (labels,) = cache.glob("*.npy"), cache.glob("*.npz")
    content = images.read_bytes()
    match how:
        case "cut":
            images.write_bytes(content[:-10])
        case "changed":
            images.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "no labels":
            labels.unlink()
        case "labels cut":
            labels.write_bytes(labels.read_bytes()[:100])
        case "empty":
            images.write_bytes(b"")
        case "other sums":
            np.savez(labels, nothing=np.zeros(1))
    decodings.clear()
    assert is_whole(load_data(path))
    assert len(decodings) == 6
    assert is_whole(load_data(path))
    assert len(decodings) == 6
    assert images.read_bytes() == content


def test_grey_images_before_the_first_rgb_one_are_kept(tmp_path: Path, cache: Path) -> None:
    from ict_backends.images import encode_png

    files = {f"{name}.png": encode_png(image[:1].transpose(1, 2, 0)) for name, image in zip(NAMES, IMAGES, strict=True)}
    files["b/5.png"] = encoded(IMAGES[5])
    path = str(write_zip(tmp_path / "x.zip", files))
    for _ in range(2):
        found = load_data(path).images
        assert np.array_equal(found[:5], IMAGES[:5, :1].repeat(3, axis=1))
        assert np.array_equal(found[5], IMAGES[5])
    assert len(list(cache.iterdir())) == 2


def test_what_is_incomplete_is_not_kept(tmp_path: Path, cache: Path) -> None:
    path = str(write_zip(tmp_path / "x.zip", png_files() | {"a/1.png": b"no image"}))
    with pytest.raises(DataError, match=r"1\.png"):
        load_data(path)
    assert len(load_data(path, unreadable=[]).images) == 5
    assert list(cache.iterdir()) == []
    whole = str(write_zip(tmp_path / "y.zip", png_files()))
    load_data(whole, fit=lambda image: image[:, :4])
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("how", ["no folder", "full", "full at last"])
def test_without_room_for_a_cache_it_works_and_warns(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    match how:
        case "no folder":
            cache.parent.write_text("a file")
        case "full":
            monkeypatch.setattr(os, "posix_fallocate", full)
        case "full at last":
            monkeypatch.setattr(cache_module, "write_atomically", full)
    path = str(write_zip(tmp_path / "x.zip", png_files()))
    for _ in range(2):
        assert is_whole(load_data(path))
        warning = capsys.readouterr().err
        assert warning.startswith(f"Warning: no cache of decoded images in {cache}: ")
        assert warning.count("\n") == 1
    assert not list(cache.glob(".*"))


def test_unfinished_files_of_processes_that_are_gone_are_removed(tmp_path: Path, cache: Path) -> None:
    """At once; and not those of a process that is still decoding."""
    cache.mkdir(parents=True)
    dead, alive = cache / ".data-0.1-1.tmp", cache / ".data-0.2-2.tmp"
    dead.write_bytes(b"x")
    with open(alive, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        load_data(str(write_zip(tmp_path / "x.zip", png_files())))
        assert {path.name for path in cache.glob(".data-*.tmp")} == {alive.name}
    images = next(cache.glob("data-*.npy"))
    assert images.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_two_processes_at_once_do_not_disturb_each_other(tmp_path: Path, cache: Path) -> None:
    path = str(write_zip(tmp_path / "x.zip", png_files()))
    script = (
        "import sys, numpy as np; from ict_backends.data import dataset; dataset.CACHED_IMAGES = 0\n"
        "print(int(dataset.load_data(sys.argv[1]).images.astype(int).sum()))"
    )
    command = [sys.executable, "-c", script, path]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    sums = [int(process.communicate()[0]) for process in started]
    assert sums == [IMAGES.astype(int).sum()] * 2
    assert sorted(p.suffix for p in cache.iterdir()) == [".npy", ".npz"]


# --- other processes -------------------------------------------------------------------------------------------------


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of any size are decoded by two other processes."""
    monkeypatch.setattr(decode_pool, "MANY", 0)
    monkeypatch.setattr(decode_pool, "available_cores", lambda: 2)


@pytest.mark.usefixtures("processes")
def test_other_processes_decode_the_same(tmp_path: Path, decodings: list[str]) -> None:
    path = str(write_zip(tmp_path / "x.zip", png_files() | {"a/1.png": b"no image"}))
    names: list[str] = []
    assert np.array_equal(load_data(path, unreadable=names).images, np.delete(IMAGES, 1, axis=0))
    assert names == ["a/1.png"]
    wide = str(write_zip(tmp_path / "y.zip", {"1.png": encoded(IMAGES[0]), "2.png": encoded(IMAGES[1, :, :4])}))
    with pytest.raises(DataError, match=r"2.png is 4x8 RGB, which is no square"):
        load_data(wide, size=4)
    assert decodings == []  # here


@pytest.mark.usefixtures("processes")
def test_a_process_that_ends_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool.sys, "executable", shutil.which("true"))
    with pytest.raises(DataError, match="^a process that decoded images has ended"):
        load_data(str(write_zip(tmp_path / "x.zip", png_files())))
