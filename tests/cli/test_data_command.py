"""`ict data` says what is in a set and packs it; `ict train` takes every kind of set, and every bad one in one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from data_samples import (
    IMAGES,
    LABELS,
    cifar_files,
    encoded,
    let_others_in,
    png_files,
    write_folder,
    write_parquet,
    write_tar,
    write_zip,
)
from PIL import Image
from tiny import TINY

from ict_backends.data import dataset
from ict_backends.data.dataset import load_data
from ict_backends.runs.folder import RunDir


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_an_inspection_says_what_there_is(ict: Ict, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar.gz", png_files() | {"b/6.png": encoded(IMAGES[0])}, "gz")
    result = ict("data", path)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    images = np.concatenate([IMAGES, IMAGES[:1]]) / 127.5 - 1
    mean, std = (", ".join(f"{v:.4f}" for v in f(images, axis=(0, 2, 3))) for f in (np.mean, np.std))
    assert lines[:4] == [f"data: {path}", "images: 7", "size: 8x8 RGB", "channels: 3 (RGB)"]
    assert lines[4:7] == ["classes: 2 (--conditional trains on them)", "  0 a: 3", "  1 b: 4"]
    assert lines[7:9] == [f"mean: {mean} by channel, of values in [-1, 1]", f"std:  {std}"]
    assert lines[9:11] == ["duplicates: 1 images have the pixels of an earlier one", "  b/6.png = a/0.png"]
    assert lines[11:] == ["unreadable: none", "contact sheet: contact-sheet.png"]


def test_an_inspection_counts_what_training_refuses(ict: Ict, tmp_path: Path) -> None:
    files = png_files() | {"a/0.png": b"no image", "a/1.png": encoded(IMAGES[1, :, :1, :1])}
    Image.new("L", (8, 6)).save(tmp_path / "grey.png")
    files["b/4.png"] = (tmp_path / "grey.png").read_bytes()
    result = ict("data", write_folder(tmp_path / "folder", files))
    assert result.code == 0
    for line in (
        "sizes: 3 different",
        "  8x8 RGB: 3",
        "  6x8 grey: 1",
        "  1x1 RGB: 1",
        "  grey and RGB are mixed: training takes all of them as RGB",
        "  training needs equal sizes: --size N or HxW resamples, with --crop center where proportions differ",
        "  images of one pixel's height or width are refused in training",
        "unreadable: 1",
        f"  image {tmp_path}/folder/a/0.png cannot be read: it is of no format that is known",
    ):
        assert line in result.out.splitlines(), (line, result.out)


def test_an_inspection_with_a_size_is_of_what_training_sees(ict: Ict, refused: Refused, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", png_files() | {"a/1.png": encoded(IMAGES[1, :, :6])})
    assert "size: 4x4 RGB" in ict("data", path, "--size", 4, "--crop", "center").out.splitlines()
    refused(1, "a/1.png is 6x8 RGB, which is no square; --crop center", "data", path, "--size", 4)


def test_the_sheet_shows_a_row_a_class(ict: Ict, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "folder", png_files())
    assert ict("data", path, "--sheet", tmp_path / "sheet.png").code == 0
    with Image.open(tmp_path / "sheet.png") as image:
        sheet = np.asarray(image)
    cell = sheet.shape[0] // 2
    assert sheet.shape == (2 * cell, 10 * cell, 3)
    for row, label in enumerate((0, 1)):
        for column, number in enumerate(np.flatnonzero(label == LABELS)):
            shown = sheet[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell][: 8 * 4 : 4, : 8 * 4 : 4]
            assert np.array_equal(shown, IMAGES[number].transpose(1, 2, 0))
    assert (sheet[:, 3 * cell :] == 255).all()


def test_no_sheet_is_overwritten(ict: Ict, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", png_files())
    for name in ("contact-sheet.png", "contact-sheet-2.png", "contact-sheet-3.png"):
        assert f"contact sheet: {name}" in ict("data", path).out
        assert Path(name).is_file()
    result = ict("data", path, "--sheet", "contact-sheet.png")
    assert (result.code, result.err) == (2, "Error: --sheet contact-sheet.png is there already; choose another name\n")


# --- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.xz", "CIFAR", "Parquet", "digits"])
def test_a_packed_set_is_the_same_set(ict: Ict, tmp_path: Path, kind: str) -> None:
    match kind:
        case "folder":
            source = write_folder(tmp_path / "folder", png_files())
        case "zip":
            source = write_zip(tmp_path / "x.zip", png_files())
        case "tar.xz":
            source = write_tar(tmp_path / "x.tar.xz", png_files("train/"), "xz")
        case "CIFAR":
            source = write_tar(tmp_path / "cifar-10-python.tar.gz", cifar_files(), "gz")
        case "Parquet":
            pytest.importorskip("pyarrow", reason="pyarrow is not installed")
            source = write_parquet(tmp_path / "x.parquet")
        case "digits":
            source = "digits"
    result = ict("data", source, "--pack", "out.npz")
    assert (result.code, result.err) == (0, "")
    before, after = load_data(str(source)), load_data("out.npz")
    assert np.array_equal(after.images, before.images)
    assert np.array_equal(after.labels, before.labels)
    assert after.classes == before.classes
    with np.load("out.npz", allow_pickle=False) as file:
        assert file["images"].shape[3] == before.shape[0]
    assert f"out.npz: {len(after.images):,} images" in result.out


def test_packing_resamples_and_leaves_out_only_on_request(ict: Ict, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "folder", png_files() | {"a/1.png": b"no image"})
    result = ict("data", source, "--pack", "out.npz", "--size", 4)
    assert result.code == 1
    assert re.fullmatch(r"Error: data .*: 1 images cannot be read \(a/1.png\); --skip-unreadable .*\n", result.err)
    assert not Path("out.npz").exists()
    result = ict("data", source, "--pack", "out.npz", "--size", 4, "--skip-unreadable")
    assert (result.code, result.err) == (0, "Warning: 1 images cannot be read and are left out: a/1.png\n")
    found = load_data("out.npz")
    assert found.images.shape == (5, 3, 4, 4)
    assert np.array_equal(found.labels, [0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--pack", "there.npz"], "--pack there.npz is there already"),
        (["--pack", "x.zip"], r"--pack x.zip must end in .npz"),
        (["--pack", "x.npz", "--sheet", "x.png"], "--pack and --sheet exclude each other"),
        (["--sheet", "x.jpg"], "--sheet x.jpg must end in .png"),
        (["--skip-unreadable"], "--skip-unreadable is of --pack"),
        (["--size", "1"], "data.size must be >= 2 and <= 4096"),
        (["--crop", "left"], "--crop"),
    ],
)
def test_options_are_refused(refused: Refused, arguments: list[str], says: str) -> None:
    Path("there.npz").write_bytes(b"years of work")
    refused(2, says, "data", "digits", *arguments)
    assert Path("there.npz").read_bytes() == b"years of work"
    assert len(list(Path().iterdir())) == 1


# --- training --------------------------------------------------------------------------------------------------------


def test_a_run_keeps_how_its_images_are_made(ict: Ict, refused: Refused, tmp_path: Path) -> None:
    """Training, resuming, measuring, reporting and searching see the same images."""
    rng = np.random.default_rng(0)
    files = {f"{i:02}.png": encoded(rng.integers(0, 256, (3, 12, 9 + i % 5), dtype=np.uint8)) for i in range(60)}
    source = write_zip(tmp_path / "x.zip", files)
    run = tmp_path / "run"
    options = ["--size", 4, "--crop", "center"]
    assert ict("train", "--data", source, *options, "--out", run, *TINY).code == 0
    config = RunDir(run).load_config()
    assert (config.data.size, config.data.crop, config.data.shape) == (4, "center", (3, 4, 4))
    assert ict("train", "--resume", "--out", run, "--steps", 2).code == 0
    assert ict("eval", run, "--num", 60, "--metrics", "sw").code == 0
    assert ict("eval", run, "--num", 60, "--metrics", "sw", "--data", source).code == 0
    assert ict("search-sigmas", run, "--steps", 2, "--num", 60, "--metric", "sw").code == 0
    result = ict("report", run)
    assert (result.code, result.err) == (0, "")
    says = ["data.size is 4 and not 8", "data.crop is center and not none"]
    refused(2, says, "train", "--resume", "--out", run, "--crop", "none", "--size", 8)


def test_training_from_the_cache(ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "CACHED_IMAGES", 0)
    source = write_zip(tmp_path / "x.zip", png_files())
    for out in ("one", "two"):
        settings = ("--set=network.num_classes=2", "--set=train.ema_decay=0")
        result = ict("train", "--data", source, "--out", tmp_path / out, *settings, *TINY)
        assert result.code == 0, result
        assert "Warning" not in result.err
    assert len(list((tmp_path / "cache" / "ict").glob("data-*.np[yz]"))) == 2


def bad_source(folder: Path, how: str) -> Path:
    path = folder / "bad"
    match how:
        case "no images":
            return write_folder(path, {"notes.txt": b"none"})
        case "empty class":
            (path / "c").mkdir(parents=True)
            return write_folder(path, png_files())
        case "truncated JPEG":
            return write_folder(path, {"a.jpg": encoded(IMAGES[0], "JPEG")[:-100]})
        case "climbing zip":
            return write_zip(folder / "bad.zip", {"../a.png": encoded(IMAGES[0])})
        case "bomb":
            Image.new("1", (20_000, 10_000)).save(folder / "bomb.png")
            return write_folder(path, {"bomb.png": (folder / "bomb.png").read_bytes()})
        case "one pixel":
            return write_folder(path, {"a.png": encoded(IMAGES[0, :, :1, :1])})
        case "mixed sizes":
            return write_folder(path, {"a.png": encoded(IMAGES[0]), "b.png": encoded(IMAGES[0, :, :4, :4])})
        case "labels":
            return write_zip(
                folder / "bad.zip", {"a.png": encoded(IMAGES[0]), "dataset.json": b'{"labels": [["b.png", 1]]}'}
            )
        case "no column":
            pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
            pyarrow = pytest.importorskip("pyarrow")
            pq.write_table(pyarrow.table({"text": ["x"]}), folder / "bad.parquet")
            return folder / "bad.parquet"
        case "no permission":
            path = write_folder(path, png_files())
            let_others_in(folder)
            folder.chmod(0o777)
            (path / "b").chmod(0)
            return path
    raise ValueError(how)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("no images", "holds no images"),
        ("empty class", "class folder c holds no images"),
        ("truncated JPEG", "a.jpg cannot be read: "),
        ("climbing zip", r"its member \.\./a.png leads out of the archive"),
        ("bomb", "bomb.png cannot be read: .*pixels"),
        ("one pixel", "a.png is 1x1 RGB; a network needs at least 2x2"),
        ("mixed sizes", "b.png is 4x4 RGB; --size N resamples"),
        ("labels", "dataset.json has no class for a.png"),
        ("no column", "has no column of encoded images; its columns are text"),
        ("no permission", "bad/b: Permission denied"),
    ],
)
def test_bad_data_give_one_line(refused: Refused, tmp_path: Path, how: str, says: str) -> None:
    source = bad_source(tmp_path, how)
    root = how == "no permission" and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        refused(1, says, "train", "--data", source, "--out", tmp_path / "run", *TINY)
    finally:
        if root:
            os.seteuid(0)
    if root:
        (source / "b").chmod(0o700)


def test_working_in_the_folder_of_the_data_changes_no_data(
    ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sheet, a run, its pictures and samples are made there, in this order; the set keeps its images and classes."""
    monkeypatch.chdir(write_folder(tmp_path / "set", png_files()))
    assert ict("data", ".").code == 0
    assert ict("train", "--data=.", *TINY, "--steps=2").code == 0
    (run,) = Path("runs").iterdir()
    assert ict("sample", run, "--out=grid.png", "--num=4").code == 0
    assert ict("sample", run, "--out=some", "--num=4").code == 0
    assert ict("train", "--resume", f"--out={run}", "--steps=3").code == 0
    assert ict("eval", run, "--metrics=sw", "--num=6").code == 0
    result = ict("data", ".")
    assert "images: 6\nnote: leaves out what ict wrote there: contact-sheet.png, grid.png, runs/" in result.out
    assert "classes: 2 " in result.out
    assert load_data(".").classes == ("a", "b")


def test_names_write_nothing_on_the_terminal_but_themselves(ict: Ict, tmp_path: Path) -> None:
    """No escape sequence of a terminal, and no second line that looks like one of the command's."""
    name = "x\x1b[31m\rimages: 9\nimages: 9"
    files = {f"{name}/0.png": encoded(IMAGES[0]), "b/0.png": encoded(IMAGES[0]), "b/\x1b[2J.png": b"none"}
    for path in (write_folder(tmp_path / "x", files), write_zip(tmp_path / "x.zip", files)):
        result = ict("data", path)
        assert result.code == 0, result.err
        assert all(line.isprintable() for line in [*result.out.splitlines(), *result.err.splitlines()])
        assert result.out.count("images: 2") == 0
        assert [line for line in result.out.splitlines() if line.startswith("images: ")] == ["images: 3"]
