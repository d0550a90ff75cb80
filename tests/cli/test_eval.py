"""`ict eval`: what it compares, with which features, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Ict, Refused
from PIL import Image
from scipy.linalg import sqrtm

from ict_backends import load_features
from ict_backends.data.dataset import load_data
from ict_backends.images import save_folder, to_float, to_uint8
from ict_backends.measuring import inception
from ict_backends.measuring.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision_recall,
)
from ict_backends.measuring.evaluation import in_batches
from ict_backends.measuring.reference import samples_of_model
from ict_backends.randomness import random_subset
from ict_backends.sampling.batches import proportional_labels
from ict_cli import eval as eval_command
from ict_core import load_preset


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    path = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path / "ict"


class Means(torch.nn.Module):
    """Features that can be worked out by hand: the mean of each quarter of the image, of the first channel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = x[:, 0].float().reshape(x.shape[0], 2, x.shape[2] // 2, 2, x.shape[3] // 2)
        return halves.mean(dim=[2, 4]).reshape(x.shape[0], 4)


class Inception(torch.nn.Module):
    """The signature of the field's Inception network."""

    def forward(
        self, img: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        features = img.float().mean(dim=[2, 3])
        if return_features:
            return features
        return torch.softmax(features[:, :2] / 10, dim=1) if no_output_bias else torch.zeros(img.shape[0], 2)


class Wrong(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float()


class Picky(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2] == 299, "only large images"
        return x.float().mean(dim=[2, 3])


class Broken(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().mean(dim=[2, 3]) / 0.0


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Feature networks as files."""
    folder = tmp_path_factory.mktemp("networks")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript's own of its age
        for module in (Means, Inception, Wrong, Picky, Broken):
            torch.jit.script(module()).save(folder / f"{module.__name__.lower()}.pt")
    batch = torch.export.Dim("batch")
    exported = torch.export.export(Means(), (torch.zeros(3, 3, 8, 8, dtype=torch.uint8),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, folder / "means.pt2")
    (folder / "noise.pt").write_bytes(b"no network")
    (folder / "noise.pt2").write_bytes(b"no network")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of RGB images, a.npz and b.npz."""
    folder, rng = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)
    for name, top in (("a", 256), ("b", 200)):
        np.savez(folder / f"{name}.npz", rng.integers(0, top, (250, 8, 8, 3), dtype=np.uint8))
    return folder


def trusted(path: Path) -> tuple[object, ...]:
    """The options that measure by the features of a file of the test's own."""
    return "--features", path, "--trust-features"


def means(path: Path) -> np.ndarray:
    images = load_data(str(path)).images[:, 0].astype(np.float64)
    return images.reshape(-1, 2, 4, 2, 4).mean(axis=(2, 4)).reshape(-1, 4)


def figures(ict: Ict, tmp_path: Path, *arguments: object) -> dict[str, Any]:
    done = ict("eval", *arguments, "--json", tmp_path / "x.json", "--device", "cpu")
    assert done.code == 0, done.err
    return json.loads((tmp_path / "x.json").read_text())


@pytest.mark.parametrize("file", ["means.pt", "means.pt2"])
def test_features_of_a_file_are_those_that_are_compared(
    ict: Ict, tmp_path: Path, networks: Path, sets: Path, file: str
) -> None:
    options = ("--data", sets / "a.npz", *trusted(networks / file), "--metrics", "fid,kid,pr")
    found = figures(ict, tmp_path, sets / "b.npz", *options)
    a, b = means(sets / "a.npz"), means(sets / "b.npz")
    assert found["fid"] == pytest.approx(frechet_distance(moments(a), moments(b)), rel=1e-4)
    assert found["kid"] == pytest.approx(kernel_distance(a, b).value, rel=1e-4)
    assert (found["precision"], found["recall"]) == pytest.approx(precision_recall(a, b), abs=0.01)
    assert found["features"]["sha256"] == hashlib.sha256((networks / file).read_bytes()).hexdigest()
    assert (found["num"], found["reference"], found["sigmas"]) == (250, 250, None)


def test_the_frechet_distance_in_pixel_space_is_of_values_in_minus_one_to_one(
    ict: Ict, tmp_path: Path, sets: Path
) -> None:
    found = figures(ict, tmp_path, sets / "b.npz", "--data", sets / "a.npz")["pixel-fd"]
    a, b = (to_float(load_data(str(sets / f"{n}.npz")).images).reshape(250, -1).astype(float) for n in "ab")
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(ca + cb) - 2 * np.trace(sqrtm(ca @ cb).real)
    assert found == pytest.approx(expected, rel=1e-3)


def test_samples_are_rounded_as_in_files(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    """A run, the .npz of its samples and the folder of them are measured alike."""
    direct = figures(ict, tmp_path, digits_run, "--num", 100, "--metrics", "pixel-fd,sw,kid,pr")
    for out in ("x.npz", "folder"):
        assert ict("sample", digits_run, "--out", tmp_path / out, "--num", 100, "--device", "cpu").code == 0
        found = figures(ict, tmp_path, tmp_path / out, "--data", "digits", "--metrics", "pixel-fd,sw,kid,pr")
        drawing = {"sigmas", "clip_steps", "truncate", "guidance", "solver", "labels"}  # which only a run has
        assert {k: v for k, v in found.items() if k not in drawing} == {
            k: v for k, v in direct.items() if k not in drawing
        }
    assert direct["sigmas"] == [80.0]
    other = figures(ict, tmp_path, digits_run, "--num", 100, "--seed", 1)
    assert other["pixel-fd"] != direct["pixel-fd"]


def test_an_inception_network_gives_features_and_classes(ict: Ict, tmp_path: Path, networks: Path, sets: Path) -> None:
    options = (
        "--data",
        sets / "a.npz",
        *trusted(networks / "inception.pt"),
        "--metrics",
        "is,fid",
    )
    found = figures(ict, tmp_path, sets / "b.npz", *options)
    features = load_data(str(sets / "b.npz")).images.mean(axis=(2, 3))
    exponents = np.exp(features[:, :2] / 10)
    expected = inception_score(exponents / exponents.sum(axis=1, keepdims=True))
    assert (found["is"], found["is_error"]) == pytest.approx(tuple(expected), rel=1e-4)
    reference = moments(load_data(str(sets / "a.npz")).images.mean(axis=(2, 3)))
    assert found["fid"] == pytest.approx(frechet_distance(reference, moments(features)), rel=1e-3)


@pytest.mark.parametrize("file", ["means.pt", "means.pt2", "inception.pt"])
def test_a_network_is_a_program_and_runs_only_if_it_is_known_or_trusted(
    ict: Ict,
    refused: Refused,
    networks: Path,
    sets: Path,
    digits_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    path = networks / file
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_features", lambda *arguments, **options: pytest.fail("it was loaded"))
        for command in (("eval", sets / "b.npz", "--data", sets / "a.npz"), ("search-sigmas", digits_run)):
            says = [f"--features {path} is not the known network", "--trust-features"]
            refused(2, says, *command, "--features", path, "--device", "cpu")
            refused(1, "none.pt cannot be read", *command, "--features", networks / "none.pt", "--device", "cpu")
    options = ("--data", sets / "a.npz", "--features", path, "--metrics", "kid", "--device", "cpu")
    first = ict("eval", sets / "b.npz", *options, "--trust-features")
    assert first.code == 0
    monkeypatch.setattr(inception, "_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert ict("eval", sets / "b.npz", *options) == first  # the known network, whatever its file is called


def test_grey_images_are_repeated_for_a_network_of_rgb(
    ict: Ict, tmp_path: Path, networks: Path, digits_run: Path
) -> None:
    options = (*trusted(networks / "inception.pt"), "--num", 100, "--metrics", "kid")
    assert np.isfinite(figures(ict, tmp_path, digits_run, *options)["kid"])


def test_statistics_of_the_data_are_kept_and_read_again(
    ict: Ict, tmp_path: Path, networks: Path, sets: Path, cache: Path
) -> None:
    options = (*trusted(networks / "means.pt"), "--metrics", "fid")
    first = figures(ict, tmp_path, sets / "b.npz", "--data", sets / "a.npz", *options)
    (kept,) = cache.iterdir()
    with np.load(kept) as file:
        assert set(file.files) == {"mu", "sigma", "count"}
        expected = moments(means(sets / "a.npz"))
        np.testing.assert_allclose(file["mu"], expected.mean, rtol=1e-5)
        np.testing.assert_allclose(file["sigma"], expected.cov, rtol=1e-3)
        assert file["count"] == 250
    again = figures(ict, tmp_path, sets / "b.npz", "--data", kept, *options)
    assert again == first
    # What is in the cache is what is used.
    np.savez(kept, mu=expected.mean + 1, sigma=expected.cov, count=250)
    changed = figures(ict, tmp_path, sets / "b.npz", "--data", sets / "a.npz", *options)
    assert changed["fid"] != first["fid"]
    # What is damaged there is computed again.
    kept.write_bytes(kept.read_bytes()[:300])
    again = figures(ict, tmp_path, sets / "b.npz", "--data", sets / "a.npz", *options)
    assert again == first
    figures(ict, tmp_path, sets / "b.npz", "--data", sets / "b.npz", *options)
    assert len(list(cache.iterdir())) == 2


def test_as_many_samples_are_drawn_as_the_metrics_need(networks: Path) -> None:
    """A covariance of so many pixels needs more than 2,000 where images are large."""
    config = load_preset("cifar10-tiny")
    assert config.data.shape == (3, 32, 32)
    assert samples_of_model(config, None, ["pixel-fd"], None).num == 3 * 32 * 32 + 1
    assert samples_of_model(config, None, ["kid", "pr"], None).num == 2000
    features = load_features(networks / "means.pt", device="cpu")
    assert samples_of_model(config, None, ["fid"], features).num == 2000


def test_a_reference_batch_of_adm_gives_statistics_or_images(
    ict: Ict, tmp_path: Path, networks: Path, sets: Path
) -> None:
    """Their files hold mu and sigma, and the images that they are of."""
    expected = moments(means(sets / "a.npz"))
    with np.load(sets / "a.npz") as file:
        np.savez(tmp_path / "ref.npz", arr_0=file["arr_0"], mu=expected.mean, sigma=expected.cov)
    options = (*trusted(networks / "means.pt"), "--metrics")
    direct = figures(ict, tmp_path, sets / "b.npz", "--data", sets / "a.npz", *options, "fid,kid")
    found = figures(ict, tmp_path, sets / "b.npz", "--data", tmp_path / "ref.npz", *options, "fid")
    assert found["fid"] == pytest.approx(direct["fid"], rel=1e-4)
    found = figures(ict, tmp_path, sets / "b.npz", "--data", tmp_path / "ref.npz", *options, "kid")
    assert found["kid"] == pytest.approx(direct["kid"])


@pytest.mark.parametrize("metrics", ["fid", "fid,kid", "kid,pr,fid", "fid,pixel-fd"])
def test_statistics_beside_images_are_used_whatever_else_is_asked(
    ict: Ict, tmp_path: Path, networks: Path, sets: Path, metrics: str
) -> None:
    """They may be of other images: the field's are of the whole training set, its images of a part."""
    stored = moments(means(sets / "a.npz"))
    with np.load(sets / "a.npz") as file:
        np.savez(tmp_path / "ref.npz", arr_0=file["arr_0"], mu=stored.mean + 3.0, sigma=stored.cov)
    options = (
        "--data",
        tmp_path / "ref.npz",
        *trusted(networks / "means.pt"),
        "--no-halves",
        "--metrics",
        metrics,
    )
    expected = frechet_distance(stored._replace(mean=stored.mean + 3.0), moments(means(sets / "b.npz")))
    assert figures(ict, tmp_path, sets / "b.npz", *options)["fid"] == pytest.approx(expected, rel=1e-4)


def test_statistics_of_features_are_not_taken_for_those_of_pixels(
    ict: Ict, tmp_path: Path, networks: Path, sets: Path
) -> None:
    stored = moments(means(sets / "a.npz"))
    with np.load(sets / "a.npz") as file:
        np.savez(tmp_path / "ref.npz", arr_0=file["arr_0"], mu=stored.mean, sigma=stored.cov)
    options = ("--metrics", "pixel-fd", "--no-halves")
    direct = figures(ict, tmp_path, sets / "b.npz", "--data", sets / "a.npz", *options)
    assert figures(ict, tmp_path, sets / "b.npz", "--data", tmp_path / "ref.npz", *options) == direct


def test_a_part_of_a_folder_is_a_random_one(ict: Ict, tmp_path: Path, sets: Path) -> None:
    """The same one always. Its first files would be those of its first classes."""
    images = load_data(str(sets / "b.npz")).images
    images = images[np.argsort(images.reshape(250, -1).mean(axis=1))]
    save_folder(tmp_path / "sorted", images)
    options = ("--data", sets / "a.npz", "--metrics", "sw")
    found = figures(ict, tmp_path, tmp_path / "sorted", *options, "--num", 40)
    assert found == figures(ict, tmp_path, tmp_path / "sorted", *options, "--num", 40)
    chosen = random_subset(250, 40)
    assert len(set(chosen.tolist())) == 40
    assert 100 < np.mean(chosen) < 150
    np.savez(tmp_path / "chosen.npz", images[chosen].transpose(0, 2, 3, 1))
    assert found["sw"] == figures(ict, tmp_path, tmp_path / "chosen.npz", *options)["sw"]


def test_a_conditional_model_is_measured_in_the_proportions_of_the_data(
    ict: Ict, refused: Refused, tmp_path: Path, labelled_run: Path, images_file: Path, sets: Path
) -> None:
    """Those of the images that it is compared with; or, if these have no labels, of its training images."""
    run = tmp_path / "run"
    shutil.copytree(labelled_run, run)
    record = json.loads((run / "data.json").read_text())
    (run / "data.json").write_text(json.dumps(record | {"class_counts": [1, 7, 0]}))
    with np.load(images_file) as file:
        images = file["arr_0"]
    np.savez(tmp_path / "mostly2.npz", images, np.minimum(np.arange(12), 2))
    common = ("--num", 40, "--metrics", "sw")

    def drawn(counts: list[int], data: Path) -> float:
        """The figure of samples in these proportions, from their file."""
        labels = ",".join(map(str, proportional_labels(np.array(counts), 40)))
        out = tmp_path / f"{counts}.npz"
        assert ict("sample", labelled_run, "--num", 40, "--labels", labels, "--out", out, "--device", "cpu").code == 0
        return figures(ict, tmp_path, out, "--data", data, "--metrics", "sw")["sw"]

    of_training = figures(ict, tmp_path, run, "--data", sets / "a.npz", *common)["sw"]
    assert of_training == drawn([1, 7, 0], sets / "a.npz")
    of_reference = figures(ict, tmp_path, run, "--data", tmp_path / "mostly2.npz", *common)["sw"]
    assert of_reference == drawn([1, 1, 10], tmp_path / "mostly2.npz")
    chosen = figures(ict, tmp_path, run, "--data", sets / "a.npz", *common, "--labels", "balanced")["sw"]
    assert chosen == drawn([1, 1, 1], sets / "a.npz")
    assert chosen != of_training
    # A reference without all of the model's classes has others, by the same numbers.
    for labels in (np.zeros(12, int), np.minimum(np.arange(12), 1), np.minimum(np.arange(12), 3)):
        np.savez(tmp_path / "others.npz", images, labels)
        of_others = figures(ict, tmp_path, run, "--data", tmp_path / "others.npz", *common)
        assert of_others["sw"] == drawn([1, 7, 0], tmp_path / "others.npz")
        assert of_others["labels"] == "data"
    refused(2, "--labels is of samples", "eval", sets / "b.npz", "--data", sets / "a.npz", "--labels", 1)


def test_fid_of_a_conditional_model_does_not_depend_on_what_else_is_asked(
    ict: Ict, tmp_path: Path, networks: Path, labelled_run: Path, images_file: Path
) -> None:
    """With statistics beside images and labels, which may be of other images, the classes are the training data's."""
    stored = moments(means(images_file))
    with np.load(images_file) as file:
        np.savez(tmp_path / "ref.npz", file["arr_0"], np.minimum(np.arange(12), 2), mu=stored.mean, sigma=stored.cov)
    options = (
        "--data",
        tmp_path / "ref.npz",
        *trusted(networks / "means.pt"),
        "--num",
        30,
        "--metrics",
    )
    alone, beside = (figures(ict, tmp_path, labelled_run, *options, names)["fid"] for names in ("fid", "fid,kid"))
    assert alone == beside


def test_what_decides_a_figure_is_recorded(ict: Ict, tmp_path: Path, labelled_run: Path, digits_run: Path) -> None:
    found = figures(ict, tmp_path, labelled_run, "--metrics", "sw", "--num", 6, "--clip-steps", "--labels", "0,2")
    assert (found["clip_steps"], found["truncate"], found["labels"]) == (True, False, "0,2")
    shown = ict("eval", labelled_run, "--metrics", "sw", "--num", 6, "--device", "cpu").out
    assert "6 one-step samples of classes in the data's proportions against 12 images" in shown
    found = figures(ict, tmp_path, digits_run, "--num", 80)
    assert found["labels"] is None
    assert 0 < found["pixel-fd_perfect"] < found["pixel-fd"]


def test_unreadable_images_are_named_and_left_out(ict: Ict, tmp_path: Path, sets: Path) -> None:
    save_folder(tmp_path / "folder", load_data(str(sets / "b.npz")).images)
    (tmp_path / "folder" / "000100a.png").write_bytes(b"no picture")
    done = ict("eval", tmp_path / "folder", "--data", sets / "a.npz", "--metrics", "pr", "--json", tmp_path / "x.json")
    assert done.code == 0
    assert "1 files of" in done.err
    assert "000100a.png" in done.err
    assert json.loads((tmp_path / "x.json").read_text())["num"] == 250


def test_images_of_another_kind_are_refused_or_resized(
    ict: Ict, refused: Refused, tmp_path: Path, sets: Path, digits_run: Path
) -> None:
    (tmp_path / "large").mkdir()
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "large" / f"{i}.png")
    options = ("eval", tmp_path / "large", "--data", sets / "a.npz", "--metrics", "kid")
    refused(1, "20x16 grey, but those of the data 8x8 RGB; --resize makes them fit", *options)
    assert ict(*options, "--resize").code == 0
    # A folder of several sizes, and data of another size than the model's.
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "large" / "z.png")
    assert "all images must be alike" in ict(*options).err
    assert ict(*options, "--resize").code == 0
    options = ("eval", digits_run, "--data", tmp_path / "large", "--metrics", "kid", "--num", 20, "--device", "cpu")
    assert ict(*options).code == 1
    assert ict(*options, "--resize").code == 0


@pytest.fixture
def places(tmp_path: Path, networks: Path, sets: Path, digits_run: Path) -> dict[str, Path]:
    """What the options below name in braces."""
    np.savez(tmp_path / "one.npz", np.zeros((1, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "few.npz", np.zeros((4, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "stats.npz", mu=np.zeros(7), sigma=np.eye(7))
    np.savez(tmp_path / "odd.npz", mu=np.zeros(7), sigma=np.eye(6))
    np.savez(tmp_path / "nan.npz", mu=np.full(4, np.nan), sigma=np.eye(4))
    np.savez(tmp_path / "indefinite.npz", mu=np.zeros(4), sigma=np.diag([1.0, 1.0, 1.0, -0.1]))
    np.savez(tmp_path / "askew.npz", mu=np.zeros(4), sigma=np.triu(np.ones((4, 4))))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "stats.npz").read_bytes()[:300])
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    return {"here": tmp_path, "nets": networks, "a": sets / "a.npz", "b": sets / "b.npz", "digits": digits_run}


@pytest.mark.parametrize(
    ("code", "says", "options"),
    [
        (2, "--metrics fif is unknown; there are fid, kid", "{b} --data {a} --metrics fif"),
        (2, "--metrics fid is of Inception features", "{b} --data {a} --metrics fid"),
        (2, "needs class probabilities", "{b} --data {a} --metrics is --features {nets}/means.pt"),
        (1, "neither TorchScript nor", "{b} --data {a} --features {nets}/noise.pt"),
        (1, "neither TorchScript nor", "{b} --data {a} --features {nets}/noise.pt2"),
        (1, "cannot be read", "{b} --data {a} --features {nets}/none.pt"),
        (
            1,
            "must give [2, d] features, not [2, 3, 8, 8]",
            "{b} --data {a} --features {nets}/wrong.pt",
        ),
        (1, "only large images", "{b} --data {a} --features {nets}/picky.pt"),
        (1, "--num gives 64 images; pixel-fd needs 65 at least", "{digits} --num 64"),
        (1, "gives 1 images; kid needs 2 at least", "{b} --data {here}/one.npz --metrics kid"),
        (
            1,
            "gives 4 images; fid needs 5 at least",
            "{here}/few.npz --data {a} --features {nets}/means.pt",
        ),
        (
            1,
            "few.npz gives 4 images; fid needs 5",
            "{b} --data {here}/few.npz --features {nets}/means.pt",
        ),
        (1, "holds mu and sigma only", "{b} --data {here}/stats.npz --metrics kid"),
        (
            1,
            "statistics of 7 values; fid needs 4",
            "{b} --data {here}/stats.npz --metrics fid --features {nets}/means.pt",
        ),
        (1, "statistics of 7 values; pixel-fd needs 192", "{b} --data {here}/stats.npz"),
        (1, "mu and sigma must be finite, [d] and [d, d]", "{b} --data {here}/odd.npz"),
        (1, "mu and sigma must be finite", "{b} --data {here}/nan.npz"),
        (
            1,
            "sigma must be a covariance",
            "{b} --data {here}/indefinite.npz --features {nets}/means.pt --metrics fid",
        ),
        (
            1,
            "sigma must be a covariance",
            "{b} --data {here}/askew.npz --features {nets}/means.pt --metrics fid",
        ),
        (1, "features that are NaN or infinite", "{b} --data {a} --features {nets}/broken.pt"),
        (1, "holds no images", "{here}/empty --data {a}"),
        (1, "holds no image that can be read", "{here}/bad --data {a}"),
        (1, "the model's images are 8x8 grey, but those of the data 8x8 RGB", "{digits} --data {a}"),
        (1, "does not exist", "{here}/none --data {a}"),
        (2, "say by --data", "{b}"),
        (2, "--steps is of samples that a model draws", "{b} --data {a} --steps 2"),
        (2, "--seed is of samples that a model draws", "{b} --data {a} --seed 1"),
        (2, "--batch-size is of samples", "{b} --data {a} --batch-size 9"),
        (1, "is not a readable .npz file", "{b} --data {here}/cut.npz"),
        (2, "--num 251 is more than the 250 images", "{b} --data {a} --num 251"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    refused: Refused, places: dict[str, Path], code: int, says: str, options: str
) -> None:
    words = [word.format(**places) for word in options.split()]
    refused(code, re.escape(says), "eval", *words, "--device", "cpu", "--trust-features")


def test_the_inception_network_is_downloaded_once_and_its_hash_checked(
    tmp_path: Path, networks: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (networks / "inception.pt").read_bytes()
    source = tmp_path / "there.pt"
    source.write_bytes(content)
    with pytest.raises(inception.DataError, match="is another file"):
        inception.fetch_inception(source.as_uri())
    assert not cache.exists()
    monkeypatch.setattr(inception, "_SHA256", hashlib.sha256(content).hexdigest())
    kept = inception.fetch_inception(source.as_uri())
    assert kept.read_bytes() == content
    source.unlink()
    assert inception.fetch_inception(source.as_uri()) == kept
    kept.write_bytes(content[:-1])  # damaged: it is not used
    with pytest.raises(inception.DataError, match="cannot be downloaded from file"):
        inception.fetch_inception(source.as_uri())


@pytest.fixture
def known(networks: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small network in the place of the known one, in the cache."""
    content = (networks / "inception.pt").read_bytes()
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "inception-2015-12-05.pt").write_bytes(content)
    monkeypatch.setattr(inception, "_SHA256", hashlib.sha256(content).hexdigest())
    return cache / "inception-2015-12-05.pt"


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("more", [[], ["--steps=2", "--weights=raw"], ["--clip-steps", "--truncate", "--seed=3"]])
def test_fid50k_is_short_for_other_options(
    ict: Ict, tmp_path: Path, rgb_run: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    monkeypatch.setattr(eval_command, "_FID_IMAGES", 50)
    long = ["--metrics=fid", "--num=50", "--features=inception-2015-12-05"]
    short = figures(ict, tmp_path, rgb_run, "--fid50k", *more)
    assert short == figures(ict, tmp_path, rgb_run, *long, *more)
    assert (short["num"], short["features"]["name"]) == (50, "inception-2015-12-05.pt")
    assert "fid" in short


def test_fid50k_is_of_fifty_thousand_images(
    ict: Ict, refused: Refused, tmp_path: Path, known: Path, sets: Path
) -> None:
    path = tmp_path / "many.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (50_001, 4, 4, 3), dtype=np.uint8))
    found = figures(ict, tmp_path, path, "--data", path, "--fid50k", "--features", known)
    assert (found["num"], found["reference"]) == (50_000, 50_001)
    assert 0 < found["fid"] < 0.1
    refused(2, "--num 50000 is more than the 250 images", "eval", sets / "a.npz", "--data", path, "--fid50k")


@pytest.mark.parametrize(
    "other", ["--num 2000", "--num 50000", "--metrics kid", "--metrics fid", "--trust-features", "--features pixels"]
)
def test_fid50k_refuses_what_contradicts_it(refused: Refused, digits_run: Path, other: str) -> None:
    says = f"--fid50k and {other} exclude each other: --fid50k is short for --metrics fid --num 50000 --features incep"
    refused(2, says, "eval", digits_run, "--fid50k", *other.split())


def test_without_the_network_the_line_says_how_to_get_it(
    refused: Refused, tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = partial(inception.fetch_inception, (tmp_path / "absent.pt").as_uri())
    monkeypatch.setattr(inception, "fetch_inception", absent)
    says = ["cannot be downloaded from file:", "give it as --features FILE, or put it at .*05.pt .docs/evaluation.md.$"]
    refused(1, says, "eval", digits_run, "--fid50k")


class Trap:
    """What runs when a pickle of it is read."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("the pickle was read",)


def persistent(protocol: int) -> bytes:
    """A pickle that begins as EDM's and StyleGAN3's do."""
    call = (
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
        if protocol < 4
        else b"\x8c\x17torch_utils.persistence"
    )
    return b"\x80" + bytes([protocol]) + call + pickle.dumps(Trap(), protocol)


@pytest.mark.parametrize("trust", [[], ["--trust-features"]])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("inception-2015-12-05.pkl", pickle.dumps(Trap())),
        ("inception-2015-12-05.pkl", persistent(2)),
        ("renamed.pt", persistent(3)),
        ("renamed", persistent(4)),
    ],
)
def test_a_pickle_is_named_and_never_read(
    refused: Refused, tmp_path: Path, digits_run: Path, name: str, content: bytes, trust: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    says = (
        f"--features .*{name} is a pickle, in which EDM and StyleGAN3 .* never read; --features inception-2015-12-05 is"
    )
    for fid in ([], ["--fid50k"]) if not trust else ([],):
        refused(2, says, "eval", digits_run, "--features", tmp_path / name, *trust, *fid)


def test_a_file_of_edm_is_such_a_pickle(refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    path = Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "edm_adm_open.pkl"
    if not path.is_file():
        pytest.skip(f"the fixture is not here: {path}")
    refused(2, "is a pickle, in which EDM and StyleGAN3", "eval", digits_run, "--features", path, "--trust-features")


def test_batches_are_the_images(sets: Path) -> None:
    images = load_data(str(sets / "a.npz")).images
    parts = list(in_batches(images, 100))
    assert [len(p) for p in parts] == [100, 100, 50]
    np.testing.assert_array_equal(np.concatenate(parts), images)
    np.testing.assert_array_equal(to_uint8(to_float(images)), images)
