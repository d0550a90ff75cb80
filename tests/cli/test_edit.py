"""`ict edit`: what is known stays, in the files that are written; wrong input is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

LUMA = np.array([0.299, 0.587, 0.114])


def save(path: Path, pixels: np.ndarray) -> Path:
    """[h, w] or [h, w, 3] uint8 as a PNG."""
    Image.fromarray(pixels).save(path)
    return path


def load(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.fixture
def photo(tmp_path) -> Path:
    return save(tmp_path / "photo.png", np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def mask(tmp_path) -> Path:
    """The lower half is to be filled in."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[4:] = 255
    return save(tmp_path / "mask.png", pixels)


FAST = ("--steps", 3, "--device", "cpu")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_inpainting_keeps_the_black_part_of_the_mask(ict, tmp_path, rgb_run, photo, mask, backend):
    out = tmp_path / "deep" / "x.png"
    done = ict("edit", "inpaint", rgb_run, "--image", photo, "--mask", mask, "--out", out, "--backend", backend, *FAST)
    assert (done.code, done.err) == (0, "")
    np.testing.assert_array_equal(load(out)[:4], load(photo)[:4])
    assert np.abs(load(out)[4:] - load(photo)[4:]).max() > 20
    beside = load(tmp_path / "deep" / "x-side-by-side.png")
    assert beside.shape == (9 * 4, 3 * 9 * 4, 3)  # input, what was seen, result, enlarged
    np.testing.assert_array_equal(beside[16:32, 36:68], np.full((16, 32, 3), 128))
    other = tmp_path / "y.png"
    for changed in (("--seed", 1), ("--sigmas", "80,1")):
        arguments = ("--image", photo, "--mask", mask, "--out", other, "--device", "cpu", *changed)
        assert ict("edit", "inpaint", rgb_run, *arguments).code == 0
        assert (load(other) != load(out)).any()


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("inpaint", ("--steps", 3)),
        ("colorize", ("--steps", 3)),
        ("super-resolve", ("--steps", 3, "--factor", 2)),
        ("denoise", ("--sigma", 0.3, "--add-noise")),
        ("stroke", ("--steps", 3)),
    ],
)
def test_both_backends_make_the_same(ict, tmp_path, rgb_run, photo, mask, task, options):
    found = []
    for backend in ("torch", "jax"):
        out = tmp_path / f"{backend}.png"
        arguments = ("--image", photo, "--out", out, "--backend", backend, "--device", "cpu", *options)
        arguments += ("--mask", mask) if task == "inpaint" else ()
        done = ict("edit", task, rgb_run, *arguments)
        assert (done.code, done.err) == (0, "")
        found.append(load(out))
    np.testing.assert_allclose(*found, atol=1)  # a grey level, where a value lies between two


def test_colours_change_and_luma_stays(ict, tmp_path, rgb_run, photo):
    out = tmp_path / "x.png"
    assert ict("edit", "colorize", rgb_run, "--image", photo, "--out", out, *FAST).code == 0
    np.testing.assert_allclose(load(out) @ LUMA, load(photo) @ LUMA, atol=0.51)
    assert np.abs(load(out) - load(photo)).max() > 20
    grey = save(tmp_path / "grey.png", np.rint(load(photo) @ LUMA).astype(np.uint8))
    assert ict("edit", "colorize", rgb_run, "--image", grey, "--out", out, *FAST).code == 0
    np.testing.assert_allclose(load(out) @ LUMA, load(grey), atol=0.51)


def test_pixels_become_the_means_of_patches(ict, tmp_path, rgb_run, photo):
    small, out = save(tmp_path / "small.png", load(photo)[:4, :4].astype(np.uint8)), tmp_path / "x.png"
    assert ict("edit", "super-resolve", rgb_run, "--image", small, "--out", out, *FAST).code == 0
    means = load(out).reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(means, load(small), atol=0.51)
    # An image of the model's size is made smaller first.
    arguments = ("--image", photo, "--factor", 4, "--out", out)
    assert ict("edit", "super-resolve", rgb_run, *arguments, *FAST).code == 0
    means, before = (load(p).reshape(2, 4, 2, 4, 3).mean(axis=(1, 3)) for p in (out, photo))
    np.testing.assert_allclose(means, before, atol=0.51)


def test_denoising_and_strokes_depend_on_the_level(ict, tmp_path, rgb_run, photo):
    found = {}
    for task, options in (("denoise", ("--add-noise",)), ("stroke", ("--steps", 2))):
        for sigma in (0.003, 20):
            out = tmp_path / f"{task}-{sigma}.png"
            arguments = ("--image", photo, "--sigma", sigma, "--out", out, "--device", "cpu", *options)
            assert ict("edit", task, rgb_run, *arguments).code == 0
            found[task, sigma] = np.abs(load(out) - load(photo)).mean()
    for task in ("denoise", "stroke"):
        assert found[task, 0.003] < 3
        assert found[task, 20] > 20
    arguments = ("--image", photo, "--sigma", 0.003, "--out", tmp_path / "x.png", "--device", "cpu")
    assert ict("edit", "denoise", rgb_run, *arguments).code == 0
    assert np.abs(load(tmp_path / "x.png") - load(photo)).max() <= 2


def test_interpolation_goes_from_one_sample_to_another(ict, tmp_path, digits_run):
    out = tmp_path / "x.png"
    arguments = ("--from", 2, "--to", 5, "--num", 4, "--seed", 3, "--device", "cpu")
    assert ict("edit", "interpolate", digits_run, "--out", out, *arguments).code == 0
    assert ict("sample", digits_run, "--out", tmp_path / "s.npz", "--num", 6, "--seed", 3, "--device", "cpu").code == 0
    strip = load(out)[:32:4]
    tiles = [strip[:, 36 * i : 36 * i + 32 : 4] for i in range(4)]
    with np.load(tmp_path / "s.npz") as file:
        samples = file["arr_0"][..., 0].astype(int)
    np.testing.assert_allclose(tiles[0], samples[2], atol=1)
    np.testing.assert_allclose(tiles[3], samples[5], atol=1)
    assert len({tile.tobytes() for tile in tiles}) == 4


def test_several_images_and_classes(ict, tmp_path, labelled_run, photo, mask):
    arguments = ("--image", photo, "--image", photo, "--mask", mask, "--out", tmp_path / "x.png", *FAST)
    assert ict("edit", "inpaint", labelled_run, *arguments, "--labels", "0,2").code == 0
    first = load(tmp_path / "x.png")
    assert first.shape == (36, 2 * 36, 3)
    assert ict("edit", "inpaint", labelled_run, *arguments, "--labels", "1,2").code == 0
    second = load(tmp_path / "x.png")
    assert (first[:, :36] != second[:, :36]).any()
    np.testing.assert_allclose(first[:, 36:], second[:, 36:], atol=1)
    out = ("--out", tmp_path / "i.png", "--device", "cpu")
    strips = []
    for label in (0, 2):
        assert ict("edit", "interpolate", labelled_run, "--label", label, *out).code == 0
        strips.append(load(tmp_path / "i.png"))
    assert (strips[0] != strips[1]).any()


def test_resize_makes_images_fit(ict, tmp_path, digits_run, rgb_run, mask):
    wide = save(tmp_path / "wide.png", np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    for run, shape in ((digits_run, (8, 8)), (rgb_run, (8, 8, 3))):
        arguments = ("edit", "inpaint", run, "--image", wide, "--mask", mask, "--out", tmp_path / "x.png", *FAST)
        refused = ict(*arguments)
        assert (refused.code, refused.err.count("\n")) == (1, 1)
        assert "wide.png is 30x20 RGB, but 8x8" in refused.err
        assert "--resize" in refused.err
        assert ict(*arguments, "--resize").code == 0
        assert load(tmp_path / "x.png").shape == shape


def test_a_mask_of_another_size_and_kind_is_cut_once(ict, tmp_path, rgb_run, photo):
    """The same in RGB as in grey: the middle square, then resampled."""
    grey = np.zeros((20, 40), np.uint8)
    grey[:, 25:32] = 255
    results = []
    for name, pixels in (("grey", grey), ("rgb", np.stack([grey] * 3, axis=-1))):
        mask = save(tmp_path / f"{name}.png", pixels)
        arguments = ("--image", photo, "--mask", mask, "--resize", "--out", tmp_path / "x.png", *FAST)
        assert ict("edit", "inpaint", rgb_run, *arguments).code == 0
        results.append(load(tmp_path / "x.png"))
    np.testing.assert_array_equal(*results)
    changed = (results[0] != load(photo)).any(axis=(0, 2))
    # The stripe is at 15 to 22 of the 20 columns in the middle: the last two of eight.
    assert changed.tolist() == [False] * 6 + [True] * 2


def test_wrong_input_is_one_line_and_leaves_nothing(ict, tmp_path, digits_run, rgb_run, photo, mask):
    white = save(tmp_path / "white.png", np.full((8, 8), 255, np.uint8))
    large = save(tmp_path / "large.png", np.zeros((9, 9), np.uint8))
    odd = save(tmp_path / "odd.png", np.zeros((3, 3, 3), np.uint8))
    text = tmp_path / "text.png"
    text.write_text("no picture")
    image, masked = ("--image", photo), ("--image", photo, "--mask", mask)
    cases = [
        (1, "is all white", ("inpaint", rgb_run, *image, "--mask", white)),
        (1, "--mask", ("inpaint", rgb_run, *image, "--mask", large)),
        (1, "cannot be read", ("inpaint", rgb_run, *image, "--mask", text)),
        (1, "cannot be read", ("inpaint", rgb_run, "--image", text, "--mask", mask)),
        (1, "cannot be read", ("inpaint", rgb_run, "--image", tmp_path / "none.png", "--mask", mask)),
        (2, "mask", ("inpaint", rgb_run, *image)),
        (2, "image", ("inpaint", rgb_run, "--mask", mask)),
        (2, "must end in .png", ("inpaint", rgb_run, *masked, "--out", tmp_path / "x.jpg")),
        (2, "is a folder", ("inpaint", rgb_run, *masked, "--out", tmp_path / "folder.png")),
        (2, "--steps", ("inpaint", rgb_run, *masked, "--steps", 0)),
        (2, "--sigmas", ("inpaint", rgb_run, *masked, "--sigmas", "1,2")),
        (2, "exclude each other", ("inpaint", rgb_run, *masked, "--steps", 2, "--sigmas", "80,2")),
        (2, "unconditional", ("inpaint", rgb_run, *masked, "--labels", "1")),
        (2, "unknown backend", ("inpaint", rgb_run, *masked, "--backend", "numpy")),
        (1, "does not exist", ("inpaint", tmp_path / "none", *masked)),
        (2, "needs a model of RGB images", ("colorize", digits_run, "--image", mask)),
        (2, "by --factor how small", ("super-resolve", rgb_run, *image)),
        (2, "--factor 3 must divide", ("super-resolve", rgb_run, *image, "--factor", 3)),
        (1, "it must be 4x4 RGB", ("super-resolve", rgb_run, "--image", odd)),
        (1, "it must be 2x2 RGB", ("super-resolve", rgb_run, "--image", odd, "--factor", 4)),
        (2, "--sigma 0 must be in (0.002, 80]", ("denoise", rgb_run, *image, "--sigma", 0)),
        (2, "--sigma 81 must be in (0.002, 80]", ("stroke", rgb_run, *image, "--sigma", 81)),
        (2, "are the same image", ("interpolate", rgb_run, "--from", 1)),
        (2, "unconditional", ("interpolate", rgb_run, "--label", 1)),
    ]
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for code, says, arguments in cases:
        out = () if "--out" in arguments else ("--out", tmp_path / "made" / "x.png")
        done = ict("edit", *arguments, *out)
        assert (done.code, done.err.count("\n")) == (code, 1), (arguments, done.err)
        assert says in done.err, (says, done.err)
    assert sorted(tmp_path.rglob("*")) == before
