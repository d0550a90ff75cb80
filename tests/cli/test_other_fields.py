"""The programs of docs/other-fields.md run, on both kinds of data and in both frameworks, and learn."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "other-fields.md"
DATA, *PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
BACKENDS = dict(zip(("torch", "jax"), PROGRAMS, strict=True))


def changed(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


def distance(points: np.ndarray, data: np.ndarray) -> float:
    """The mean distance of points from the nearest of the data."""
    squares = (points**2).sum(axis=1)[:, None] - 2 * points @ data.T + (data**2).sum(axis=1)
    return float(np.sqrt(np.maximum(squares.min(axis=1), 0)).mean())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("data", ["moons", "waves"])
def test_each_program_learns(backend: str, data: str) -> None:
    setting = changed(DATA, "= 8000, 256, 128,", "= 400, 64, 32,")
    if data == "waves":
        setting = changed(setting, "data, dim = moons, 2  # or waves, 32", "data, dim = waves, 32")
    program = BACKENDS[backend].replace("10_000", "500").replace("0.998", "0.98")
    assert sum(bool(line.strip()) for line in program.splitlines()) <= 40
    names: dict[str, Any] = {}
    exec(setting + program, names)
    real, shape = names["data"](2000), (500, names["dim"])
    steady = [np.asarray(names[name]) for name in ("samples", "finer")]
    assert [points.shape for points in steady] == [shape, shape]
    noise = 0.5 * np.random.default_rng(0).standard_normal(shape)
    assert all(distance(points, real) < 0.8 * distance(noise, real) for points in steady)
