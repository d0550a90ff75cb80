"""Of what lies in a folder or an archive: which images are taken, which classes they get, and that the rest is said."""

from __future__ import annotations

import bz2
import json
import os
import pickle
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data_samples import (
    IMAGES,
    LABELS,
    NAMES,
    encoded,
    png_files,
    python2_pickle,
    write_folder,
    write_imagenet,
    write_parquet,
    write_tar,
    write_zip,
)
from PIL import Image

from ict_backends.data import pickles
from ict_backends.data.dataset import Dataset, find_data, load_data
from ict_backends.data.source import Located
from ict_backends.errors import DataError
from ict_backends.images import encode_picture, encode_png, save_grid

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
Write = Callable[[Path, dict[str, bytes]], Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["folder", "zip", "tar", "tar.gz"])
def write(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes files as a folder or an archive; the plain .tar is read twice, as large ones are."""
    if request.param == "tar":
        monkeypatch.setattr("ict_backends.data.tar._HELD", 100)
    writers: dict[str, Write] = {
        "folder": write_folder,
        "zip": lambda path, files: write_zip(path.with_suffix(".zip"), files),
        "tar": lambda path, files: write_tar(path.with_suffix(".tar"), files),
        "tar.gz": lambda path, files: write_tar(path.with_suffix(".tgz"), files, "gz"),
    }
    return writers[request.param]


def notes_of(path: Path | str) -> tuple[str, ...]:
    found = find_data(str(path))
    assert isinstance(found, Located)
    return found.open().notes


def is_whole(data: Dataset, classes: tuple[str, ...] = ("a", "b")) -> bool:
    return np.array_equal(data.images, IMAGES) and np.array_equal(data.labels, LABELS) and data.classes == classes


def check_refused(path: Path | str, pattern: str) -> None:
    with pytest.raises(DataError, match=pattern) as error:
        load_data(str(path))
    assert "\n" not in str(error.value)


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["test", "Validation", "val"])
@pytest.mark.parametrize("top", ["", "set/"])
def test_of_splits_the_training_one_is_taken(
    tmp_path: Path, write: Write, top: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = {f"{top}{other}/a/9.png": encoded(IMAGES[0]), f"{top}{other}/9.png": encoded(IMAGES[0])}
    path = write(tmp_path / "x", png_files(f"{top}train/") | beside | {f"{top}preview.png": encoded(IMAGES[1])})
    assert is_whole(load_data(str(path)))
    expected = f"takes {top}train/, the split for training, and leaves out {top}{other}/, {top}preview.png"
    assert notes_of(path) == (expected,)
    assert f"Warning: data {path}: {expected}\n" in capsys.readouterr().err


def test_what_was_left_out_is_said_of_a_set_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ict_backends.data.dataset.CACHED_IMAGES", 1)
    path = write_zip(tmp_path / "x.zip", png_files("train/") | {"test/9.png": encoded(IMAGES[0])})
    for _ in range(2):
        load_data(str(path))
        assert "leaves out test/" in capsys.readouterr().err


def test_splits_without_one_for_training_are_refused(tmp_path: Path, write: Write) -> None:
    files = png_files("test/") | {"val/9.png": encoded(IMAGES[0])}
    check_refused(write(tmp_path / "x", files), "has the splits test, val, none or several for training")


@pytest.mark.parametrize("names", [("train", "bus"), ("test", "a"), ("training", "b")])
def test_classes_with_such_names_stay_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    files = {f"{name}/0.png": encoded(image) for name, image in zip(names, IMAGES, strict=False)}
    assert load_data(str(write_folder(tmp_path / "x", files))).classes == tuple(sorted(names))


def test_a_labels_file_says_itself_which_images_there_are(tmp_path: Path) -> None:
    files = {"train/0.png": encoded(IMAGES[0]), "test/0.png": encoded(IMAGES[1])}
    labels = {"labels": [["train/0.png", 3], ["test/0.png", 4]]}
    path = write_folder(tmp_path / "x", files | {"dataset.json": json.dumps(labels).encode()})
    assert np.array_equal(load_data(str(path)).labels, [4, 3])


@pytest.mark.parametrize(
    "names", ["data/{}-00000-of-00001.parquet", "{}.parquet", "{}/0000.parquet", "mnist_{}.parquet"]
)
def test_of_tables_those_for_training_are_taken(tmp_path: Path, names: str) -> None:
    for split in ("train", "test", "validation"):
        path = tmp_path / "set" / names.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_parquet(path)
    assert len(load_data(str(tmp_path / "set")).images) == 6
    left = ", ".join(names.format(split) for split in ("test", "validation"))
    assert notes_of(tmp_path / "set") == (f"takes the split train and leaves out {left}",)
    (tmp_path / "set" / names.format("train")).unlink()
    check_refused(tmp_path / "set", "has the splits test, validation, none or several for training")
    (tmp_path / "set" / names.format("test")).unlink()
    assert len(load_data(str(tmp_path / "set")).images) == 6  # a single split was meant


def test_images_beside_tables_are_left_out_and_tables_without_images_too(tmp_path: Path) -> None:
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = write_folder(tmp_path / "tables", {"preview.png": encoded(IMAGES[0])})
    write_parquet(folder / "x.parquet")
    assert np.array_equal(load_data(str(folder)).images, IMAGES)
    assert notes_of(folder) == ("takes the Parquet files and leaves out 1 image files beside them",)
    folder = write_folder(tmp_path / "images", png_files())
    pq.write_table(pyarrow.table({"caption": ["a"]}), folder / "captions.parquet")
    assert is_whole(load_data(str(folder)))
    assert "leaves out captions.parquet, no table of images" in notes_of(folder)


# --- what this software wrote ----------------------------------------------------------------------------------------


def test_pictures_runs_and_samples_in_a_folder_are_no_images_of_it(tmp_path: Path, write: Write) -> None:
    ours = {
        "contact-sheet.png": encode_png(IMAGES[0].transpose(1, 2, 0)),  # as earlier versions wrote it
        "grid.png": encode_picture(IMAGES[0].transpose(1, 2, 0)),
        "a/edited.png": encode_picture(IMAGES[0].transpose(1, 2, 0)),
        "runs/one/config.toml": b"",
        "runs/one/checkpoints/step_00000001/state.json": b"{}",
        "runs/one/samples/step_00000001.png": encoded(IMAGES[0]),
        "runs/new/.lock": b"process 1 on x",
        "out/.ict-sample.json": b"{}",
        "out/000000.png": encoded(IMAGES[0]),
        "study/results.json": b"{}",
        "study/table.md": b"",
        "study/samples.png": encoded(IMAGES[0]),
    }
    path = write(tmp_path / "x", png_files() | ours)
    assert is_whole(load_data(str(path)))
    (note,) = notes_of(path)
    assert note.startswith("leaves out what ict wrote there: a/edited.png, contact-sheet.png, grid.png and ")


def test_samples_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    files = {f"{i:06d}.png": encoded(image) for i, image in enumerate(IMAGES)} | {".ict-sample.json": b"{}"}
    assert np.array_equal(load_data(str(write_folder(tmp_path / "samples", files))).images, IMAGES)


def test_every_picture_is_marked(tmp_path: Path) -> None:
    """Also those of matplotlib; and no mark lies in an image that is sampled for itself."""
    from ict_backends.data.ours import HEAD, is_our_picture
    from ict_backends.reports.figures import plot_rows

    save_grid(tmp_path / "grid.png", IMAGES)
    pytest.importorskip("matplotlib")
    plot_rows({"a": IMAGES.transpose(0, 2, 3, 1)}, tmp_path / "rows.png")
    for name in ("grid.png", "rows.png"):
        assert is_our_picture((tmp_path / name).read_bytes()[:HEAD]), name
    assert not is_our_picture(encode_png(IMAGES[0].transpose(1, 2, 0))[:HEAD])


# --- links, systems, and files of other kinds ------------------------------------------------------------------------


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", png_files())
    (tmp_path / "x" / "deep").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "x" / "deep" / name).symlink_to(tmp_path / "elsewhere" / name)
    assert is_whole(load_data(str(tmp_path / "x")))
    (tmp_path / "y").symlink_to(tmp_path / "x")
    assert is_whole(load_data(str(tmp_path / "y")))


@pytest.mark.parametrize("target", [".", "a", ".."])
def test_a_folder_that_is_there_twice_is_refused(tmp_path: Path, target: str) -> None:
    folder = write_folder(tmp_path / "x", png_files())
    (folder / "b" / "link").symlink_to((folder / target).resolve())
    check_refused(folder, "once more, by a link, so that images would be there twice")


def test_a_link_to_nothing_is_said(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "x", png_files())
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    assert is_whole(load_data(str(folder)))
    assert notes_of(folder) == ("leaves out files that are no images: 1 without a suffix",)


def test_links_in_a_tar_are_said(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", png_files())
    (tmp_path / "x" / "more").symlink_to("a")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x", ".")
    assert is_whole(load_data(str(tmp_path / "x.tar")))
    assert notes_of(tmp_path / "x.tar") == ("leaves out links, which are not followed in archives: more",)


def test_folders_of_systems_are_left_out(tmp_path: Path, write: Write) -> None:
    more = {f"{name}/a/0.png": encoded(IMAGES[0]) for name in ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN")}
    assert is_whole(load_data(str(write(tmp_path / "x", png_files() | more | {"a/@eaDir/0.png": b"x"}))))


def test_files_of_other_kinds_are_counted(tmp_path: Path, write: Write) -> None:
    files = png_files() | {"a/1.heic": b"x", "a/2.HEIC": b"x", "b/scan": b"x", "b/notes.txt": b"x", "list.csv": b"x"}
    path = write(tmp_path / "x", files)
    assert is_whole(load_data(str(path)))
    assert notes_of(path) == ("leaves out files that are no images: 2 .heic, 1 without a suffix",)
    check_refused(write(tmp_path / "y", {"1.heic": b"x"}), r"holds no images \(.*; it leaves out .* 1 .heic")


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        ("jfif", "JPEG"),
        ("jpe", "JPEG"),
        ("JPG", "JPEG"),
        ("pgm", "PPM"),
        ("pnm", "PPM"),
        ("avif", "AVIF"),
        ("dib", "DIB"),
    ],
)
def test_more_suffixes_are_read(tmp_path: Path, suffix: str, kind: str) -> None:
    if kind == "AVIF":
        from PIL import features

        if not features.check("avif"):
            pytest.skip("this Pillow was built without AVIF")
    smooth = np.linspace(0, 255, 3 * 64).reshape(3, 8, 8).astype(np.uint8)
    path = write_folder(tmp_path / "x", {f"0.{suffix}": encoded(smooth, kind)})
    assert np.abs(load_data(str(path)).images[0].astype(int) - smooth).max() < 40


def test_images_beside_class_folders_are_said_to_take_the_classes_away(tmp_path: Path, write: Write) -> None:
    path = write(tmp_path / "x", png_files() | {"z.png": encoded(IMAGES[0])})
    assert load_data(str(path)).labels is None
    assert notes_of(path) == ("it has no classes: z.png lies beside its folders",)


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_that_are_no_text_are_shown_escaped(tmp_path: Path) -> None:
    files = {f"{name}/0.png".encode("latin1"): encoded(image) for name, image in zip("é\x1b", IMAGES, strict=False)}
    for name, content in files.items():
        place = os.fsencode(tmp_path / "x") + b"/" + name
        os.makedirs(os.path.dirname(place))
        Path(os.fsdecode(place)).write_bytes(content)
    shutil.make_archive(str(tmp_path / "x"), "tar", tmp_path / "x")
    for path in (tmp_path / "x", tmp_path / "x.tar"):
        assert load_data(str(path)).classes == ("\\x1b", "\\xe9")
    found = find_data(str(tmp_path / "x"))
    assert isinstance(found, Located)
    assert all(name.isprintable() and name.isascii() for name in found.open().names)


def test_utf8_names_in_a_zip_without_the_flag(tmp_path: Path) -> None:
    """As many programs write them: they are those of the folder."""
    path = write_zip(tmp_path / "x.zip", {"XX/0.png": encoded(IMAGES[0]), "b/0.png": encoded(IMAGES[1])})
    path.write_bytes(path.read_bytes().replace(b"XX/0.png", "é/0.png".encode()))
    assert load_data(str(path)).classes == ("b", "é")


# --- labels ----------------------------------------------------------------------------------------------------------


def labels_in_npz(path: Path, labels: object) -> Path:
    np.savez(path / "x.npz", images=IMAGES, labels=np.array(labels))
    return path / "x.npz"


def labels_in_parquet(path: Path, labels: object, column: str = "label") -> Path:
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = [encoded(image) for image in IMAGES]
    pq.write_table(pyarrow.table({"image": images, column: labels}), path / "x.parquet", row_group_size=2)
    return path / "x.parquet"


def labels_in_json(path: Path, labels: list) -> Path:
    listed = {"labels": [[f"{name}.png", label] for name, label in zip(NAMES, labels, strict=True)]}
    return write_folder(path / "x", png_files() | {"dataset.json": json.dumps(listed).encode()})


def labels_in_cls_files(path: Path, labels: list) -> Path:
    files = {f"{i:03d}.img.png": encoded(image) for i, image in enumerate(IMAGES)}
    texts = {f"{i:03d}.cls": f"{label}\n".encode() for i, label in enumerate(labels)}
    return write_tar(path / "x.tar", files | texts | {f"{i:03d}.json": b"{}" for i in range(6)})


LABELLED = pytest.mark.parametrize(
    "write_labels", [labels_in_npz, labels_in_parquet, labels_in_json, labels_in_cls_files]
)


@LABELLED
def test_names_are_numbered_in_their_order(tmp_path: Path, write_labels: Callable[[Path, object], Path]) -> None:
    data = load_data(str(write_labels(tmp_path, ["dog", "cat", "dog", "eel", "cat", "dog"])))
    assert data.classes == ("cat", "dog", "eel")
    assert np.array_equal(data.labels, [1, 0, 1, 2, 0, 1])
    assert data.labels.dtype == np.int64


@LABELLED
@pytest.mark.parametrize("missing", [-1, None])
def test_missing_labels_are_said_and_give_no_classes(
    tmp_path: Path, write_labels: Callable, missing: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing is None and write_labels not in (labels_in_parquet, labels_in_json):
        pytest.skip("the format has no missing labels")
    data = load_data(str(write_labels(tmp_path, [0, 1, missing, 1, 0, missing])))
    assert data.labels is None
    assert "it has no classes: 2 of 6 labels are -1 or missing" in capsys.readouterr().err


@LABELLED
@pytest.mark.parametrize(("odd", "says"), [(-2, "not -2"), (10**12, "not 1000000000000; ids of records")])
def test_labels_that_are_none_are_refused(tmp_path: Path, write_labels: Callable, odd: int, says: str) -> None:
    check_refused(write_labels(tmp_path, [0, 1, 2, 0, 1, odd]), f"must be in 0..999999, {says}")


def test_categories_and_truth_values_are_labels(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    names = pyarrow.array(["b", "a", "b", "a", "b", "a"]).dictionary_encode()
    data = load_data(str(labels_in_parquet(tmp_path, names, "category")))
    assert data.classes == ("a", "b")
    assert np.array_equal(data.labels, [1, 0, 1, 0, 1, 0])
    data = load_data(str(labels_in_parquet(tmp_path, [True, False] * 3, "cls")))
    assert np.array_equal(data.labels, [1, 0] * 3)
    assert np.array_equal(load_data(str(labels_in_npz(tmp_path, [True, False] * 3))).labels, [1, 0] * 3)


def test_a_column_that_is_no_label_is_named(tmp_path: Path) -> None:
    path = labels_in_parquet(tmp_path, [[0.5]] * 6)
    assert load_data(str(path)).labels is None
    assert notes_of(path)[0].startswith("it has no classes: none of label (list<")


def test_names_over_several_tables_are_numbered_together(tmp_path: Path) -> None:
    for i, name in enumerate("ba"):
        (tmp_path / "set" / str(i)).mkdir(parents=True)
        labels_in_parquet(tmp_path / "set" / str(i), [name] * 6)
    data = load_data(str(tmp_path / "set"))
    assert data.classes == ("a", "b")
    assert np.array_equal(data.labels, [1] * 6 + [0] * 6)


def test_an_image_without_its_class_file_is_refused(tmp_path: Path) -> None:
    files = {"0.png": encoded(IMAGES[0]), "1.png": encoded(IMAGES[1]), "0.cls": b"3"}
    check_refused(write_tar(tmp_path / "x.tar", files), r"1.png has no .cls file, .* \(1 of 2\)")


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def test_images_that_a_set_names_by_path(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = write_folder(tmp_path / "set", png_files())
    assert is_whole(load_data(f"hf:{folder}"))


def test_a_path_out_of_the_set_is_not_followed(tmp_path: Path) -> None:
    datasets, pyarrow = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    (tmp_path / "secret.png").write_bytes(encoded(IMAGES[0]))
    rows = [{"bytes": None, "path": str(tmp_path / "secret.png")}]
    table = pyarrow.table({"image": pyarrow.array(rows, pyarrow.struct({"bytes": pyarrow.binary(), "path": "string"}))})
    datasets.Dataset(table).save_to_disk(str(tmp_path / "set"))
    check_refused(tmp_path / "set", "secret.png cannot be read: it lies outside of the data set")


def test_splits_of_a_saved_set_are_said(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [encoded(image) for image in IMAGES], "label": LABELS}
    table = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"train": table, "test": table}).save_to_disk(str(tmp_path / "set"))
    assert len(load_data(str(tmp_path / "set")).images) == 6
    assert notes_of(tmp_path / "set") == ("takes the split train and leaves out test",)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"inputs that failed are not here: {CASES}")
def test_a_configuration_can_be_named() -> None:
    pytest.importorskip("datasets")
    folder = CASES / "F14_hf_two_configs"
    assert len(load_data(f"hf:{folder}:big:train").images) == 4
    check_refused(folder, "has several configurations: big, small")
    check_refused(f"hf:{folder}", "has several configurations: big, small; give hf:.*:ONE:train")


# --- downsampled ImageNet --------------------------------------------------------------------------------------------


def imagenet_pickles(numbers: range) -> dict[str, bytes]:
    """Batches as they are published: one image each, of label number."""
    batches = {}
    for i in numbers:
        rows = IMAGES[i % 6].reshape(1, -1)
        batches[f"train_data_batch_{i}"] = python2_pickle({"data": rows, "labels": [i], "mean": rows.mean(0)})
    return batches


def imagenet_npz(numbers: range, folder: Path) -> dict[str, bytes]:
    files = {}
    for i in numbers:
        path = write_imagenet(folder / f"{i}.npz", IMAGES[i % 6][None], np.array([i]))
        files[f"train_data_batch_{i}.npz"] = path.read_bytes()
        path.unlink()
    return files


@pytest.mark.parametrize("packed", ["folder", "one folder down", "zip", "two zips"])
@pytest.mark.parametrize("kind", ["pickles", "npz"])
def test_imagenet_as_it_is_published(tmp_path: Path, kind: str, packed: str) -> None:
    files = imagenet_pickles(range(1, 11)) if kind == "pickles" else imagenet_npz(range(1, 11), tmp_path)
    if packed == "zip":
        path = write_zip(tmp_path / "Imagenet8_train.zip", {f"Imagenet8_train/{n}": c for n, c in files.items()})
    elif packed == "two zips":
        path = tmp_path / "both"
        path.mkdir()
        for part in (1, 2):
            inside = dict(list(files.items())[5 * part - 5 : 5 * part])
            write_zip(path / f"Imagenet8_train_part{part}.zip", inside)
    else:
        top = "Imagenet8_train/" if packed == "one folder down" else ""
        path = write_folder(tmp_path / "set", {f"{top}{n}": c for n, c in files.items()})
    data = load_data(str(path))
    assert np.array_equal(data.labels, range(10))
    assert np.array_equal(data.images, IMAGES[np.arange(1, 11) % 6])
    assert notes_of(path) == ()


def test_a_single_pickled_batch_and_missing_ones(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", imagenet_pickles(range(1, 4)))
    assert len(load_data(str(folder)).images) == 3
    assert notes_of(folder) == ("has 3 of the 10 batches: 4, 5, 6, 7, 8, 9, 10 are missing",)
    assert np.array_equal(load_data(str(folder / "train_data_batch_2")).labels, [1])


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"data": IMAGES.reshape(6, -1), "labels": [1] * 5}, r"`data` must be \[5, 3 s s\]"),
        ({"data": IMAGES.reshape(6, -1), "labels": [0] * 6}, "in 1..1000"),
        ({"data": IMAGES.reshape(6, -1), "labels": [10**20] * 6}, "in 1..1000"),
        ({"labels": [1] * 6}, "is no batch of ImageNet"),
        ([], "is no batch of images"),
    ],
)
def test_a_pickle_that_is_no_batch_is_refused(tmp_path: Path, batch: object, says: str) -> None:
    (tmp_path / "train_data_batch_1").write_bytes(pickle.dumps(batch, protocol=2))
    check_refused(tmp_path / "train_data_batch_1", says)


def test_a_batch_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    files = imagenet_pickles(range(1, 2)) | imagenet_npz(range(1, 2), tmp_path)
    check_refused(write_folder(tmp_path / "set", files), "has batch 1 twice")


# --- the inputs that failed ------------------------------------------------------------------------------------------

FAILED: dict[str, int] = {
    "F01_root_dot.tar": 6,
    "F04_imagefolder_for_hf": 12,
    "F05_zip64_sentinel_count.zip": 6,
    "F06_hub_snapshot": 8,
    "F07_parquet_and_preview": 12,
    "F10_non_utf8_folder.tar": 6,
    "F12_string_label.parquet": 12,
}


@pytest.mark.skipif(not CASES.is_dir(), reason=f"inputs that failed are not here: {CASES}")
@pytest.mark.parametrize("name", FAILED)
def test_an_input_that_failed_is_read(name: str) -> None:
    data = load_data(str(CASES / name))
    assert len(data.images) == FAILED[name]
    assert data.labels is not None
    assert len(data.classes) > data.labels.max()
    assert all(classname.isprintable() for classname in data.classes)


@pytest.mark.skipif(not CASES.is_dir(), reason=f"inputs that failed are not here: {CASES}")
def test_pictures_that_failed_are_read(tmp_path: Path) -> None:
    for name in ("F09_bad_exif.png", "g16_miniswhite.tif", "g16_trns0.png", "g2_trns1.png"):
        (tmp_path / name).mkdir()
        shutil.copy(CASES / name, tmp_path / name / name)
        assert len(load_data(str(tmp_path / name)).images) == 1
    check_refused(CASES / "biglabel.npz", "ids of records are no classes")


# --- claims ----------------------------------------------------------------------------------------------------------


def test_small_files_that_unpack_to_much_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ict_backends.data.limits.FREE_BYTES", 2**16)
    bomb = {"a.bmp": bytes(2**22)}
    for path in (
        write_zip(tmp_path / "x.zip", bomb),
        write_zip(tmp_path / "y.zip", bomb, zipfile.ZIP_BZIP2),
        write_tar(tmp_path / "x.tar.bz2", bomb, "bz2"),
        write_tar(tmp_path / "x.tar.gz", bomb, "gz"),
    ):
        check_refused(path, "is refused: it unpacks to 4 MiB, more than 200 times its size")
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pyarrow.table({"image": [bytes(2**22)] * 2}), tmp_path / "x.parquet", compression="zstd")
    check_refused(tmp_path / "x.parquet", "is refused: it unpacks to 4 MiB")


def test_a_tar_whose_end_does_not_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ict_backends.data.tar._PADDING", 2**21)
    tar = write_tar(tmp_path / "x.tar", png_files()).read_bytes()
    (tmp_path / "x.tar").write_bytes(bz2.compress(tar + bytes(2**20)))
    assert is_whole(load_data(str(tmp_path / "x.tar")))
    (tmp_path / "x.tar").write_bytes(bz2.compress(tar + bytes(2**23)))
    check_refused(tmp_path / "x.tar", "more than 2,097,152 zeros follow its end")


def test_a_table_that_repeats_one_value_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ict_backends.data.limits.FREE_BYTES", 2**20)
    pyarrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    picture = encoded(np.zeros((3, 256, 256), np.uint8), "BMP")
    pq.write_table(pyarrow.table({"image": [picture] * 300}), tmp_path / "x.parquet", compression="zstd")
    check_refused(tmp_path / "x.parquet", "is refused: it unpacks to")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_what_describes_a_member_is_bounded(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 2**32
    (tmp_path / "x.tar").write_bytes(info.tobuf() + bytes(2048))
    check_refused(tmp_path / "x.tar", "claims to have 4,294,967,296 bytes")


def test_members_of_a_zip_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"a.png": encoded(IMAGES[0]), "b.png": encoded(IMAGES[0])})
    content = bytearray(path.read_bytes())
    second = content.rfind(b"PK\1\2")
    content[second + 42 : second + 46] = bytes(4)  # where it says that the second member begins
    path.write_bytes(content)
    check_refused(path, "share bytes")


def test_a_pickle_claims_no_memory(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", imagenet_pickles(range(1, 2)))
    (folder / "train_data_batch_1").write_bytes(b"\x80\x05" + pickle.BYTEARRAY8 + (2**40).to_bytes(8, "little"))
    check_refused(folder, "it holds a bytearray, which no batch of images needs")


# Numbers of one hash, 0: each would be compared with all before it.
ALIKE = [i * (2**61 - 1) for i in range(1, 100_001)]
ALIKE_VALUES = [b"\x8a\x0a" + number.to_bytes(10, "little") for number in ALIKE]
DEEP = b")" + b"\x85" * 400_000
SLOW = {
    "keys of one hash": (b"}(" + b"".join(value + b"N" for value in ALIKE_VALUES) + b"u.", "more than 1,000 keys"),
    "one by one": (b"}" + b"".join(value + b"Ns" for value in ALIKE_VALUES) + b".", "more than 1,000 keys"),
    "at once": (b"(" + b"".join(value + b"N" for value in ALIKE_VALUES) + b"d.", "more than 1,000 keys"),
    "a set": (b"\x8f(" + b"".join(ALIKE_VALUES) + b"\x90.", "it holds a set"),
    "a frozen set": (b"(" + b"".join(ALIKE_VALUES) + b"\x91.", "it holds a set"),
    "numbered values": (b"N" + b"".join(b"p%d\n" % number for number in ALIKE) + b".", "it is no dict"),
    "a deep key": (b"}" + DEEP + b"Ns.", "a key is a tuple"),
    "deep keys": (b"}(" + DEEP + b"Nu.", "a key is a tuple"),
    "a deep key at once": (b"(" + DEEP + b"Nd.", "a key is a tuple"),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_pickle_chooses_no_hashes(tmp_path: Path, name: str) -> None:
    content, says = SLOW[name]
    (tmp_path / "train_data_batch_1").write_bytes(b"\x80\x04" + content)
    begin = time.process_time()
    check_refused(tmp_path / "train_data_batch_1", says)
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("name", ["_codecs encode", "numpy ndarray"])
def test_a_pickle_changes_nothing_that_outlasts_it(tmp_path: Path, name: str) -> None:
    """BUILD with a pair of states sets attributes, here the defaults of a function."""
    module, attribute = (f"c{name.split()[0]}\n".encode(), f"{name.split()[1]}\n".encode())
    state = b"(N(dV__defaults__\n(Vutf-8\ntst"
    (tmp_path / "train_data_batch_1").write_bytes(b"\x80\x02" + module + attribute + state + b"b.")
    check_refused(tmp_path / "train_data_batch_1", "it sets the state of what has none")
    assert pickles._encode.__defaults__ == ("latin1",)


def test_images_of_many_pixels_are_decoded_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from ict_backends.data import source
    from ict_backends.data.decode_pool import decoded

    monkeypatch.setattr(source, "_HELD", 500)
    contents = [encoded(image) for image in IMAGES]
    sizes = []

    def counted(chunk: source.Chunk) -> list:
        done = source.decode_chunk(chunk)
        sizes.append(len(done))
        return done

    monkeypatch.setattr("ict_backends.data.decode_pool.decode_chunk", counted)
    read = source.Source("x", list("abcdef"), None, (), lambda: iter(enumerate(contents)))
    assert np.array_equal(np.stack([image for _, image in decoded(read, None)]), IMAGES)
    assert sizes == [3, 3]


def test_a_size_that_no_image_has_is_refused_before_memory_is_asked_for() -> None:
    from ict_core import ConfigError
    from ict_core.settings import build_config

    with pytest.raises(ConfigError, match=r"data.size must be >= 2 and <= 4096 \(or 0: as they are\), .* not 60000"):
        build_config({"data": {"size": 60000, "shape": [3, 8, 8]}})


def test_pillow_refuses_none_of_the_new_formats_by_itself() -> None:
    """So that a format in docs/data.md can be opened at all."""
    Image.init()
    from ict_backends.data.decode import _FORMATS

    assert set(_FORMATS) - {"AVIF"} <= set(Image.OPEN)
