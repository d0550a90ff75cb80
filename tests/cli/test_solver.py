"""`--solver`: diffusion models are drawn by their ODE, in the commands and in Python, in both backends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from tiny import TINY

from ict_backends import load, load_backend
from ict_backends.errors import UsageError
from ict_backends.randomness import image_noises
from ict_backends.runs.folder import RunDir
from ict_backends.sampling.batches import preview
from ict_core import heun_sample, heun_sigmas

FAST = ("--num", 4, "--device", "cpu")


def drawn(ict: Ict, out: Path, run: Path, *options: object, says: str = "") -> np.ndarray:
    done = ict("sample", run, "--out", out, *FAST, *options)
    assert done.code == 0, done.err
    assert says in done.err
    assert bool(done.err) == bool(says)
    with np.load(out) as file:
        return file["arr_0"]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_diffusion_model_is_drawn_in_18_steps_of_heun(
    ict: Ict, tmp_path: Path, diffusion_run: Path, backend: str
) -> None:
    """As the core does it with the model's own function, image for image."""
    found = drawn(ict, tmp_path / "x.npz", diffusion_run, "--backend", backend)
    model = load_backend(backend).load_model(diffusion_run, device="cpu")
    noise = model.config.noise
    noises = image_noises(0, range(4), 1, model.config.data.shape)[0]
    sigmas = heun_sigmas(18, sigma_min=noise.sigma_min, sigma_max=noise.sigma_max)
    expected = heun_sample(model.consistency, noises.astype(np.float32), sigmas, sigma_end=noise.sigma_min, clip=True)
    pixels = np.rint((np.moveaxis(expected, 1, -1) + 1) * 127.5)
    assert np.abs(found - pixels).max() <= 1
    other = drawn(ict, tmp_path / "y.npz", diffusion_run, "--backend", backend, "--steps", 3)
    assert not np.array_equal(found, other)


def test_a_warning_says_what_a_diffusion_model_is_not_for(ict: Ict, tmp_path: Path, diffusion_run: Path) -> None:
    ode = drawn(ict, tmp_path / "a.npz", diffusion_run, "--solver", "heun")
    one = drawn(ict, tmp_path / "b.npz", diffusion_run, "--solver", "multistep", says="--solver heun")
    assert not np.array_equal(ode, one)


def test_one_step_and_edits_of_a_diffusion_model_warn(
    ict: Ict, tmp_path: Path, diffusion_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for options in (("--steps", 1), ("--sigmas", 80)):
        drawn(ict, tmp_path / "a.npz", diffusion_run, *options, says="in one step, a diffusion model gives blurred")
    done = ict("edit", "interpolate", diffusion_run, "--num", 2, "--out", tmp_path / "x.png", "--device", "cpu")
    says = "the model is a diffusion model: edits take it for a consistency model"
    assert says in done.err
    caplog.clear()
    model = load(diffusion_run, device="cpu")
    model.edit.denoise(model.sample(1), 0.5)
    assert says in caplog.text


def test_a_warning_says_what_heun_is_not_for(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    plain = drawn(ict, tmp_path / "a.npz", digits_run)
    np.testing.assert_array_equal(plain, drawn(ict, tmp_path / "b.npz", digits_run, "--solver", "multistep"))
    says = '--solver heun is for diffusion models; curriculum.schedule = "doubling" trains none'
    assert not np.array_equal(plain, drawn(ict, tmp_path / "c.npz", digits_run, "--solver", "heun", says=says))


def test_eval_measures_what_sample_draws(ict: Ict, tmp_path: Path, diffusion_run: Path) -> None:
    options = ("--metrics", "sw", "--no-halves", "--num", 8, "--device", "cpu", "--json", tmp_path / "x.json")
    done = ict("eval", diffusion_run, *options)
    assert done.code == 0, done.err
    assert "18-step samples by Heun's method" in done.out
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["solver"] == "heun"
    assert len(record["sigmas"]) == 18
    model = load(diffusion_run, device="cpu")
    assert model.evaluate(metrics="sw", num=8, halves=False)["sw"] == record["sw"]


def test_python_draws_the_same(ict: Ict, tmp_path: Path, diffusion_run: Path) -> None:
    model = load(diffusion_run, device="cpu")
    np.testing.assert_array_equal(model.sample(4), drawn(ict, tmp_path / "x.npz", diffusion_run))
    np.testing.assert_array_equal(model.sample(4, steps=3, solver="heun"), model.sample(4, steps=3))
    with pytest.raises(UsageError, match="solver euler must be multistep or heun"):
        model.sample(4, solver="euler")


def test_pictures_of_training_are_those_of_the_ode(diffusion_run: Path) -> None:
    model = load(diffusion_run, device="cpu")
    shown = np.moveaxis(preview(model.low_level, 4), 1, -1)
    np.testing.assert_array_equal(shown, model.sample(4))


def test_the_recipe_names_the_solver(ict: Ict, refused: Refused, tmp_path: Path, diffusion_run: Path) -> None:
    options = ("sample", diffusion_run, "--out", tmp_path / "out", *FAST, "--sigmas", "80,1")
    assert ict(*options).code == 0
    assert json.loads((tmp_path / "out" / ".ict-sample.json").read_text())["solver"] == "heun"


def test_what_does_not_fit_is_refused(refused: Refused, tmp_path: Path, diffusion_run: Path) -> None:
    options = ("sample", diffusion_run, "--out", tmp_path / "x.png", *FAST)
    refused(2, "--clip-steps is for --solver multistep", *options, "--clip-steps")
    refused(2, "--trajectory shows the steps of --solver multistep", *options, "--trajectory")
    refused(2, r"the last level must be > 0.002 \(noise.sigma_min\)", *options, "--sigmas", "80,0.002")
    refused(2, "--steps 10001 must be at most 10,000 for --solver heun", *options, "--steps", 10001)
    refused(2, "'euler' is not one of 'multistep', 'heun'", *options, "--solver", "euler")


def test_a_diffusion_model_has_no_teacher(refused: Refused, tmp_path: Path) -> None:
    options = ("--set", "curriculum.schedule=diffusion", "--set", "teacher.decay=0.9", "--out", tmp_path / "run")
    refused(2, 'teacher.decay must be 0 with curriculum.schedule = "diffusion"', "train", *TINY, *options)


def test_bad_settings_of_the_gap_are_refused(refused: Refused, tmp_path: Path) -> None:
    for name, value, says in (
        ("gap_q", 1, "curriculum.gap_q must be > 1, not 1.0"),
        ("gap_stages", 0, "curriculum.gap_stages must be >= 1"),
        ("gap_limit", 1, r"curriculum.gap_limit must be in \(0, 0.99999\], not 1.0"),
    ):
        options = ("--set", "curriculum.schedule=gap", "--set", f"curriculum.{name}={value}", "--out", tmp_path / "run")
        refused(2, says, "train", *TINY, *options)


def test_a_law_that_draws_no_levels_of_the_run_is_refused(refused: Refused, tmp_path: Path) -> None:
    for name, value in (("p_mean", 1000), ("p_mean", -1000), ("p_std", 1000)):
        options = ("--set", "curriculum.schedule=gap", "--set", f"noise.{name}={value}", "--out", tmp_path / "run")
        refused(2, "of the levels lie between noise.sigma_min and noise.sigma_max", "train", *TINY, *options)


def test_the_gap_rule_from_scratch_is_said_to_be_that(ict: Ict, tmp_path: Path) -> None:
    done = ict("train", *TINY, "--set", "curriculum.schedule=gap", "--out", tmp_path / "run", "--dry-run")
    assert done.code == 0
    assert "# the gap rule is for tuning a diffusion model (--init RUN); this run starts from scratch" in done.out


def test_a_diffusion_model_is_tuned_by_default(ict: Ict, tmp_path: Path, diffusion_run: Path) -> None:
    options = ("--init", diffusion_run, "--steps", 2, "--device", "cpu", "--out", tmp_path / "tuned")
    done = ict("train", *options)
    assert done.code == 0, done.err
    assert "a diffusion model's: tuned with a gap of 1/32 unless settings say otherwise" in done.out
    assert "starts from scratch" not in done.out
    assert RunDir(tmp_path / "tuned").load_config().curriculum.schedule == "gap"


def test_a_diffusion_model_that_is_trained_on_as_one_is_not_said_to_be_tuned(
    ict: Ict, tmp_path: Path, diffusion_run: Path
) -> None:
    options = ("--init", diffusion_run, "--set", "curriculum.schedule=diffusion", "--out", tmp_path / "x", "--dry-run")
    done = ict("train", *options, "--device", "cpu")
    assert done.code == 0, done.err
    assert "which are a diffusion model's: tuned with a gap of 1/32 unless settings say otherwise" in done.out
    assert "this run tunes" not in done.out
