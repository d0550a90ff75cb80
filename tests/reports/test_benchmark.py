"""Measuring speed, before any framework: turns, spreads, checks and the record."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from twins import small_adm_config, small_config

from ict_backends.environment import process_memory
from ict_backends.errors import UserError
from ict_backends.networks.families import parameter_shapes
from ict_backends.reports.benchmark import (
    Spread,
    alternate,
    check_images,
    check_losses,
    labels_of,
    random_arrays,
    spread,
    to_json,
)
from ict_backends.reports.host import describe_commit, describe_machine, describe_versions
from ict_backends.timing import times_of_stretch
from ict_backends.torch import make_model
from ict_core import Config, load_preset


class Clock:
    """One that stretches move."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def stretch(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.order += name


def test_stretches_are_timed_in_turn() -> None:
    clock = Clock()
    found = alternate({"a": lambda: clock.stretch("a", 1), "b": lambda: clock.stretch("b", 2)}, 3, clock=clock)
    assert found == {"a": [1, 1, 1], "b": [2, 2, 2]}
    assert clock.order == "ababab"


def test_spread_is_median_and_ends() -> None:
    assert spread([3.0, 1.0, 10.0, 2.0]) == (2.5, 1.0, 10.0)
    assert json.loads(json.dumps(to_json({"a": [Spread(1, 2, 3)], "b": None}))) == {
        "a": [{"median": 1, "min": 2, "max": 3}],
        "b": None,
    }


def test_short_operations_are_repeated() -> None:
    calls = []
    assert times_of_stretch(calls.append) > 1000
    assert calls == [1, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_losses_must_be_finite(bad: float) -> None:
    assert check_losses(np.array([[1.0, 3.0]]), "training") == 2.0
    with pytest.raises(UserError, match="training: 1 of 2 losses"):
        check_losses(np.array([1.0, bad]), "training")


def test_samples_must_be_pictures() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2, 1, 4, 4), dtype=np.uint8)
    check_images(noise)
    with pytest.raises(UserError, match="all pixels of 3 images are 127..127"):
        check_images(np.full((3, 1, 4, 4), 127, np.uint8))
    with pytest.raises(UserError, match="all 2 images are the same"):
        check_images(noise[[0, 0]])


@pytest.mark.parametrize("config", [small_config(), small_adm_config()], ids=["ncsnpp", "adm"])
def test_random_weights_hide_no_branch(config: Config) -> None:
    """They have the network's names and shapes, and its output is neither small nor large."""
    arrays = random_arrays(config)
    assert {name: a.shape for name, a in arrays.items()} == parameter_shapes(config)
    assert all(a.dtype == np.float32 and (a != 0).all() for a in arrays.values())
    x = np.random.default_rng(0).standard_normal((3, *config.data.shape), dtype=np.float32)
    output = make_model(config, arrays, "cpu").network(x, np.zeros(3, np.float32), labels_of(config, 3))
    assert 0.1 < output.std() < 10
    assert labels_of(config, 4).tolist() == [0, 1, 2, 0]
    assert labels_of(load_preset("cifar10"), 4) is None


def test_the_machine_is_described(tmp_path: Path) -> None:
    machine, versions = describe_machine(), describe_versions()
    assert machine["cpu"]
    assert machine["cores"] >= 1
    assert {"python", "numpy", "torch", "jax", "flax", "optax"} <= versions.keys()
    assert 2**20 < process_memory() < machine["memory_bytes"]
    assert describe_commit(tmp_path) is None
