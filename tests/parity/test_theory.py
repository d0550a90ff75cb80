"""Each backend learns the mixture of docs/theory.md: the distance from its exact map falls as training goes on."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from ict_backends import load_backend
from ict_core import scalings

PATH = Path(__file__).resolve().parents[2] / "bench" / "mixture.py"
SPEC = importlib.util.spec_from_file_location("mixture", PATH)
MIX = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MIX)

LEVELS = np.array([0.5, 1.5, 5.0, 20.0, 80.0])
SHORT = {
    "network": {"channels": 16},
    "curriculum": {"s0": 10, "s1": 40},
    "train": {
        "total_steps": 240,
        "batch_size": 128,
        "learning_rate": 4e-3,
        "ema_decay": 0.97,
        "checkpoint_every": 60,
        "keep_checkpoints": 0,
    },
}


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_training_brings_the_learnt_map_nearer_to_the_exact_one(tmp_path: Path, backend: str) -> None:
    engine, config = load_backend(backend), MIX.make_config(**SHORT)
    x, sigma = MIX.noisy_points(LEVELS, 100)
    exact = MIX.exact_consistency(MIX.MIXTURE, x, sigma, steps=200)
    run = MIX.train(engine, config, tmp_path / "run")
    latest = MIX.learnt_consistency(engine.load_model(run.path), x, sigma)
    for folder in run.checkpoints()[1:]:
        shutil.rmtree(folder)
    early = MIX.learnt_consistency(engine.load_model(run.path), x, sigma)
    # A new network gives zero.
    c_skip = scalings(sigma, sigma_data=config.noise.sigma_data, sigma_min=config.noise.sigma_min).c_skip
    errors = [MIX.mean_errors(a, exact, len(LEVELS)) for a in (c_skip[:, None] * x, early, latest)]
    untrained, sixty, all_steps = (e.mean() for e in errors)
    assert all_steps < 0.5 * untrained
    assert all_steps < 0.6 * sixty
    assert (errors[2] < errors[0]).all()
