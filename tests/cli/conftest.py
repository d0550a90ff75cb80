from typing import NamedTuple

import numpy as np
import pytest
from tiny import TINY

from ict_cli.main import run


class Result(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def ict(capfd):
    """Run a command in this process: ict("train", "--steps", "2")."""

    def call(*arguments) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            run([str(a) for a in arguments])
        return Result(stop.value.code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def images_file(tmp_path_factory):
    """Twelve 8x8 RGB images with labels 0..2, in the layout of the field's evaluators."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8), np.arange(12) % 3)
    return path


# Enough steps for samples that differ visibly from seed to seed.
LEARN = ["--steps=30", "--set=train.learning_rate=1e-2", "--set=train.ema_decay=0.5"]


def trained(path, *arguments):
    with pytest.raises(SystemExit) as stop:
        run(["train", "--out", str(path), *TINY, *LEARN, *arguments])
    assert stop.value.code == 0
    return path


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A short run on the digits. Tests must not change it."""
    return trained(tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture(scope="session")
def labelled_run(tmp_path_factory, images_file):
    """A short conditional run on the twelve images. Tests must not change it."""
    path = tmp_path_factory.mktemp("runs") / "labelled"
    return trained(path, f"--data={images_file}", "--set=network.num_classes=3")


@pytest.fixture(scope="session")
def rgb_run(tmp_path_factory):
    """A short run on random RGB images of 8x8. Tests must not change it."""
    folder = tmp_path_factory.mktemp("rgb")
    np.savez(folder / "x.npz", np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8))
    return trained(folder / "run", f"--data={folder / 'x.npz'}")
