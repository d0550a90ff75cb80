"""Images of one's own, from a folder to a run: the preset, the classes, and training on from another run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from PIL import Image
from tiny import TINY

from ict_backends.runs.folder import RunDir


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images of 8x8 in each of two folders."""
    rng = np.random.default_rng(0)
    for name in ("leaves", "rock"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(3):
            place = tmp_path / "photos" / name / f"{i}.bmp"
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place)
    return tmp_path / "photos"


def test_without_a_preset_the_data_choose_it_and_it_is_said(
    ict: Ict, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ict("train", "--data", "photos", *TINY)
    assert result.code == 0, result.err
    run = RunDir(tmp_path / "runs" / "photos-torch-001")
    config = run.load_config()
    assert (config.train.learning_rate, config.curriculum.s1, config.data.shape) == (1e-3, 160, (3, 8, 8))
    said = [line for line in result.out.splitlines() if line.startswith("# ")]
    assert "preset images16-cpu, chosen for 6 images of 3x8x8 on a CPU" in said[1]
    assert said[2] == "# the 2 classes are not used; --conditional trains on them"
    assert said[3].startswith("# 2 steps: up to two minutes, and about")
    assert config.network.num_classes == 0
    assert "class_names" not in json.loads(run.data_file.read_text())


def test_conditional_keeps_the_names_of_the_classes(ict: Ict, tmp_path: Path, photos: Path) -> None:
    result = ict("train", "--data", photos, "--conditional", "--out", tmp_path / "run", *TINY)
    assert result.code == 0, result.err
    assert "classes are not used" not in result.out
    assert RunDir(tmp_path / "run").load_config().network.num_classes == 2
    record = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (record["class_names"], record["class_counts"]) == (["leaves", "rock"], [3, 3])
    image = tmp_path / "photos" / "rock" / "0.bmp"
    edited = ict("edit", "denoise", tmp_path / "run", "--image", image, "--sigma", 1, "--out", tmp_path / "x.png")
    assert edited.code == 0, edited.err
    assert "classes: leaves, since --labels is not given" in edited.out


def test_the_digits_preset_for_other_data_warns(ict: Ict, tmp_path: Path, photos: Path) -> None:
    result = ict("train", "--preset", "digits", "--data", photos, "--out", tmp_path / "run", *TINY)
    assert result.code == 0
    assert "Warning: --preset digits is tuned for 1,797 digits of 8x8" in result.err
    assert RunDir(tmp_path / "run").load_config().train.learning_rate == 2e-3


def test_what_does_not_go_together_is_refused(refused: Refused, tmp_path: Path, photos: Path) -> None:
    out = ("--out", tmp_path / "run")
    refused(2, "--resume and --conditional exclude each other", "train", *out, "--resume", "--conditional")
    refused(2, "--preset finetune needs --init RUN", "train", *out, "--preset", "finetune")
    refused(
        1, "--conditional: data .* has no classes", "train", *out, "--data", photos / "rock", "--conditional", *TINY
    )
    refused(
        1,
        "num_classes = 3 is not the number of classes of data .*photos, 2",
        *("train", *out, "--data", photos, "--set=network.num_classes=3", *TINY),
    )


def test_tuning_on_other_classes_says_what_it_replaces(ict: Ict, tmp_path: Path, photos: Path, rgb_run: Path) -> None:
    """The run of RGB images has none; its function stays what it was."""
    arguments = ("--data", photos, "--init", rgb_run, "--conditional", "--device=cpu", "--steps=1")
    result = ict("train", *arguments, "--out", tmp_path / "run", "--set=train.learning_rate=1e-12")
    assert result.code == 0, result.err
    assert f"# preset finetune, for the weights of {rgb_run}, which were trained with" in result.out
    assert "# each of the 2 classes begins as the model that there is" in result.out
    pictures = []
    for i, run in enumerate((rgb_run, tmp_path / "run")):
        out = tmp_path / f"{i}.npz"
        assert ict("sample", run, "--num", 4, "--out", out, "--device=cpu").code == 0
        pictures.append(np.load(out)["arr_0"].astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
