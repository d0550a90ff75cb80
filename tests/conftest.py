"""Hypothesis profiles and the fixtures of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jaxlib
import numpy as np
import pytest
from helpers import LIBRARIES, Library
from hypothesis import HealthCheck, settings
from tiny import smallest

from ict_backends.console import show_on_stderr
from ict_backends.data.dataset import Dataset
from ict_core import Config
from ict_core.settings import build_config, merge

# What the tests compile is not for later processes.
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "0")

# The networks of the tests run for microseconds, and XLA's optimiser would take most of the time. It reads this when
# the first array is made, and stops at a flag that it does not know.
_FLAGS = ["--xla_backend_optimization_level=0"]
if jaxlib.__version__.startswith("0.10."):
    _FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
    _FLAGS += ["--xla_llvm_disable_expensive_passes=true"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])

# Speed is no property under test: neither deadlines nor the check on slow draws may fail a busy machine.
_UNTIMED = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("dev", max_examples=20, **_UNTIMED)
settings.register_profile("ci", max_examples=60, derandomize=True, print_blob=True, **_UNTIMED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))

# Tests read what commands show, though most call what a command calls and no command.
show_on_stderr()

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "fixtures"


# Session scope: Hypothesis runs many examples in one test call, which rules out per-function fixtures.
@pytest.fixture(scope="session", params=LIBRARIES, ids=lambda library: library.name)
def lib(request: pytest.FixtureRequest) -> Library:
    """Each array library in turn."""
    return request.param


@pytest.fixture(scope="session", params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    """Each floating dtype in turn."""
    return request.param


@pytest.fixture(scope="session")
def ema_schedule() -> Mapping[str, np.ndarray]:
    """The official N(k) and mu(k) of original consistency training, by key."""
    return _load_reference("ema_schedule_open.npz")


@pytest.fixture(scope="session")
def schedules() -> Mapping[str, np.ndarray]:
    """The official schedules, by key; conventions in the README beside the file."""
    return _load_reference("schedules_open.npz")


def _load_reference(name: str) -> Mapping[str, np.ndarray]:
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip(f"reference fixtures are not here: {path}")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


# The smallest configuration in which every part of training has something to do.
TINY = smallest(
    data={"shape": [3, 8, 8], "flip": True},
    network={"channel_mult": [1, 2], "attention_resolutions": [4], "dropout": 0.3},
    train={
        "total_steps": 10,
        "batch_size": 6,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "log_every": 2,
        "sample_every": 0,
        "checkpoint_every": 0,
    },
)


@pytest.fixture
def tiny_config() -> Callable[..., Config]:
    """A function from changed sections to a configuration that trains in a moment."""

    def make(**sections: Mapping[str, Any]) -> Config:
        return build_config(merge([TINY, sections]))

    return make


@pytest.fixture
def tiny_data() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (10, 3, 8, 8), dtype=np.uint8), np.arange(10) % 4)
