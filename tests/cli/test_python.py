"""Models in Python: the images, figures and refusals of the command line, on uint8 arrays [n, h, w, c]."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Ict
from PIL import Image

from ict_backends import load
from ict_backends.errors import CheckpointError, DataError, UsageError, UserError
from ict_backends.python.model import TrainedModel

BACKENDS = ["torch", "jax"]


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def named_run(tmp_path_factory: pytest.TempPathFactory, labelled_run: Path) -> Path:
    """The conditional run, with names for its three classes."""
    path = tmp_path_factory.mktemp("named") / "run"
    shutil.copytree(labelled_run, path)
    record = json.loads((path / "data.json").read_text())
    (path / "data.json").write_text(json.dumps(record | {"class_names": ["rock", "leaves", "sand"]}))
    return path


@pytest.fixture(scope="session")
def model(named_run: Path, backend: str) -> TrainedModel:
    """The conditional model of RGB images."""
    return load(named_run, backend=backend, device="cpu")


@pytest.fixture(scope="session")
def grey(digits_run: Path) -> TrainedModel:
    return load(digits_run, device="cpu")


@pytest.fixture(scope="session")
def photos() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({}, ()),
        ({"steps": 2, "seed": 3}, ("--steps", 2, "--seed", 3)),
        ({"sigmas": [80, 5, 0.5], "clip_steps": True}, ("--sigmas", "80,5,0.5", "--clip-steps")),
        ({"labels": "leaves", "truncate": True}, ("--labels", 1, "--truncate")),
        ({"labels": [2, "rock"]}, ("--labels", "sand,rock")),
        ({"labels": 1, "guidance": 3.5}, ("--labels", 1, "--guidance", 3.5)),
        ({"labels": "random", "seed": 5, "batch_size": 4}, ("--labels", "random", "--seed", 5, "--batch-size", 4)),
    ],
    ids=str,
)
def test_samples_are_those_of_the_command(
    ict: Ict, tmp_path: Path, model: TrainedModel, named_run: Path, given: dict[str, Any], options: tuple
) -> None:
    out = tmp_path / "x.npz"
    done = ict("sample", named_run, "--out", out, "--num", 9, "--backend", model.backend, "--device", "cpu", *options)
    assert done.code == 0, done
    images = model.sample(9, **given)
    assert (images.shape, images.dtype) == ((9, 8, 8, 3), np.uint8)
    with np.load(out) as file:
        np.testing.assert_array_equal(images, file["arr_0"])
    if given:
        assert (images != model.sample(9)).any()


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_run_is_named_as_on_the_command_line(named_run: Path, weights: str) -> None:
    newest = load(named_run, weights=weights, device="cpu")
    for name in (f"{named_run}@30", named_run / "checkpoints" / "step_00000030", named_run / "config.toml"):
        other = load(name, weights=weights, device="cpu")
        assert (other.step, other.weights) == (30, weights)
        np.testing.assert_array_equal(other.sample(4), newest.sample(4))
    assert (load(named_run, device="cpu").sample(4) == newest.sample(4)).all() == (weights == "ema")


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


MASK = np.zeros((8, 8), bool)
MASK[4:, 2:] = True
EDITS: list[tuple[str, Callable[[TrainedModel, np.ndarray], np.ndarray], tuple]] = [
    ("inpaint", lambda m, x: m.edit.inpaint(x, MASK, steps=3, labels=1), ("--steps", 3, "--labels", 1)),
    ("inpaint", lambda m, x: m.edit.inpaint(x, MASK[None], sigmas=[80, 1], seed=2), ("--sigmas", "80,1", "--seed", 2)),
    ("colorize", lambda m, x: m.edit.colorize(x, steps=3, labels="leaves"), ("--steps", 3, "--labels", "leaves")),
    ("super-resolve", lambda m, x: m.edit.super_resolve(x, factor=2, steps=3), ("--factor", 2, "--steps", 3)),
    ("denoise", lambda m, x: m.edit.denoise(x, 0.3, add_noise=True), ("--sigma", 0.3, "--add-noise")),
    ("denoise", lambda m, x: m.edit.denoise(x, 0.5, seed=3, labels=[2]), ("--sigma", 0.5, "--labels", 2)),
    ("stroke", lambda m, x: m.edit.stroke(x, sigma=2, steps=3), ("--sigma", 2, "--steps", 3)),
    ("stroke", lambda m, x: m.edit.stroke(x, steps=3, guidance=4), ("--steps", 3, "--guidance", 4)),
]


@pytest.mark.parametrize(("task", "edit", "options"), EDITS)
def test_edits_are_those_of_the_command(
    ict: Ict,
    tmp_path: Path,
    model: TrainedModel,
    named_run: Path,
    photos: np.ndarray,
    task: str,
    edit: Callable[[TrainedModel, np.ndarray], np.ndarray],
    options: tuple,
) -> None:
    photo, out = save(tmp_path / "photo.png", photos[0]), tmp_path / "x.png"
    mask = ("--mask", save(tmp_path / "mask.png", MASK.astype(np.uint8) * 255)) if task == "inpaint" else ()
    shared = ("--image", photo, "--out", out, "--backend", model.backend, "--device", "cpu")
    done = ict("edit", task, named_run, *shared, *mask, *options)
    assert done.code == 0, done
    edited = edit(model, photos[:1])
    assert (edited.shape, edited.dtype) == ((1, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(edited[0], np.asarray(Image.open(out)))


def test_interpolation_leads_from_one_sample_to_another(ict: Ict, tmp_path: Path, model: TrainedModel) -> None:
    between = model.edit.interpolate(2, 5, num=4, labels="sand", seed=1, steps=2)
    assert (between.shape, between.dtype) == ((4, 8, 8, 3), np.uint8)
    ends = model.sample(6, labels=2, seed=1, steps=2)[[2, 5]]
    assert np.abs(between[[0, -1]].astype(int) - ends).max() <= 1
    assert (model.edit.interpolate(2, 5, num=4, seed=1)[0] == model.sample(3, labels=0, seed=1)[2]).mean() > 0.98


def test_inpainting_changes_only_what_is_masked(model: TrainedModel, photos: np.ndarray) -> None:
    filled = model.edit.inpaint(photos, np.stack([MASK, ~MASK]), steps=2)
    for image, given, mask in zip(filled, photos, (MASK, ~MASK), strict=True):
        np.testing.assert_array_equal(image[~mask], given[~mask])
        assert np.abs(image[mask].astype(int) - given[mask]).max() > 20


def test_small_images_are_enlarged_and_grey_ones_coloured(model: TrainedModel, photos: np.ndarray) -> None:
    large = model.edit.super_resolve(photos[:, ::2, ::2], steps=2)
    means = large.reshape(2, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    inside = (large > 0) & (large < 255)  # clipped values have other means
    whole = inside.reshape(2, 4, 2, 4, 2, 3).all(axis=(2, 4))
    assert whole.any()
    assert np.abs(means - photos[:, ::2, ::2])[whole].max() <= 1
    assert model.edit.colorize(photos[..., 0], steps=2).shape == (2, 8, 8, 3)
    assert model.edit.denoise(np.zeros((1, 16, 12, 1), np.uint8), 0.5, resize=True).shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"metrics": "sw,kid", "num": 20}, ("--metrics", "sw,kid", "--num", 20)),
        (
            {"metrics": ["pr"], "num": 12, "steps": 2, "labels": "leaves", "seed": 4},
            ("--metrics", "pr", "--num", 12, "--steps", 2, "--labels", "leaves", "--seed", 4),
        ),
        ({"metrics": "sw", "num": 9, "guidance": 2.0}, ("--metrics", "sw", "--num", 9, "--guidance", 2)),
        (
            {"metrics": "sw", "num": 9, "sigmas": [80, 1], "truncate": True, "clip_steps": True, "labels": [0, 2]},
            ("--metrics", "sw", "--num", 9, "--sigmas", "80,1", "--truncate", "--clip-steps", "--labels", "0,2"),
        ),
    ],
    ids=str,
)
def test_figures_are_those_of_the_command(
    ict: Ict, tmp_path: Path, model: TrainedModel, named_run: Path, given: dict[str, Any], options: tuple
) -> None:
    out = tmp_path / "x.json"
    done = ict("eval", named_run, "--json", out, "--backend", model.backend, "--device", "cpu", *options)
    assert done.code == 0, done
    found, expected = model.evaluate(**given), json.loads(out.read_text())
    assert found.pop("labels") in (expected["labels"], [0, 2])
    assert found == {name: value for name, value in expected.items() if name != "labels"}


def test_the_default_figures_are_those_of_the_command(
    ict: Ict, tmp_path: Path, grey: TrainedModel, digits_run: Path
) -> None:
    out = tmp_path / "x.json"
    assert ict("eval", digits_run, "--json", out, "--device", "cpu", "--num", 100).code == 0
    assert grey.evaluate(num=100) == json.loads(out.read_text())
    assert grey.evaluate(num=100).keys() - grey.evaluate(num=100, halves=False).keys() == {"pixel-fd_perfect"}


def test_data_may_be_an_array(grey: TrainedModel) -> None:
    images = grey.sample(80, seed=1)
    near = grey.evaluate(images, num=80, seed=1, halves=False)
    assert near["reference"] == 80
    assert near["pixel-fd"] == pytest.approx(0, abs=1e-6)
    resized = grey.evaluate(images.repeat(2, axis=1).repeat(2, axis=2), num=80, resize=True, metrics="sw")
    assert resized["sw"] > 0
    with pytest.raises(DataError, match="^data of the given array gives 7 images; pixel-fd needs 65 at least"):
        grey.evaluate(images[:7])
    with pytest.raises(DataError, match="those of the data 16x16 grey; resize makes them fit"):
        grey.evaluate(images.repeat(2, axis=1).repeat(2, axis=2))


def test_three_lines_say_what_a_model_is(model: TrainedModel, grey: TrainedModel, named_run: Path) -> None:
    run, network, data = repr(model).splitlines()
    assert run.startswith(f"{named_run}, step 30 of 30: averaged weights, {model.backend} ")
    assert network.startswith("NCSN++ of ")
    assert "parameters, 8 channels" in network
    assert data.startswith("8x8 RGB images of ")
    assert data.endswith("3 classes (rock, leaves, sand), noise levels 0.002 to 80")
    assert repr(grey).splitlines()[2] == "8x8 grey images of digits, no classes, noise levels 0.002 to 80"


def test_a_picture_shows_the_images(grey: TrainedModel, model: TrainedModel) -> None:
    images = model.sample(6)
    picture = model.show(images, columns=3)
    assert (picture.mode, picture.size) == ("RGB", (3 * 36, 2 * 36))
    np.testing.assert_array_equal(np.asarray(picture)[2:36:4, 38:70:4][:8], images[1])
    assert picture._repr_png_()[:4] == b"\x89PNG"  # type: ignore[attr-defined,index]  # what a notebook displays
    digits = grey.sample(4)
    assert grey.show(digits).mode == "L"
    assert grey.show(digits[..., 0]).tobytes() == grey.show(digits).tobytes()


def test_matplotlib_takes_the_images_as_they_are(grey: TrainedModel, model: TrainedModel) -> None:
    from matplotlib.figure import Figure

    for each in (grey, model):
        figure = Figure()
        axes = figure.subplots()
        shown = axes.imshow(each.sample(1)[0], cmap="gray")
        assert shown.get_array() is not None
        figure.canvas.draw()


REFUSALS: list[tuple[type[UserError], str, Callable[[TrainedModel, np.ndarray], object]]] = [
    (UsageError, "^labels 3: 3 is not in 0..2$", lambda m, x: m.sample(4, labels=3)),
    (
        UsageError,
        "^labels moss: there is no class moss; the classes are rock,",
        lambda m, x: m.sample(4, labels="moss"),
    ),
    (UsageError, "^labels 0,7: 7 is not", lambda m, x: m.edit.inpaint(x, MASK, labels=[0, 7])),
    (UsageError, "^labels 9: 9 is not", lambda m, x: m.evaluate(labels=9, metrics="sw")),
    (
        UsageError,
        "^steps 3 needs its .*: sigmas 80,... with .* `ict .* --steps 3`",
        lambda m, x: m.sample(steps=3),
    ),
    (UsageError, "^steps and sigmas exclude each other$", lambda m, x: m.sample(steps=2, sigmas=[80, 1])),
    (UsageError, "^sigmas 1,80: sigmas must fall", lambda m, x: m.sample(sigmas=[1, 80])),
    (UsageError, "^num 0 must be at least 1$", lambda m, x: m.sample(0)),
    (UsageError, "^seed -1 must be in 0..2", lambda m, x: m.sample(seed=-1)),
    (UsageError, r"^guidance -1 must be in \[0, 1000\]; 1 is no guidance$", lambda m, x: m.sample(guidance=-1)),
    (UsageError, r"^guidance nan must be in", lambda m, x: m.edit.denoise(x, 1, guidance=float("nan"))),
    (UsageError, r"^guidance inf must be in", lambda m, x: m.evaluate(guidance=float("inf"))),
    (UsageError, "^batch_size 0 must be at least 1$", lambda m, x: m.sample(batch_size=0)),
    (UsageError, "^columns 0 must be at least 1$", lambda m, x: m.show(x, columns=0)),
    (DataError, "^images: images must be uint8 in 0..255, not float64$", lambda m, x: m.show(x / 255)),
    (DataError, "^images: images must be .n, h, w., .* not .8, 8.$", lambda m, x: m.edit.stroke(x[0, :, :, 0])),
    (DataError, r"images\[0\] is 4x4 RGB.*; resize makes it fit$", lambda m, x: m.edit.stroke(x[:, ::2, ::2])),
    (UsageError, r"^sigma 0 must be in \(0.002, 80\]$", lambda m, x: m.edit.denoise(x, 0)),
    (UsageError, r"^sigma 81 must be in \(0.002, 80\]$", lambda m, x: m.edit.stroke(x, sigma=81)),
    (UsageError, "^steps 0 must be at least 1$", lambda m, x: m.edit.colorize(x, steps=0)),
    (UsageError, r"^mask must be \[8, 8\] or \[2, 8, 8\] bool", lambda m, x: m.edit.inpaint(x, MASK[:4])),
    (UsageError, "^mask must be .* not .8, 8. uint8$", lambda m, x: m.edit.inpaint(x, MASK.astype(np.uint8))),
    (UsageError, "^mask is all True; True is filled in", lambda m, x: m.edit.inpaint(x, MASK | True)),
    (UsageError, "say by factor how small to make them", lambda m, x: m.edit.super_resolve(x)),
    (UsageError, "^factor 3 must divide the image's size, 8$", lambda m, x: m.edit.super_resolve(x, factor=3)),
    (UsageError, "^factor 1 must be at least 2$", lambda m, x: m.edit.super_resolve(x, factor=1)),
    (
        DataError,
        "2x2 RGB; .* by factor 2 it must be 4x4",
        lambda m, x: m.edit.super_resolve(x[:, ::4, ::4], factor=2),
    ),
    (UsageError, "^first = 1 and last = 1 are the same", lambda m, x: m.edit.interpolate(1, 1)),
    (UsageError, "^num 1 must be at least 2$", lambda m, x: m.edit.interpolate(num=1)),
    (UsageError, "^metrics fud is unknown", lambda m, x: m.evaluate(metrics="fud")),
    (UsageError, "^metrics fid is of .* give their network with features FILE", lambda m, x: m.evaluate(metrics="fid")),
    (UsageError, "add trust_features$", lambda m, x: m.evaluate(features=__file__)),
    (DataError, "^num gives 2 images; pr needs 4", lambda m, x: m.evaluate(metrics="pr", num=2)),
    (DataError, "^data: images must be uint8", lambda m, x: m.evaluate(x / 255.0)),
    (DataError, "^data nowhere does not exist", lambda m, x: m.evaluate("nowhere")),
]


@pytest.mark.parametrize(("kind", "says", "call"), REFUSALS, ids=[says for _, says, _ in REFUSALS])
def test_what_is_not_allowed_is_refused_in_pythons_words(
    model: TrainedModel,
    photos: np.ndarray,
    kind: type[UserError],
    says: str,
    call: Callable[[TrainedModel, np.ndarray], object],
) -> None:
    with pytest.raises(kind, match=says) as refusal:
        call(model, photos)
    assert type(refusal.value) is kind
    assert "\n" not in str(refusal.value)


def test_a_grey_model_refuses_colours_and_classes(grey: TrainedModel, photos: np.ndarray) -> None:
    with pytest.raises(UsageError, match="^colorize needs a model of RGB images; this one's are grey$"):
        grey.edit.colorize(photos)
    with pytest.raises(UsageError, match="^labels 1: the model is unconditional"):
        grey.sample(labels=1)
    with pytest.raises(UsageError, match="^labels 1: the model is unconditional"):
        grey.edit.interpolate(labels=1)


def test_runs_that_cannot_be_loaded_are_refused(tmp_path: Path, digits_run: Path) -> None:
    cases: list[tuple[type[UserError], str, Path | str, dict[str, Any]]] = [
        (CheckpointError, f"^run {tmp_path / 'x'} does not exist$", tmp_path / "x", {}),
        (CheckpointError, "has no checkpoint of step 7; its steps are: 30", f"{digits_run}@7", {}),
        (CheckpointError, "has no best checkpoint", digits_run, {"weights": "best"}),
        (
            UsageError,
            "^weights mean must be ema, raw or best, or the length of an average",
            digits_run,
            {"weights": "mean"},
        ),
        (UsageError, "^unknown backend 'numpy'; there are torch, jax$", digits_run, {"backend": "numpy"}),
        (UsageError, "device", digits_run, {"device": "nowhere"}),
    ]
    for kind, says, run, options in cases:
        with pytest.raises(kind, match=says):
            load(run, **options)


@pytest.fixture(autouse=True)
def no_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
