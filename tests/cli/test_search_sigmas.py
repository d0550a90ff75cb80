"""`ict search-sigmas`: it finds the level that is best, keeps it with the run, and sampling uses it."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from hypothesis import given
from hypothesis import strategies as st

from ict_backends import load_backend
from ict_backends.images import to_uint8
from ict_backends.sampling.batches import sample_images
from ict_backends.sampling.search_sigmas import search_sigmas
from ict_core import Config
from ict_core.settings import replace

CONFIG = replace(Config(), data={"shape": (1, 2, 2)}, network={"channel_mult": (1,)})


class Painter:
    """A model whose images are as bright as the logarithm of the level: black at sigma_min, white at sigma_max."""

    config = CONFIG

    def __init__(self) -> None:
        self.calls = 0

    def consistency(self, x: np.ndarray, sigma: np.ndarray, labels: None, *, guidance: float) -> np.ndarray:
        self.calls += len(x)
        share = np.log(sigma / 0.002) / math.log(80 / 0.002)
        return np.broadcast_to(2 * share[:, None, None, None] - 1, x.shape).astype(np.float32)


def brightness(sigma: float) -> float:
    return 255 * math.log(sigma / 0.002) / math.log(80 / 0.002)


@given(best=st.floats(0.01, 60.0))
def test_the_best_level_is_found(best: float) -> None:
    """Of a metric with one minimum."""
    target = brightness(best)
    found = search_sigmas(Painter(), 2, lambda images: abs(float(images.mean()) - target), num=3, tolerance=0.005)
    assert found[0].sigma == 80.0
    place, expected = (s ** (1 / 7) for s in (found[1].sigma, best))
    # As near as the search goes, and as grey levels tell.
    assert abs(place - expected) < 0.03
    assert found[1].value == min(point.value for point in found[1].tried)


def test_levels_fall_and_what_came_before_is_computed_once() -> None:
    model = Painter()
    seen = []
    found = search_sigmas(
        model, 3, lambda images: -float(images.mean()), num=5, batch=2, on_point=lambda step, point: seen.append(step)
    )
    # The brightest are the largest levels there may be.
    sigmas = [step.sigma for step in found]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[1] > 60
    assert model.calls == 5 * len(seen)
    assert seen == [1] * 1 + [2] * len(found[1].tried) + [3] * len(found[2].tried)


def test_the_search_samples_as_sampling_does(digits_run: Path) -> None:
    model = load_backend("torch").load_model(digits_run, device="cpu")
    images = []

    def measure(found: np.ndarray) -> float:
        images.append(found)
        return float(found.mean())

    steps = search_sigmas(model, 2, measure, num=6, seed=3, tolerance=0.2)
    last = steps[1].tried[-1].sigma
    expected = to_uint8(sample_images(model, 6, sigmas=[80.0, last], seed=3))
    assert np.abs(images[-1].astype(int) - expected.astype(int)).max() <= 1
    expected = to_uint8(sample_images(model, 6, sigmas=[80.0], seed=3))
    assert np.abs(images[0].astype(int) - expected.astype(int)).max() <= 1


@pytest.fixture
def run(tmp_path: Path, digits_run: Path) -> Path:
    """A copy of a run, to be changed."""
    shutil.copytree(digits_run, tmp_path / "run")
    return tmp_path / "run"


def test_what_was_found_is_kept_and_used(ict: Ict, refused: Refused, tmp_path: Path, run: Path) -> None:
    options = ("--num", 70, "--device", "cpu")
    assert ict("sample", run, "--out", tmp_path / "x.png", "--steps", 3, *options).code == 2
    done = ict("search-sigmas", run, "--steps", 3, "--plot", tmp_path / "p.png", *options)
    assert (done.code, done.err) == (0, "")
    kept = json.loads((run / "sigmas.json").read_text())
    assert (kept["metric"], kept["num"], len(kept["sigmas"])) == ("pixel-fd", 70, 3)
    assert f"3 steps: --sigmas {','.join(f'{s:.4g}' for s in kept['sigmas'])}" in done.out
    assert (tmp_path / "p.png").stat().st_size > 5000
    for steps in (1, 2, 3):
        found = ict("eval", run, "--steps", steps, "--json", tmp_path / "x.json", *options)
        assert found.code == 0
        record = json.loads((tmp_path / "x.json").read_text())
        assert record["sigmas"] == kept["sigmas"][:steps]
        assert record["pixel-fd"] == pytest.approx(kept["values"][steps - 1], rel=1e-3)
    refused(2, "ict search-sigmas RUN --steps 4", "sample", run, "--out", tmp_path / "x.png", "--steps", 4)
    assert ict("search-sigmas", run, "--metric", "kid", *options).code == 0
    assert json.loads((run / "sigmas.json").read_text())["metric"] == "kid"


@pytest.mark.parametrize(
    ("code", "says", "options"),
    [
        (2, "steps", "--steps 1"),
        (2, "is no distance", "--metric pr"),
        (2, "is unknown", "--metric fad"),
        (2, "must be one of", "--metric kid,sw"),
        (2, "give their network with --features", "--metric fid"),
        (2, "must end in .png", "--plot {here}/x.pdf"),
        (1, "pixel-fd needs 65 at least", "--num 10"),
        (1, "does not exist", "--data {here}/none"),
        (1, "the model's images are 8x8 grey, but those of the data 8x8 RGB", "--data {images}"),
    ],
)
def test_wrong_input_is_refused_in_one_line(
    refused: Refused, tmp_path: Path, run: Path, images_file: Path, code: int, says: str, options: str
) -> None:
    (run / "sigmas.json").write_text("{")
    words = [word.format(here=tmp_path, images=images_file) for word in options.split()]
    refused(code, re.escape(says), "search-sigmas", run, "--device", "cpu", *words)


@pytest.mark.parametrize("content", ["[]", '{"sigmas": [1, 2]}', '{"sigmas": ["x"]}', "{"])
def test_levels_that_cannot_be_read_are_refused(refused: Refused, tmp_path: Path, run: Path, content: str) -> None:
    (run / "sigmas.json").write_text(content)
    refused(1, "sigmas.json cannot be read", "sample", run, "--out", tmp_path / "x.png", "--steps", 2)
