"""Pictures and figures of merit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ict_backends.errors import NonFiniteError
from ict_backends.files import write_atomically
from ict_backends.images import encode_png, save_folder, save_npz, tile, to_float, to_uint8


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_uint8_and_floats_are_inverse() -> None:
    values = np.arange(256, dtype=np.uint8)
    floats = to_float(values)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (-1.0, 1.0)
    assert np.array_equal(to_uint8(floats), values)
    assert np.array_equal(to_uint8(np.float32([-2, 2])), [0, 255])
    between = np.float32([-2.0, -1.0, -0.999, 0.0, 0.999, 1.0, 2.0])
    assert np.array_equal(to_uint8(between, truncate=True), [0, 0, 0, 127, 254, 255, 255])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_become_no_picture(value: float) -> None:
    images = np.zeros((2, 1, 4, 4), dtype=np.float32)
    images[1, 0, 2, 2] = value
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        to_uint8(images)


def test_a_grid_shows_every_image_enlarged_in_rows() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 8, 8), np.uint8)
    picture = tile(images)
    assert picture.shape == (2 * 9 * 4, 3 * 9 * 4, 3)
    assert [picture[r * 36, c * 36, 0] for r, c in ((0, 0), (0, 2), (1, 0), (1, 1))] == [0, 2, 3, 4]
    assert (picture[36:, 72:] == 255).all()
    assert tile(np.zeros((1, 1, 64, 64), np.uint8)).shape == (65, 65, 1)
    assert np.array_equal(tile(images, scale=4), picture)
    assert np.array_equal(tile(images, scale=1), picture[::4, ::4])
    assert np.array_equal(tile(images, scale=3), picture[::4, ::4].repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_images(tmp_path: Path, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, channels, 4, 4), dtype=np.uint8)
    save_folder(tmp_path / "d", images)
    read = [pixels(p).reshape(4, 4, channels) for p in sorted((tmp_path / "d").iterdir())]
    assert np.array_equal(np.stack(read), images.transpose(0, 2, 3, 1))
    save_npz(tmp_path / "x.npz", images, np.arange(3))
    with np.load(tmp_path / "x.npz") as file:
        assert np.array_equal(file["arr_0"], images.transpose(0, 2, 3, 1))
        assert np.array_equal(file["arr_1"], np.arange(3))
    png = encode_png(images[0].transpose(1, 2, 0))
    assert np.array_equal(pixels(io.BytesIO(png)).reshape(4, 4, channels), read[0])


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]
