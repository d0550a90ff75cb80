"""The least times in docs/scale.md are those that bench/scale.py prints, and other rates give other ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def printed(*arguments: str) -> str:
    command = [sys.executable, str(ROOT / "bench" / "scale.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def milliseconds(table: str) -> list[float]:
    """Of a step on one device, by preset."""
    return [float(line.split("|")[3].replace(",", "")) for line in table.splitlines()[2:]]


def test_the_document_has_the_table() -> None:
    assert printed() in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


def test_half_the_rates_are_twice_the_time() -> None:
    slow = milliseconds(printed("--product=395", "--memory=1.5"))
    assert slow == pytest.approx([2 * ms for ms in milliseconds(printed())], rel=0.01)


@pytest.mark.parametrize("path", ["docs/scale.md", "docs/paper-map.md", "ict_core/presets/cifar10.toml"])
def test_the_published_cost_is_the_same_everywhere(path: str) -> None:
    text = " ".join((ROOT / path).read_text(encoding="utf-8").replace("#", " ").split())
    assert "about one week on 8 GPUs" in text
    assert text.count("week") == 1
