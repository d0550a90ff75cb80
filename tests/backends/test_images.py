"""Pictures and figures of merit."""

import io

import numpy as np
import pytest
from ict_backends.files import write_atomically
from ict_backends.images import encode_png, grid, save_folder, save_npz, to_float, to_uint8
from ict_backends.metrics import frechet_distance, halves_distances
from PIL import Image


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image)


def test_uint8_and_floats_are_inverse():
    values = np.arange(256, dtype=np.uint8)
    floats = to_float(values)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (-1.0, 1.0)
    assert np.array_equal(to_uint8(floats), values)
    assert np.array_equal(to_uint8(np.float32([-2, 2])), [0, 255])


def test_a_grid_shows_every_image_enlarged_in_rows():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 8, 8), np.uint8)
    picture = grid(images)
    assert picture.shape == (2 * 9 * 4, 3 * 9 * 4, 3)
    assert [picture[r * 36, c * 36, 0] for r, c in ((0, 0), (0, 2), (1, 0), (1, 1))] == [0, 2, 3, 4]
    assert (picture[36:, 72:] == 255).all()
    assert grid(np.zeros((1, 1, 64, 64), np.uint8)).shape == (65, 65, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_images(tmp_path, channels):
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


def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a"
    write_atomically(path, b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_frechet_distance_of_known_gaussians():
    """Against the closed form for diagonal covariances, on sets built to have them exactly."""
    rng = np.random.default_rng(0)

    def exactly(mean, std):
        x = rng.standard_normal((500, len(mean)))
        x -= x.mean(axis=0)
        x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
        return x * std + mean

    a, b = exactly([0.0, 1.0, 2.0], [1.0, 2.0, 0.5]), exactly([1.0, 1.0, 0.0], [3.0, 2.0, 0.1])
    assert frechet_distance(a, b) == pytest.approx((1 + 4) + (4 + 0 + 0.16), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_rotated_gaussians_matches_the_matrix_root():
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((400, 5)) @ rng.standard_normal((5, 5)) for _ in range(2))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_handles_constant_pixels_and_halves_repeat():
    data = np.random.default_rng(2).standard_normal((50, 4)) * [1, 0, 1, 0]
    assert np.isfinite(frechet_distance(data, data[:10]))
    assert halves_distances(data) == halves_distances(data)
