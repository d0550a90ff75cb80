"""`--guidance` in the commands, and training with dropped labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from tiny import TINY

from ict_backends import load
from ict_backends.errors import UsageError
from ict_backends.runs.checkpoint import load_checkpoint, read_digest
from ict_backends.runs.folder import RunDir

FAST = ("--num", 6, "--device", "cpu")


def drawn(ict: Ict, out: Path, run: Path, *options: object) -> np.ndarray:
    done = ict("sample", run, "--out", out, *FAST, *options)
    assert (done.code, done.err) == (0, "")
    with np.load(out) as file:
        return file["arr_0"]


def test_each_scale_draws_other_images_and_1_is_none(ict: Ict, tmp_path: Path, guided_run: Path) -> None:
    scales = (0, 1, 1.5, 4)
    found = {w: drawn(ict, tmp_path / f"{w}.npz", guided_run, "--guidance", w) for w in scales}
    assert len({images.tobytes() for images in found.values()}) == len(scales)
    np.testing.assert_array_equal(found[1], drawn(ict, tmp_path / "x.npz", guided_run))
    # Without a class, the class that is asked for does not matter.
    other = drawn(ict, tmp_path / "y.npz", guided_run, "--guidance", 0, "--labels", 2)
    np.testing.assert_array_equal(found[0], other)


def test_the_recipe_names_the_scale(ict: Ict, refused: Refused, tmp_path: Path, guided_run: Path) -> None:
    options = ("sample", guided_run, "--out", tmp_path / "out", *FAST)
    assert ict(*options, "--guidance", 2).code == 0
    assert json.loads((tmp_path / "out" / ".ict-sample.json").read_text())["guidance"] == 2
    refused(2, r"holds other samples \(guidance is 2.0 and not 3.0\)", *options, "--guidance", 3)


@pytest.mark.parametrize("name", ["out", "out.npz"])
def test_samples_of_earlier_versions_had_none(
    ict: Ict, refused: Refused, tmp_path: Path, guided_run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their recipes do not name it; what is whole is not drawn again."""
    command = ("sample", guided_run, "--out", tmp_path / name, *FAST)
    assert ict(*command).code == 0
    manifest = tmp_path / (".out.npz.done" if name.endswith(".npz") else "out/.ict-sample.json")
    recipe = json.loads(manifest.read_text())
    assert recipe.pop("guidance") == 1
    assert recipe["sha256"] == read_digest(RunDir(guided_run).latest_checkpoint())
    manifest.write_text(json.dumps(recipe))
    refused(2, "guidance is 1.0 and not 2.0", *command, "--guidance", 2)
    monkeypatch.setattr("ict_backends.torch.sample.LoadedModel.sample", None)
    assert ict(*command).code == 0


def test_a_trajectory_and_a_search_are_guided(ict: Ict, tmp_path: Path, guided_run: Path) -> None:
    pictures = []
    for scale in (1, 3):
        out = tmp_path / f"{scale}.png"
        options = (*FAST, "--trajectory", "--sigmas", "80,2", "--guidance", scale)
        assert ict("sample", guided_run, "--out", out, *options).code == 0
        pictures.append(out.read_bytes())
    assert pictures[0] != pictures[1]
    run, values = tmp_path / "run", []
    shutil.copytree(guided_run, run)
    for scale in (1, 3):
        done = ict("search-sigmas", run, "--metric", "sw", *FAST, "--guidance", scale)
        assert done.code == 0, done
        record = json.loads((run / "sigmas.json").read_text())
        assert record["guidance"] == scale
        values.append(record["values"])
    assert values[0][0] != values[1][0]


def test_a_figure_says_how_its_samples_were_guided(ict: Ict, tmp_path: Path, guided_run: Path) -> None:
    options = ("eval", guided_run, "--metrics", "sw", *FAST)
    done = ict(*options, "--guidance", 2.5, "--json", tmp_path / "x.json")
    assert "6 one-step samples of classes in the data's proportions with guidance 2.5 against 12 images" in done.out
    assert json.loads((tmp_path / "x.json").read_text())["guidance"] == 2.5
    assert "guidance" not in ict(*options).out


def test_interpolation_is_guided(ict: Ict, tmp_path: Path, guided_run: Path) -> None:
    model, out = load(guided_run, device="cpu"), tmp_path / "x.png"
    done = ict("edit", "interpolate", guided_run, "--num", 3, "--out", out, "--device", "cpu", "--guidance", 3)
    assert (done.code, done.err) == (0, "")
    assert (model.edit.interpolate(num=3, guidance=3)[0] == model.sample(1, labels=0, guidance=3)[0]).mean() > 0.98
    assert (model.edit.interpolate(num=3, guidance=3) != model.edit.interpolate(num=3)).any()


@pytest.mark.parametrize("value", ["-0.1", "1001", "nan", "inf", "1e999"])
@pytest.mark.parametrize("command", ["sample", "eval", "search-sigmas"])
def test_other_scales_are_refused(refused: Refused, tmp_path: Path, guided_run: Path, command: str, value: str) -> None:
    out = ("--out", tmp_path / "x.png") if command == "sample" else ()
    refused(
        2, r"--guidance \S+ must be in \[0, 1000\]; 1 is no guidance", command, guided_run, *out, "--guidance", value
    )


def test_a_model_without_classes_cannot_be_guided(refused: Refused, tmp_path: Path, digits_run: Path) -> None:
    says = r"--guidance 2: the model is unconditional \(network.num_classes = 0\)"
    for command in ("sample", "edit interpolate"):
        refused(2, says, *command.split(), digits_run, "--out", tmp_path / "x.png", "--guidance", 2)
    for command in ("eval", "search-sigmas"):
        refused(2, says, command, digits_run, "--guidance", 2)
    with pytest.raises(UsageError, match="^guidance 2: the model is unconditional"):
        load(digits_run, device="cpu").sample(guidance=2)


def test_guidance_is_of_models_only(refused: Refused, images_file: Path) -> None:
    refused(2, "--guidance is of samples", "eval", images_file, "--data", images_file, "--guidance", 2)


def test_a_model_that_knows_no_images_without_a_class_is_warned_of(
    ict: Ict, tmp_path: Path, labelled_run: Path
) -> None:
    done = ict("sample", labelled_run, "--out", tmp_path / "x.npz", *FAST, "--guidance", 2)
    assert done.code == 0
    assert done.err.count("\n") == 1
    assert "--guidance 2: the model was trained without train.label_dropout" in done.err
    assert ict("sample", labelled_run, "--out", tmp_path / "y.npz", *FAST, "--guidance", 1).err == ""


def test_no_command_takes_the_label_of_no_class(refused: Refused, tmp_path: Path, guided_run: Path) -> None:
    refused(2, "--labels -1: -1 is not in 0..2", "sample", guided_run, "--out", tmp_path / "x.png", "--labels", -1)


def test_labels_are_dropped_only_where_there_are_some(refused: Refused, tmp_path: Path) -> None:
    train = ("train", "--out", tmp_path / "run", *TINY)
    says = "train.label_dropout = 0.1 must be 0 for a network without classes"
    refused(2, says, *train, "--set=train.label_dropout=0.1")
    refused(2, r"train.label_dropout must be in \[0, 1\)", *train, "--conditional", "--set=train.label_dropout=1.0")


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("rate", [0.0, 0.999])
def test_images_without_their_class_do_not_train_its_row(ict: Ict, tmp_path: Path, backend: str, rate: float) -> None:
    """With all labels of some steps dropped, the table of classes has had no gradient."""
    options = ("--conditional", f"--set=train.label_dropout={rate}", "--steps=4", "--backend", backend)
    done = ict("train", "--out", tmp_path / "run", *TINY, *options)
    assert done.code == 0, done
    moment = load_checkpoint(RunDir(tmp_path / "run").latest_checkpoint()).first_moment["embedding.labels.weight"]
    assert moment.any() == (rate == 0.0)
