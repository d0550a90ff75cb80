"""`ict edit`: what is known stays, in the files that are written; wrong input is refused in one line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
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
def photo(tmp_path: Path) -> Path:
    return save(tmp_path / "photo.png", np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8))


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """The lower half is to be filled in."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[4:] = 255
    return save(tmp_path / "mask.png", pixels)


FAST = ("--steps", 3, "--device", "cpu")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_inpainting_keeps_the_black_part_of_the_mask(
    ict: Ict, tmp_path: Path, rgb_run: Path, photo: Path, mask: Path, backend: str
) -> None:
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
def test_both_backends_make_the_same(
    ict: Ict, tmp_path: Path, rgb_run: Path, photo: Path, mask: Path, task: str, options: tuple
) -> None:
    results = []
    for backend in ("torch", "jax"):
        out = tmp_path / f"{backend}.png"
        arguments = ("--image", photo, "--out", out, "--backend", backend, "--device", "cpu", *options)
        arguments += ("--mask", mask) if task == "inpaint" else ()
        done = ict("edit", task, rgb_run, *arguments)
        assert (done.code, done.err) == (0, "")
        results.append(load(out))
    np.testing.assert_allclose(*results, atol=1)  # a grey level, where a value lies between two


def test_colours_change_and_luma_stays(ict: Ict, tmp_path: Path, rgb_run: Path, photo: Path) -> None:
    out = tmp_path / "x.png"
    assert ict("edit", "colorize", rgb_run, "--image", photo, "--out", out, *FAST).code == 0
    np.testing.assert_allclose(load(out) @ LUMA, load(photo) @ LUMA, atol=0.51)
    assert np.abs(load(out) - load(photo)).max() > 20
    grey = save(tmp_path / "grey.png", np.rint(load(photo) @ LUMA).astype(np.uint8))
    assert ict("edit", "colorize", rgb_run, "--image", grey, "--out", out, *FAST).code == 0
    np.testing.assert_allclose(load(out) @ LUMA, load(grey), atol=0.51)


def test_pixels_become_the_means_of_patches(ict: Ict, tmp_path: Path, rgb_run: Path, photo: Path) -> None:
    small, out = save(tmp_path / "small.png", load(photo)[:4, :4].astype(np.uint8)), tmp_path / "x.png"
    assert ict("edit", "super-resolve", rgb_run, "--image", small, "--out", out, *FAST).code == 0
    means = load(out).reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(means, load(small), atol=0.51)
    # An image of the model's size is made smaller first.
    arguments = ("--image", photo, "--factor", 4, "--out", out)
    assert ict("edit", "super-resolve", rgb_run, *arguments, *FAST).code == 0
    means, before = (load(p).reshape(2, 4, 2, 4, 3).mean(axis=(1, 3)) for p in (out, photo))
    np.testing.assert_allclose(means, before, atol=0.51)


@pytest.mark.parametrize(("task", "options"), [("denoise", ("--add-noise",)), ("stroke", ("--steps", 2))])
def test_denoising_and_strokes_depend_on_the_level(
    ict: Ict, tmp_path: Path, rgb_run: Path, photo: Path, task: str, options: tuple
) -> None:
    differences = []
    for sigma in (0.003, 20):
        out = tmp_path / f"{sigma}.png"
        arguments = ("--image", photo, "--sigma", sigma, "--out", out, "--device", "cpu", *options)
        assert ict("edit", task, rgb_run, *arguments).code == 0
        differences.append(np.abs(load(out) - load(photo)).mean())
    assert differences[0] < 3
    assert differences[1] > 20


def test_an_image_with_little_noise_stays_as_it_is(ict: Ict, tmp_path: Path, rgb_run: Path, photo: Path) -> None:
    arguments = ("--image", photo, "--sigma", 0.003, "--out", tmp_path / "x.png", "--device", "cpu")
    assert ict("edit", "denoise", rgb_run, *arguments).code == 0
    assert np.abs(load(tmp_path / "x.png") - load(photo)).max() <= 2


def test_interpolation_goes_from_one_sample_to_another(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
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


def test_several_images_and_classes(ict: Ict, tmp_path: Path, labelled_run: Path, photo: Path, mask: Path) -> None:
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
        assert ict("edit", "interpolate", labelled_run, "--labels", label, *out).code == 0
        strips.append(load(tmp_path / "i.png"))
    assert (strips[0] != strips[1]).any()


@pytest.mark.parametrize(("kind", "shape"), [("grey", (8, 8)), ("rgb", (8, 8, 3))])
def test_resize_makes_images_fit(
    ict: Ict,
    refused: Refused,
    tmp_path: Path,
    digits_run: Path,
    rgb_run: Path,
    mask: Path,
    kind: str,
    shape: tuple[int, ...],
) -> None:
    wide = save(tmp_path / "wide.png", np.random.default_rng(2).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    run = digits_run if kind == "grey" else rgb_run
    arguments = ("edit", "inpaint", run, "--image", wide, "--mask", mask, "--out", tmp_path / "x.png", *FAST)
    refused(1, ["wide.png is 20x30 RGB, but 8x8", "--resize"], *arguments)
    assert ict(*arguments, "--resize").code == 0
    assert load(tmp_path / "x.png").shape == shape


def test_a_mask_of_another_size_and_kind_is_cut_once(ict: Ict, tmp_path: Path, rgb_run: Path, photo: Path) -> None:
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


@pytest.fixture
def places(tmp_path: Path, digits_run: Path, rgb_run: Path, photo: Path, mask: Path) -> dict[str, Path]:
    """What the commands below name in braces."""
    text = tmp_path / "text.png"
    text.write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    return {
        "digits": digits_run,
        "rgb": rgb_run,
        "photo": photo,
        "mask": mask,
        "text": text,
        "white": save(tmp_path / "white.png", np.full((8, 8), 255, np.uint8)),
        "large": save(tmp_path / "large.png", np.zeros((9, 9), np.uint8)),
        "odd": save(tmp_path / "odd.png", np.zeros((3, 3, 3), np.uint8)),
        "here": tmp_path,
    }


@pytest.mark.parametrize(
    ("code", "says", "command"),
    [
        (1, "is all white", "inpaint {rgb} --image {photo} --mask {white}"),
        (1, "--mask", "inpaint {rgb} --image {photo} --mask {large}"),
        (1, "cannot be read", "inpaint {rgb} --image {photo} --mask {text}"),
        (1, "cannot be read", "inpaint {rgb} --image {text} --mask {mask}"),
        (1, "cannot be read", "inpaint {rgb} --image {here}/none.png --mask {mask}"),
        (2, "mask", "inpaint {rgb} --image {photo}"),
        (2, "image", "inpaint {rgb} --mask {mask}"),
        (2, "must end in .png", "inpaint {rgb} --image {photo} --mask {mask} --out {here}/x.jpg"),
        (2, "is a folder", "inpaint {rgb} --image {photo} --mask {mask} --out {here}/folder.png"),
        (2, "--steps", "inpaint {rgb} --image {photo} --mask {mask} --steps 0"),
        (2, "--sigmas", "inpaint {rgb} --image {photo} --mask {mask} --sigmas 1,2"),
        (2, "exclude each other", "inpaint {rgb} --image {photo} --mask {mask} --steps 2 --sigmas 80,2"),
        (2, "unconditional", "inpaint {rgb} --image {photo} --mask {mask} --labels 1"),
        (2, "unknown backend", "inpaint {rgb} --image {photo} --mask {mask} --backend numpy"),
        (1, "does not exist", "inpaint {here}/none --image {photo} --mask {mask}"),
        (2, "needs a model of RGB images", "colorize {digits} --image {mask}"),
        (2, "by --factor how small", "super-resolve {rgb} --image {photo}"),
        (2, "--factor 3 must divide", "super-resolve {rgb} --image {photo} --factor 3"),
        (1, "it must be 4x4 RGB", "super-resolve {rgb} --image {odd}"),
        (1, "it must be 2x2 RGB", "super-resolve {rgb} --image {odd} --factor 4"),
        (2, "--sigma 0 must be in (0.002, 80]", "denoise {rgb} --image {photo} --sigma 0"),
        (2, "--sigma 81 must be in (0.002, 80]", "stroke {rgb} --image {photo} --sigma 81"),
        (2, "are the same image", "interpolate {rgb} --from 1"),
        (2, "unconditional", "interpolate {rgb} --labels 1"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    refused: Refused, tmp_path: Path, places: dict[str, Path], code: int, says: str, command: str
) -> None:
    words = [word.format(**places) for word in command.split()]
    out = [] if "--out" in words else ["--out", tmp_path / "made" / "x.png"]
    refused(code, re.escape(says), "edit", *words, *out)
