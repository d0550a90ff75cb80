"""Images that are not square, from files to samples, in both backends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from PIL import Image
from tiny import as_options, smallest

from ict_backends import load
from ict_backends.data.dataset import load_data
from ict_core import load_config

SETTINGS = [
    *as_options({"network": {**smallest()["network"], "channel_mult": [1, 1], "attention_resolutions": [8]}}),
    "--set=train.batch_size=8",
    "--set=train.log_every=10",
    "--device=cpu",
]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Sixty grey pictures, 16 high and 8 wide: white above, black below, with noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 60, (60, 16, 8), dtype=np.uint8)
    pixels[:, :8] += 180
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return folder


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_run_from_files_to_samples(ict: Ict, refused: Refused, tmp_path: Path, pictures: Path, backend: str) -> None:
    run, on = tmp_path / "run", ("--backend", backend, "--device", "cpu")
    average = "--set=train.ema_decay=0.5"
    done = ict("train", "--data", pictures, "--out", run, "--backend", backend, *SETTINGS, "--steps=30", average)
    assert done.code == 0, done.err
    assert load_config(run / "config.toml").data.shape == (1, 16, 8)
    assert ict("sample", run, "--out", tmp_path / "x.npz", "--num", 3, *on).code == 0
    with np.load(tmp_path / "x.npz") as file:
        assert file[file.files[0]].shape[:3] == (3, 16, 8)
    assert ict("eval", run, "--metrics", "kid", "--num", 50, *on).code == 0
    image = pictures / "03.png"
    edit = ("--image", image, "--steps", 2, *on)
    assert ict("edit", "super-resolve", run, "--factor", 4, "--out", tmp_path / "s.png", *edit).code == 0
    with Image.open(tmp_path / "s.png") as picture, Image.open(image) as given:
        assert picture.size == (8, 16)
        means = [np.asarray(p, float).reshape(4, 4, 2, 4).mean((1, 3)) for p in (picture, given)]
    np.testing.assert_allclose(*means, atol=1)
    mask = np.zeros((16, 8), np.uint8)
    mask[8:] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    inpaint = ("edit", "inpaint", run, "--mask", tmp_path / "m.png", "--out", tmp_path / "i.png")
    assert ict(*inpaint, *edit).code == 0
    assert load(run, backend=backend, device="cpu").sample(2, seed=1).shape == (2, 16, 8, 1)
    refused(2, "--factor 16 must divide the image's size, 16x8", "edit", "super-resolve", run, "--factor", 16, *edit)
    Image.fromarray(mask.T).save(tmp_path / "wide.png")
    says = "wide.png is 8x16 grey, but 16x8 grey is needed"
    refused(1, says, "edit", "stroke", run, "--image", tmp_path / "wide.png", *on)


def test_sizes_of_two_numbers(ict: Ict, refused: Refused, tmp_path: Path, pictures: Path) -> None:
    run = tmp_path / "run"
    train = ("train", "--data", pictures, "--out", run, *SETTINGS)
    done = ict(*train, "--steps=2", "--size", "8x4", "--set=network.attention_resolutions=[4]")
    assert done.code == 0, done.err
    config = load_config(run / "config.toml")
    assert (config.data.size, config.data.shape) == ((8, 4), (1, 8, 4))
    assert "size = [8, 4]" in (run / "config.toml").read_text()
    refused(1, "is 16x8 grey, which is not of the proportions of 8x6; --crop center", "data", pictures, "--size", "8x6")
    refused(2, "neither a number of pixels nor HEIGHTxWIDTH", "data", pictures, "--size", "8x4x2")
    refused(2, "data.size must be", "data", pictures, "--size", "8x1")
    odd = ("train", "--data", pictures, "--out", tmp_path / "odd", *SETTINGS, "--size", "8x5", "--crop", "center")
    says = "data.shape must be of a width that divides by 2"
    refused(2, says, *odd, "--preset", "images16-cpu", "--set=network.attention_resolutions=[]")


def test_a_crop_takes_the_middle_of_the_wanted_proportions(pictures: Path) -> None:
    whole = load_data(str(pictures)).images
    assert np.array_equal(load_data(str(pictures), crop="center").images, whole[:, :, 4:12])
    assert np.array_equal(load_data(str(pictures), size=(4, 8), crop="center").images, whole[:, :, 6:10])
    assert np.array_equal(load_data(str(pictures), size=(16, 4), crop="center").images, whole[:, :, :, 2:6])
    assert load_data(str(pictures), size=(8, 4)).shape == (1, 8, 4)
