"""Archives, tables and other people's arrays: the same images in the same order, and refusals in one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import socket
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_samples import (
    CIFAR_IMAGES,
    IMAGES,
    LABELS,
    cifar_files,
    encoded,
    let_others_in,
    png_files,
    python2_pickle,
    write_folder,
    write_imagenet,
    write_parquet,
    write_tar,
    write_zip,
)
from PIL import Image

from ict_backends.data.dataset import Dataset, load_data
from ict_backends.errors import DataError, UsageError

JPEGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10-train-jpeg.tar.xz"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(path: Path) -> Dataset:
    return load_data(str(path))


def check_refused(path: Path, *patterns: str) -> None:
    for pattern in patterns:
        with pytest.raises(DataError, match=pattern) as error:
            load(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)


def is_whole(data: Dataset, classes: tuple[str, ...] = ("a", "b")) -> bool:
    same = np.array_equal(data.images, IMAGES) and np.array_equal(data.labels, LABELS)
    return same and data.labels.dtype == np.int64 and data.classes == classes


# --- archives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("top", "held"), [("", 2**28), ("train/", 2**28), ("./set/train/", 100)])
def test_a_folder_and_its_archives_are_the_same_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, top: str, held: int
) -> None:
    """In any order of the members, beneath any number of folders that hold all the rest, read once or twice."""
    monkeypatch.setattr("ict_backends.data.tar._HELD", held)
    files = dict(reversed(png_files(top).items())) | {f"{top}README.txt": b"no image", f"{top}a/.hidden.png": b"none"}
    files[f"{top}__MACOSX/a/._1.png"] = b"none"
    paths = [
        write_folder(tmp_path / "folder", files),
        write_zip(tmp_path / "x.zip", files),
        *(write_tar(tmp_path / f"x.tar{end}", files, end[1:]) for end in ("", ".gz", ".xz", ".bz2")),
        write_tar(tmp_path / "x.tgz", files, "gz"),
    ]
    for path in paths:
        assert is_whole(load(path)), path


def test_the_shared_jpegs_are_the_same_from_a_folder_and_from_their_archive(tmp_path: Path) -> None:
    if not JPEGS.is_file():
        pytest.skip(f"the reference images are not here: {JPEGS}")
    part: dict[str, bytes] = {}
    with tarfile.open(JPEGS) as archive:
        for info in archive:
            if info.isfile():
                part[info.name] = archive.extractfile(info).read()
            if len(part) == 300:
                break
    assert all(name.startswith("train/") for name in part)
    paths = (write_tar(tmp_path / "x.tar.xz", part, "xz"), write_zip(tmp_path / "x.zip", part))
    folder = load(write_folder(tmp_path / "folder", part))
    assert folder.shape == (3, 32, 32)
    for path in paths:
        found = load(path)
        assert np.array_equal(found.images, folder.images)
        assert found.classes == folder.classes == tuple(sorted({name.split("/")[1] for name in part}))
        assert np.array_equal(found.labels, folder.labels)


def test_images_outside_of_folders_have_no_classes(tmp_path: Path) -> None:
    assert (
        load(write_zip(tmp_path / "x.zip", {"1.png": encoded(IMAGES[0]), "a/2.png": encoded(IMAGES[1])})).labels is None
    )


def test_names_are_sorted_part_by_part(tmp_path: Path) -> None:
    """As a folder's: "a/1" comes before "a-b/1", though "-" comes before "/"."""
    files = {"a-b/1.png": encoded(IMAGES[1]), "a/1.png": encoded(IMAGES[0])}
    for path in (write_folder(tmp_path / "folder", files), write_zip(tmp_path / "x.zip", files)):
        assert np.array_equal(load(path).images, IMAGES[:2])
        assert load(path).classes == ("a", "a-b")


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", png_files())
    (folder / "c").mkdir()
    check_refused(folder, "class folder c holds no images")
    with zipfile.ZipFile(write_zip(tmp_path / "x.zip", png_files()), "a") as archive:
        archive.mkdir("c")
    check_refused(tmp_path / "x.zip", "class folder c holds no images")
    with tarfile.open(write_tar(tmp_path / "x.tar", png_files()), "a") as archive:
        info = tarfile.TarInfo("c")
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    check_refused(tmp_path / "x.tar", "class folder c holds no images")


@pytest.mark.parametrize("name", ["../x.png", "a/../../x.png", "/x.png", "C:/x.png", "c:x.png", "a\\..\\..\\x.png"])
def test_names_that_lead_out_of_an_archive_are_refused(tmp_path: Path, name: str) -> None:
    files = png_files() | {name: encoded(IMAGES[0])}
    check_refused(write_zip(tmp_path / "x.zip", files), "is refused: its member .* leads out of the archive")
    check_refused(write_tar(tmp_path / "x.tar.gz", files, "gz"), "is refused: its member .* leads out of the archive")
    assert not list(tmp_path.glob("../x.png"))


def test_links_and_devices_of_a_tar_are_not_followed(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        with tarfile.open(write_tar(tmp_path / "x.tar", png_files()), "a") as archive:
            info = tarfile.TarInfo("a/link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        check_refused(tmp_path / "x.tar", "a/link.png is a link or a device")


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    files = png_files() | {"./a/0.png": encoded(IMAGES[5])}
    check_refused(write_zip(tmp_path / "x.zip", files), "two members called a/0.png")
    check_refused(write_tar(tmp_path / "x.tar", files), "two members called a/0.png")


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    content = bytearray(write_zip(tmp_path / "x.zip", png_files()).read_bytes())
    for signature, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.find(signature)
        content[at + place] |= 1
    (tmp_path / "x.zip").write_bytes(content)
    check_refused(tmp_path / "x.zip", "a/0.png is encrypted")


def test_archives_that_unpack_to_too_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("folder_zip", "tar", "limits"):
        monkeypatch.setattr(f"ict_backends.data.{module}.MAX_BYTES", 2**20)
    files = {"a.png": encoded(IMAGES[0]), "b.png": bytes(2**20 + 1)}
    check_refused(write_zip(tmp_path / "x.zip", files), "b.png cannot be read: it unpacks to more than")
    check_refused(write_tar(tmp_path / "x.tar.gz", files, "gz"), "b.png is larger than")
    check_refused(write_folder(tmp_path / "folder", files), "b.png cannot be read: it is larger than")


def damaged_tar(how: str, tar: bytes) -> bytes:
    """A .tar that is cut at, or changed in, the header of its fourth image, or doubled."""
    header = tar.find(b"b/4.png")
    changed = tar[:header] + b"\xff" + tar[header + 1 :]
    lengths = {"at a header": header, "in a header": header + 100, "after a header": header + 520, "to nothing": 0}
    return {"a wrong header": changed, "twice": tar + tar}.get(how) or tar[: lengths.get(how, 0)]


@pytest.mark.parametrize("how", ["at a header", "in a header", "after a header", "to nothing", "a wrong header"])
def test_a_damaged_tar_is_no_shorter_one(tmp_path: Path, how: str) -> None:
    """tarfile takes a damaged header for the end, and looks for no checksum behind it."""
    tar = write_tar(tmp_path / "x.tar", png_files()).read_bytes()
    (tmp_path / "x.tar").write_bytes(damaged_tar(how, tar))
    check_refused(tmp_path / "x.tar", "is damaged or no archive")


def test_two_tars_strung_together_are_refused(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "x.tar", png_files()).read_bytes()
    (tmp_path / "x.tar").write_bytes(damaged_tar("twice", tar))
    check_refused(tmp_path / "x.tar", "goes on after its end")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda packed: packed[:-1], id="a byte short"),
        pytest.param(lambda packed: packed[:-6] + b"\0" + packed[-5:], id="a wrong checksum"),
        pytest.param(lambda packed: packed[: len(packed) // 2], id="half"),
        pytest.param(lambda packed: b"text", id="text"),
    ],
)
def test_a_damaged_packed_tar_is_no_shorter_one(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    packed = write_tar(tmp_path / "x.tar.gz", png_files(), "gz").read_bytes()
    (tmp_path / "x.tar.gz").write_bytes(damage(packed))
    check_refused(tmp_path / "x.tar.gz", "is damaged or no archive|cannot be read")


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda zipped: zipped[:-30], id="without its end"),
        pytest.param(lambda zipped: b"", id="empty"),
        pytest.param(lambda zipped: zipped.replace(b"b/4.png", b"b/4.pnj", 1), id="two names of one member"),
    ],
)
def test_a_damaged_zip_is_no_shorter_one(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    zipped = write_zip(tmp_path / "x.zip", png_files()).read_bytes()
    (tmp_path / "x.zip").write_bytes(damage(zipped))
    check_refused(tmp_path / "x.zip", "is damaged or no archive|4.png")


def test_a_suffix_of_a_tar_says_nothing_of_its_packing(tmp_path: Path) -> None:
    assert is_whole(load(write_tar(tmp_path / "x.tar", png_files(), "gz")))


# --- folders ---------------------------------------------------------------------------------------------------------


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", png_files())
    os.mkfifo(folder / "a" / "pipe.png")
    check_refused(folder, "pipe.png cannot be read: it is no regular file")
    check_refused(folder / "a" / "pipe.png", "neither a file nor a folder")
    (folder / "a" / "pipe.png").unlink()
    (folder / "a" / "x.png").symlink_to(folder / "absent.png")
    check_refused(folder, "x.png cannot be read: No such file")


@pytest.mark.parametrize("place", ["", "a", "a/1.png"])
def test_without_permission_the_place_is_named(tmp_path: Path, place: str) -> None:
    folder = write_folder(tmp_path / "folder", png_files())
    let_others_in(tmp_path)
    (folder / place).chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        check_refused(folder, f"{folder / place}.* Permission denied")
    finally:
        if root:
            os.seteuid(0)
        (folder / place).chmod(0o700)


def test_unreadable_images_are_left_out_where_a_list_takes_their_names(tmp_path: Path) -> None:
    files = png_files() | {"a/2.png": b"no image", "b/5.png": encoded(IMAGES[5])[:50]}
    for path in (write_folder(tmp_path / "folder", files), write_zip(tmp_path / "x.zip", files)):
        check_refused(path, "2.png cannot be read")
        names: list[str] = []
        found = load_data(str(path), unreadable=names)
        assert names == ["a/2.png", "b/5.png"]
        assert np.array_equal(found.images, IMAGES[[0, 1, 3, 4]])
        assert np.array_equal(found.labels, [0, 0, 1, 1])


def test_grey_images_among_rgb_ones_become_rgb(tmp_path: Path) -> None:
    grey = np.repeat(IMAGES[:1, :1], 3, axis=1)
    files = png_files()
    for name in ("a/0.png", "b/5.png"):
        stream = io.BytesIO()
        Image.fromarray(grey[0, 0]).save(stream, "PNG")
        images = IMAGES.copy()
        images[int(name[2])] = grey[0]
        assert np.array_equal(load(write_folder(tmp_path / name[0], files | {name: stream.getvalue()})).images, images)


def test_sizes_are_made_alike(tmp_path: Path) -> None:
    files = {"a.png": encoded(IMAGES[0]), "b.png": encoded(IMAGES[1, :, :6]), "c.png": encoded(IMAGES[2, :, :4, :4])}
    folder = write_folder(tmp_path / "folder", files)
    check_refused(folder, "a.png is 8x8 RGB and .*b.png is 6x8 RGB; --size N resamples")
    with pytest.raises(DataError, match="b.png is 6x8 RGB, which is no square; --crop center"):
        load_data(str(folder), size=4)
    found = load_data(str(folder), size=4, crop="center")
    assert found.shape == (3, 4, 4)
    assert np.array_equal(found.images[2], IMAGES[2, :, :4, :4])


def test_arrays_are_resampled_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=IMAGES[:, :, :, 1:7], labels=LABELS)
    path = str(tmp_path / "x.npz")
    assert np.array_equal(load_data(path, crop="center").images, IMAGES[:, :, 1:7, 1:7])
    found = load_data(path, size=4, crop="center")
    assert found.images.shape == (6, 3, 4, 4)
    assert np.array_equal(found.labels, LABELS)
    with pytest.raises(DataError, match="number 0 is 8x6 RGB, which is no square"):
        load_data(path, size=4)


# --- dataset.json ----------------------------------------------------------------------------------------------------


def listed(labels: object) -> bytes:
    return json.dumps({"labels": labels}).encode()


@pytest.mark.parametrize("held", [100, 2**28])
def test_a_labels_file_gives_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr("ict_backends.data.tar._HELD", held)
    labels = [[name, 5 - i] for i, name in enumerate(png_files())]
    for top in ("", "set/"):
        files = png_files(top) | {f"{top}dataset.json": listed(labels[::-1])}
        for path in (
            write_folder(tmp_path / f"folder{len(top)}", files),
            write_zip(tmp_path / "x.zip", files),
            write_tar(tmp_path / "x.tar", files),
        ):
            found = load(path)
            assert np.array_equal(found.labels, [5, 4, 3, 2, 1, 0])
            assert found.classes == ()
    assert load(write_zip(tmp_path / "y.zip", png_files() | {"dataset.json": listed(None)})).labels is None


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([["a/0.png", 1]], r"has no class for a/1.png \(5 of 6 images\)"),
        ([*[[name, 1] for name in png_files()], ["z.png", 1]], "names what is not there: z.png"),
        ([[name, 1.5] for name in png_files()], "classes must be integers >= 0 or names, one an image, not 1.5"),
        ([[name, -2] for name in png_files()], "classes must be in 0..999999, not -2"),
        ([[name, 10**30] for name in png_files()], "classes must be in 0..999999, not 10000+; ids of records"),
        ([[name, [1, 2]] for name in png_files()], "classes must be integers >= 0 or names"),
        ([[name, i or "a"] for i, name in enumerate(png_files())], "classes must be integers >= 0 or names"),
        ([[name, 1] for name in png_files()] * 2, "names an image twice"),
        ([1, 2], "must be"),
        ({"a": 1}, "has no class for"),
        ("text", "must be"),
    ],
)
def test_a_labels_file_that_does_not_match_is_refused(tmp_path: Path, labels: object, says: str) -> None:
    files = png_files() | {"dataset.json": listed(labels)}
    check_refused(write_zip(tmp_path / "x.zip", files), says)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_labels_file_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    check_refused(write_zip(tmp_path / "x.zip", png_files() | {"dataset.json": content}), "dataset.json must be")


# --- CIFAR -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["archive", "folder", "inner folder"])
@pytest.mark.parametrize("write", [python2_pickle, lambda value: pickle.dumps(value, 2), pickle.dumps])
def test_cifar_is_read_as_its_authors_wrote_it(
    tmp_path: Path, write: Callable[[object], bytes], container: str
) -> None:
    """Python 2's pickles, and those that Python 3 makes of the same."""
    files = cifar_files(write=write)
    inside = {name.rpartition("/")[2]: content for name, content in files.items()}
    match container:
        case "archive":
            path = write_tar(tmp_path / "cifar-10-python.tar.gz", dict(reversed(files.items())), "gz")
        case "folder":
            path = write_folder(tmp_path / "folder", files)
        case _:
            path = write_folder(tmp_path / "inside", inside)
    data = load(path)
    assert np.array_equal(data.images, CIFAR_IMAGES)
    assert np.array_equal(data.labels, np.arange(10))
    assert data.classes == tuple(f"class {i}" for i in range(10))


def test_cifar_100_has_its_fine_labels(tmp_path: Path) -> None:
    train = {b"fine_labels": list(range(10)), b"coarse_labels": [0] * 10, b"data": CIFAR_IMAGES.reshape(10, -1)}
    files = {"train": python2_pickle(train), "test": b"", "meta": python2_pickle({b"fine_label_names": [b"x"] * 10})}
    found = load(write_folder(tmp_path / "cifar-100-python", files))
    assert np.array_equal(found.images, CIFAR_IMAGES)
    assert np.array_equal(found.labels, np.arange(10))


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        (Evil(), "asks for .*system, which no batch of images needs"),
        ({b"labels": [0, 1], b"data": np.zeros((2, 3072))}, r"must be \[2, 3072\] uint8"),
        ({b"labels": [0, 1], b"data": np.zeros((3, 3072), np.uint8)}, r"must be \[2, 3072\] uint8"),
        ({b"labels": [0, 1], b"data": np.array([Evil(), 1])}, "asks for|uint8"),
        ({b"labels": [0, -1], b"data": np.zeros((2, 3072), np.uint8)}, "is no batch of CIFAR"),
        ({b"labels": [], b"data": np.zeros((0, 3072), np.uint8)}, "is no batch of CIFAR"),
        ({b"data": np.zeros((2, 3072), np.uint8)}, "is no batch of CIFAR"),
        ([1], "it is no dict"),
    ],
)
def test_a_batch_that_is_none_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: object, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files = cifar_files() | {"cifar-10-batches-py/data_batch_3": pickle.dumps(batch)}
    check_refused(write_folder(tmp_path / "folder", files), says)
    check_refused(write_tar(tmp_path / "x.tar.gz", files, "gz"), says)
    assert not (tmp_path / "pwned").exists()


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    files = cifar_files()
    del files["cifar-10-batches-py/data_batch_4"]
    check_refused(write_folder(tmp_path / "folder", files), "has no file .*data_batch_4")
    check_refused(write_tar(tmp_path / "x.tar.gz", files, "gz"), "has no file .*data_batch_4")


# --- ImageNet --------------------------------------------------------------------------------------------------------


def test_imagenet_batches_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        images = IMAGES[number % 7 : number % 7 + 2]
        write_imagenet(tmp_path / f"train_data_batch_{number}.npz", images, np.array([number, 1000]))
    write_imagenet(tmp_path / "val_data.npz", IMAGES, LABELS + 1)
    found = load(tmp_path)
    assert np.array_equal(found.images, np.concatenate([IMAGES[1:3], IMAGES[2:4], IMAGES[3:5]]))
    assert np.array_equal(found.labels, [0, 999, 1, 999, 9, 999])  # the file's begin at 1
    alone = load(tmp_path / "val_data.npz")
    assert np.array_equal(alone.images, IMAGES)
    assert np.array_equal(alone.labels, LABELS)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"data": IMAGES.reshape(6, -1), "labels": LABELS}, r"must be \[n\] integers in 1..1000"),
        ({"data": IMAGES.reshape(6, -1), "labels": LABELS + 1000}, r"must be \[n\] integers in 1..1000"),
        ({"data": IMAGES.reshape(6, -1), "labels": (LABELS + 1)[:5]}, r"must be \[5, 3 s s\] uint8"),
        ({"data": IMAGES.reshape(6, -1)[:, 1:], "labels": LABELS + 1}, r"must be \[6, 3 s s\] uint8"),
        ({"data": IMAGES.reshape(6, -1) / 255, "labels": LABELS + 1}, "uint8, one row a label, not .*float64"),
        ({"data": IMAGES.reshape(6, -1)}, "has no array `labels`"),
    ],
)
def test_a_batch_of_imagenet_that_does_not_fit_is_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], says: str
) -> None:
    np.savez(tmp_path / "train_data_batch_1.npz", **arrays)
    check_refused(tmp_path / "train_data_batch_1.npz", says)
    with pytest.raises(DataError, match=says):
        load(tmp_path)


# --- arrays ----------------------------------------------------------------------------------------------------------


def test_an_npy_file_with_more_than_its_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    with open(tmp_path / "x.npy", "ab") as file:
        file.write(b"more")
    check_refused(tmp_path / "x.npy", "goes on after its array")


def test_a_header_that_claims_more_than_there_is_costs_nothing(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    content = (tmp_path / "x.npy").read_bytes().replace(b"(6, 3, 8, 8), ", b"(99999999,3,8)")
    (tmp_path / "x.npy").write_bytes(content)
    check_refused(tmp_path / "x.npy", "not a readable .npy")


def test_an_npz_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ict_backends.data.npz.LARGE", 2**20)
    np.savez_compressed(tmp_path / "x.npz", images=np.zeros((700, 3, 32, 32), np.uint8))
    check_refused(tmp_path / "x.npz", "more than 100 times its size")


@pytest.mark.parametrize("layout", ["nchw.npz", "nhwc.npz", "nchw.npy", "nhwc.npy", "grey.npy", "arr.npz"])
def test_a_file_larger_than_the_memory_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    """The same as at once, and from then on mapped from the cache."""
    images = {"nchw": IMAGES, "nhwc": IMAGES.transpose(0, 2, 3, 1), "grey": IMAGES[:, 0]}.get(layout[:4], IMAGES)
    path = tmp_path / layout
    if layout == "arr.npz":
        np.savez(path, np.ascontiguousarray(images), LABELS)
    elif layout.endswith("npz"):
        np.savez(path, images=np.ascontiguousarray(images), labels=LABELS, classes=np.array(["a", "b"]))
    else:
        np.save(path, np.ascontiguousarray(images))
    plain = load(path)
    monkeypatch.setattr("ict_backends.data.npz.LARGE", 100)
    monkeypatch.setattr("ict_backends.data.npz._PIECE", 700)
    monkeypatch.setattr("ict_backends.data.dataset.CACHED_BYTES", 100)
    for _ in range(2):
        found = load(path)
        assert isinstance(found.images, np.memmap)
        assert np.array_equal(found.images, plain.images)
        assert (found.labels is None) == (plain.labels is None)
        assert found.labels is None or np.array_equal(found.labels, plain.labels)
        assert found.classes == plain.classes
    path.write_bytes(path.read_bytes()[:-300])
    check_refused(path, "not a readable .np")
    np.save(tmp_path / "x.npy", np.zeros((400, 8), np.int64))
    check_refused(tmp_path / "x.npy", "must be uint8")


def test_one_pixel_is_too_little(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES.transpose(0, 2, 3, 1)[:, :1, :1])
    with pytest.raises(DataError, match="is 1x1 RGB; a network needs at least 2x2"):
        load(tmp_path / "x.npy")
    with pytest.raises(DataError, match="b.png is 1x1 RGB; a network needs at least 2x2"):
        load_data(
            str(
                write_folder(tmp_path / "folder", {"a.png": encoded(IMAGES[0]), "b.png": encoded(IMAGES[0, :, :1, :1])})
            ),
            size=8,
        )


# --- Parquet and Hugging Face ----------------------------------------------------------------------------------------

try:
    import datasets
except ImportError:
    datasets = None
pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
needs_datasets = pytest.mark.skipif(datasets is None, reason="datasets is not installed")


@pytest.mark.parametrize(("column", "label"), [("image", "label"), ("img", "fine_label"), ("picture", "labels")])
def test_parquet_columns_are_found(tmp_path: Path, column: str, label: str) -> None:
    assert is_whole(load(write_parquet(tmp_path / "x.parquet", column, label)), ())


def test_a_folder_of_parquet_files_is_read_in_order(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (tmp_path / "data").mkdir()
    for i in range(2):
        images = [encoded(image) for image in IMAGES[3 * i : 3 * i + 3]]
        pq.write_table(
            pyarrow.table({"jpg": images, "label": LABELS[3 * i : 3 * i + 3]}), tmp_path / "data" / f"{i}.parquet"
        )
    assert is_whole(load(tmp_path / "data"), ())


def bad_table(how: str) -> dict:
    images = [encoded(image) for image in IMAGES]
    return {
        "none": {"text": ["x"] * 6, "label": LABELS},
        "several": {"a": images, "b": images},
        "missing": {"image": [*images[:5], None]},
        "text": {"image": [b"text"] * 6},
        "negative": {"image": images, "label": [-2] * 6},
        "large": {"image": images, "label": [0, 1, 2, 3, 4, 10**6]},
        "rows": {"image": pyarrow.array([], pyarrow.binary())},
    }[how]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("none", "has no column of encoded images; its columns are text, label"),
        ("several", "has several columns that may hold images .a, b., none called `image` or `img`"),
        ("missing", "row 5 cannot be read"),
        ("text", "row 0 cannot be read: it is of no format"),
        ("negative", "labels must be in 0..999999, not -2"),
        ("large", "labels must be in 0..999999, not 1000000; ids of records are no classes"),
        ("rows", "its tables have no rows"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, how: str, says: str) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.table(bad_table(how)), tmp_path / "x.parquet")
    check_refused(tmp_path / "x.parquet", says)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"text" * 100])
def test_what_is_no_parquet_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.parquet").write_bytes(content)
    check_refused(tmp_path / "x.parquet", "is not a readable Parquet file")


def test_tables_need_their_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"ict\[parquet\]"):
        load(path)
    with pytest.raises(UsageError, match=r"ict\[huggingface\]"):
        load_data("hf:mnist")


def hugging_face_table() -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = [{"bytes": encoded(image), "path": None} for image in IMAGES]
    return datasets.Dataset.from_dict({"image": rows, "label": LABELS.tolist()}, features=features)


@needs_datasets
def test_a_saved_dataset_is_read(tmp_path: Path) -> None:
    table = hugging_face_table()
    table.save_to_disk(str(tmp_path / "one"))
    assert is_whole(load(tmp_path / "one"))
    datasets.DatasetDict({"test": table.select([0]), "train": table}).save_to_disk(str(tmp_path / "several"))
    assert is_whole(load(tmp_path / "several"))
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "other"))
    check_refused(tmp_path / "other", "has no split `train`; give the folder of one of test")
    table.select([5, 0]).save_to_disk(str(tmp_path / "chosen"))
    assert np.array_equal(load(tmp_path / "chosen").images, IMAGES[[5, 0]])
    table.to_parquet(tmp_path / "x.parquet")
    assert is_whole(load(tmp_path / "x.parquet"))  # with the names of its classes
    (tmp_path / "one" / "data-00000-of-00001.arrow").write_bytes(b"damaged")
    check_refused(tmp_path / "one", "cannot be had")


@needs_datasets
@pytest.mark.parametrize("terminal", [True, False])
def test_the_librarys_bars_go_to_terminals_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: hugging_face_table().map(lambda row: row))
    load_data("hf:owner/name")
    assert ("\r" in capfd.readouterr().err) == terminal
    assert not datasets.are_progress_bars_disabled()


@needs_datasets
def test_a_dataset_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, configuration: str | None, split: str) -> datasets.Dataset:
        asked.append((name, configuration, split))
        return hugging_face_table()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert is_whole(load_data("hf:owner/name"))
    assert is_whole(load_data("hf:owner/name:test"))
    assert is_whole(load_data("hf:owner/name:small:test"))
    assert is_whole(load_data("hf:owner/name:small:"))
    no = None
    given = [(no, "train"), (no, "test"), ("small", "test"), ("small", "train")]
    assert asked == [("owner/name", configuration, split) for configuration, split in given]
    for wrong in ("hf:", "hf::a:b", "hf:a:b:c:d"):
        with pytest.raises(UsageError, match="hf:NAME"):
            load_data(wrong)


@needs_datasets
def test_without_network_a_name_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="^data hf:nobody/nothing cannot be had: ") as error:
        load_data("hf:nobody/nothing")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("make", ["tarfile", "shutil"])
def test_a_tar_of_a_folder_itself_is_read(tmp_path: Path, make: str) -> None:
    """`tar -C folder -cf x.tar .` and `shutil.make_archive` have a member for the folder, without a name."""
    write_folder(tmp_path / "set", png_files())
    if make == "shutil":
        shutil.make_archive(str(tmp_path / "x"), "tar", tmp_path / "set")
    else:
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(tmp_path / "set", ".")
    assert is_whole(load(tmp_path / "x.tar"))


def test_numbers_of_members_that_zip_programs_write_are_understood(tmp_path: Path) -> None:
    """The lower 16 bits of the number (macOS), or a mark for the number in 64 bits (Go, for few members too)."""
    write_folder(tmp_path / "set", png_files())
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i in range(2**16):
            archive.writestr(f".notes/{i}", "")
        for file in sorted((tmp_path / "set").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path / "set"))
    content = bytearray((tmp_path / "x.zip").read_bytes())
    listed = len(zipfile.ZipFile(tmp_path / "x.zip").infolist())
    assert is_whole(load(tmp_path / "x.zip"))  # as zipfile writes it: the mark, and 64 bits
    end, wide = content.rfind(b"PK\5\6"), content.rfind(b"PK\6\6")
    content[wide + 32 : wide + 40] = (listed - 1).to_bytes(8, "little")
    (tmp_path / "y.zip").write_bytes(content)
    check_refused(tmp_path / "y.zip", "it lists|damaged")
    for count, right in ((listed % 2**16, True), (listed % 2**16 + 1, False)):
        # Without the records of 64 bits, as macOS has it.
        content[end + 8 : end + 12] = count.to_bytes(2, "little") * 2
        narrow = content[:wide] + content[end:]
        (tmp_path / "z.zip").write_bytes(narrow)
        if right:
            assert is_whole(load(tmp_path / "z.zip"))
        else:
            check_refused(tmp_path / "z.zip", "it lists")


CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason="shared/cases is not there")
@pytest.mark.parametrize("name", ["F01_root_dot.tar", "F05_zip64_sentinel_count.zip"])
def test_archives_that_failed_are_read(name: str) -> None:
    data = load(CASES / name)
    assert data.images.shape == (6, 3, 8, 8)
    assert data.classes == ("cat", "dog")
