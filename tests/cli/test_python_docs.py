"""The examples of docs/python.md run, one after the other, and do what they say; so does the notebook."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import smallest

from ict_backends import train
from ict_core.settings import build_config, replace

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
NOTEBOOK = DOCS / "tour.ipynb"
# In place of a preset, whose network takes long to compile.
SETTINGS = build_config(smallest(train={"batch_size": 4, "learning_rate": 1e-2, "ema_decay": 0.5}))


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on enough images of 8x8 RGB for all metrics."""
    out, settings = tmp_path_factory.mktemp("mine") / "run", replace(SETTINGS, train={"total_steps": 30})
    images = np.random.default_rng(0).integers(0, 256, (240, 8, 8, 3), dtype=np.uint8)
    train(settings, images, out=out, device="cpu")
    return out


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_examples_run(
    tmp_path: Path, mine: Path, backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(EXAMPLES) == 6
    names: dict[str, Any] = {"settings": SETTINGS}
    printed = []
    for example in EXAMPLES:
        code = example.replace('load("runs/mine")', f'load("runs/mine", backend="{backend}")')
        code = code.replace('out="runs', f'backend="{backend}", out="runs').replace('"runs/mine"', repr(str(mine)))
        code = code.replace('load_backend("torch")', f'load_backend("{backend}")')
        code = code.replace('load_preset("digits")', "settings")
        exec(compile(code, "docs/python.md", "exec"), names)
        printed.append(capsys.readouterr().out)
    images = names["images"].astype(int)
    assert names["images"].dtype == np.uint8
    assert images.shape == names["better"].shape == names["others"].shape == (16, 8, 8, 3)
    assert (tmp_path / "samples.png").is_file()
    assert len(printed[0].splitlines()) == 3
    np.testing.assert_array_equal(names["filled"][:, :4], images[:, :4])
    assert (names["filled"][:, 4:] != images[:, 4:]).any()
    for name in ("larger", "coloured", "clean", "drawn"):
        assert names[name].shape == images.shape
    luma = np.array([0.299, 0.587, 0.114])
    assert np.median(np.abs(names["coloured"] @ luma - images @ luma)) < 1
    assert np.abs(names["between"][[0, -1]].astype(int) - images[:2]).max() <= 1
    perfect = float(printed[2].split()[1])
    assert 0 < perfect < float(printed[2].split()[0])
    assert {"pixel-fd", "sw"} <= names["two_steps"].keys()
    assert names["held_out"]["reference"] == 16
    assert len(names["losses"]) == 4
    assert names["again"].config.network.num_classes == 2
    assert names["again"].backend == backend
    assert printed[4] == "steps and sigmas exclude each other\n"
    assert names["path"].shape == (6, 4, 3, 8, 8)
    np.testing.assert_array_equal(names["repainted"][:, :, :4], names["floats"][:, :, :4])
    assert float(printed[5]) > 0


def test_the_notebook_runs_in_two_minutes(tmp_path: Path) -> None:
    """Of one core's time, however busy the machine is; and the stored outputs are those of the stored code."""
    out = tmp_path / "tour.ipynb"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, DOCS / "tour.py", out], check=True, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120
    stored, new = (json.loads(path.read_text(encoding="utf-8")) for path in (NOTEBOOK, out))
    assert NOTEBOOK.stat().st_size < 300_000
    assert len(stored["cells"]) == len(new["cells"])
    for cell, rerun in zip(stored["cells"], new["cells"], strict=True):
        if cell["cell_type"] == "code":
            assert [kinds(output) for output in cell["outputs"]] == [kinds(output) for output in rerun["outputs"]]
    text = out.read_text(encoding="utf-8")
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", text)]
    assert losses[-1] < losses[0]
    one, two, perfect = map(float, re.findall(r"one step ([\d.]+), two steps ([\d.]+), perfect ([\d.]+)", text)[0])
    assert perfect < min(one, two)
    assert max(one, two) < 3
    (largest,) = re.findall(r"the largest difference is (\d+) of 255", text)
    assert int(largest) <= 3


def kinds(output: dict[str, Any]) -> list[str]:
    """The types of an output: what is printed and drawn differs from machine to machine."""
    return sorted(output.get("data", {"stream": ""}))
