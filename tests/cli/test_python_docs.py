"""The examples of docs/python.md run, one after the other, and do what they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ict_core import patch_means, to_grey

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_examples_run(
    tmp_path: Path, rgb_run: Path, backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(EXAMPLES) == 3
    names: dict = {}
    for example in EXAMPLES:
        code = example.replace('"runs/mine"', repr(str(rgb_run))).replace(
            'load_backend("torch")', f'load_backend("{backend}")'
        )
        exec(compile(code, "docs/python.md", "exec"), names)
    images = names["images"]
    assert images.shape == names["better"].shape == (16, 3, 8, 8)
    assert (tmp_path / "samples.png").is_file()
    assert names["steps"].shape == (6, 4, 3, 8, 8)
    np.testing.assert_array_equal(names["filled"][:, :, :4], images[:, :, :4])
    np.testing.assert_allclose(patch_means(names["larger"], size=2), images[:, :, ::2, ::2], atol=1e-5)
    np.testing.assert_allclose(to_grey(names["coloured"]), to_grey(images), atol=1e-5)
    assert names["clean"].shape == names["drawn"].shape == images.shape
    assert np.abs(names["noisy"] - images).std() > 0.2
    np.testing.assert_allclose(names["between"][[0, -1]], images[:2], atol=1e-4)
    assert float(capsys.readouterr().out) >= 0
