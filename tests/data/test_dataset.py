"""Reading images: what is accepted, in which order, and the one-line refusals."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ict_backends.data.dataset import load_data
from ict_backends.errors import DataError, UsageError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


def write_images(folder: Path, images: Mapping[str, np.ndarray], suffix: str = ".png") -> Path:
    for name, image in images.items():
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def test_the_digits_are_the_real_ones() -> None:
    from sklearn.datasets import load_digits

    data, truth = load_data("digits"), load_digits()
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.images.dtype == np.uint8
    assert np.array_equal(data.labels, truth.target)
    assert np.abs(data.images[:, 0] / 255 - truth.images / 16).max() <= 0.5 / 255
    assert len(np.unique(data.images)) == 17


def test_arrays_of_every_layout_give_the_same_images(tmp_path: Path) -> None:
    labels = np.arange(5)
    np.savez(tmp_path / "nhwc.npz", images=RGB, labels=labels)
    np.savez(tmp_path / "field.npz", RGB, labels)
    np.savez(tmp_path / "nchw.npz", images=RGB.transpose(0, 3, 1, 2))
    np.save(tmp_path / "plain.npy", RGB)
    for name in ("nhwc.npz", "field.npz", "nchw.npz", "plain.npy"):
        data = load_data(str(tmp_path / name))
        assert np.array_equal(data.images, RGB.transpose(0, 3, 1, 2)), name
        assert (data.labels is None) == (name in ("nchw.npz", "plain.npy"))
    np.save(tmp_path / "grey.npy", RGB[..., 0])
    assert np.array_equal(load_data(str(tmp_path / "grey.npy")).images, RGB[:, None, :, :, 0])


def test_a_flat_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write_images(tmp_path, {f"{i}": image for i, image in enumerate(RGB)})
    (tmp_path / "notes.txt").write_text("not an image")
    data = load_data(str(tmp_path))
    assert np.array_equal(data.images, RGB.transpose(0, 3, 1, 2))
    assert data.labels is None


def test_folders_are_classes(tmp_path: Path) -> None:
    write_images(tmp_path, {"cat/1": RGB[0], "cat/deep/2": RGB[1], "ant/3": RGB[2]})
    data = load_data(str(tmp_path))
    assert np.array_equal(data.labels, [0, 1, 1])
    assert np.array_equal(data.images[0], RGB[2].transpose(2, 0, 1))


def test_grey_images_stay_grey_and_palettes_become_rgb(tmp_path: Path) -> None:
    grey = RGB[..., 0]
    assert load_data(str(write_images(tmp_path / "grey", {"a": grey[0]}))).shape == (1, 4, 4)
    folder = tmp_path / "palette"
    folder.mkdir()
    Image.fromarray(RGB[0]).quantize(4).save(folder / "a.png")
    assert load_data(str(folder)).shape == (3, 4, 4)


def broken(tmp_path: Path, name: str) -> Path:
    path = tmp_path / name
    match name:
        case "empty":
            path.mkdir()
        case "sizes":
            write_images(path, {"a": RGB[0], "b": RGB[1, :3]})
        case "truncated":
            write_images(path, {"a": RGB[0]})
            file = path / "a.png"
            file.write_bytes(file.read_bytes()[:60])
        case "text":
            path.mkdir()
            (path / "a.png").write_text("no image")
        case "float.npy":
            np.save(path, RGB / 255)
        case "wide.npy":
            np.save(path, np.zeros((2, 4, 4, 7), np.uint8))
        case "none.npy":
            np.save(path, RGB[:0])
        case "objects.npy":
            np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        case "cut.npz":
            np.savez(path, images=RGB)
            path.write_bytes(path.read_bytes()[:100])
        case "garbage.npz":
            path.write_bytes(b"garbage")
        case "zero.npy":
            path.write_bytes(b"")
        case "names.npz":
            np.savez(path, pictures=RGB)
        case "labels.npz":
            np.savez(path, images=RGB, labels=np.arange(3))
        case "halves.npz":
            np.savez(path, images=RGB, labels=np.arange(5) / 2)
        case "x.csv":
            path.write_text("1,2")
    return path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "does not exist"),
        ("empty", "holds no images"),
        ("sizes", "a.png is 4x4 RGB and b.png is 3x4 RGB"),
        ("truncated", "a.png cannot be read"),
        ("text", "a.png cannot be read"),
        ("float.npy", "must be uint8.*not float64"),
        ("wide.npy", r"not \[2, 4, 4, 7\]"),
        ("none.npy", "holds no images"),
        ("objects.npy", "plain arrays"),
        ("cut.npz", "not a readable .npz"),
        ("garbage.npz", "not a readable .npz"),
        ("zero.npy", "not a readable .npy"),
        ("names.npz", "it has pictures"),
        ("labels.npz", r"\[5\] integers.*not \[3\]"),
        ("halves.npz", "integers.*float64"),
        ("x.csv", "unknown kind"),
    ],
)
def test_unusable_data_is_refused_in_one_line(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        load_data(str(broken(tmp_path, name)))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match=r"ict\[digits\]"):
        load_data("digits")
