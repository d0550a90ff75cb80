"""Commands that run in this process, and short runs to try them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused, Result, assert_refusal, contents
from tiny import TINY

from ict_cli.main import run


@pytest.fixture
def ict(capfd: pytest.CaptureFixture[str]) -> Ict:
    """Run a command in this process: ict("train", "--steps", 2)."""

    def call(*arguments: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            run([str(a) for a in arguments])
        return Result(stop.value.code, *capfd.readouterr())

    return call


@pytest.fixture
def refused(ict: Ict, tmp_path: Path) -> Refused:
    """Run a command that must fail with a code, in one line that matches the patterns, and leave tmp_path as it is."""

    def check(code: int, patterns: str | list[str], *arguments: object) -> Result:
        before = contents(tmp_path)
        result = ict(*arguments)
        assert result.code == code, result
        assert_refusal(result.err, *([patterns] if isinstance(patterns, str) else patterns))
        assert contents(tmp_path) == before
        assert "total_steps = " not in result.out, "the line would be lost below the settings"
        return result

    return check


@pytest.fixture(scope="session")
def images_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve 8x8 RGB images with labels 0..2, in the layout of the field's evaluators."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3)
    return path


# Enough steps for samples that differ visibly from seed to seed.
LEARN = ["--steps=30", "--set=train.learning_rate=1e-2", "--set=train.ema_decay=0.5"]


def trained(path: Path, *arguments: str) -> Path:
    with pytest.raises(SystemExit) as stop:
        run(["train", "--out", str(path), *TINY, *LEARN, *arguments])
    assert stop.value.code == 0
    return path


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on the digits. Tests must not change it."""
    return trained(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def labelled_run(tmp_path_factory: pytest.TempPathFactory, images_file: Path) -> Path:
    """A short conditional run on the twelve images. Tests must not change it."""
    path = tmp_path_factory.mktemp("runs") / "labelled"
    return trained(path, f"--data={images_file}", "--set=network.num_classes=3")


@pytest.fixture(scope="session")
def guided_run(tmp_path_factory: pytest.TempPathFactory, images_file: Path) -> Path:
    """A short conditional run on the twelve images, some of them without their class. Tests must not change it."""
    path = tmp_path_factory.mktemp("runs") / "guided"
    return trained(path, f"--data={images_file}", "--conditional", "--set=train.label_dropout=0.2")


@pytest.fixture(scope="session")
def rgb_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on random RGB images of 8x8. Tests must not change it."""
    folder = tmp_path_factory.mktemp("rgb")
    np.savez(folder / "x.npz", np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
    return trained(folder / "run", f"--data={folder / 'x.npz'}")


@pytest.fixture(scope="session")
def diffusion_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that trains a diffusion model. Tests must not change it."""
    path = tmp_path_factory.mktemp("runs") / "diffusion"
    loss = ("--set=loss.distance=l2", "--set=loss.weighting=edm", "--set=noise.p_mean=-1.2", "--set=noise.p_std=1.2")
    return trained(path, "--set=curriculum.schedule=diffusion", *loss, "--set=train.learning_rate=1e-3")
