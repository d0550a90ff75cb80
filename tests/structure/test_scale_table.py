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


PAGES = [*ROOT.glob("docs/*.md"), *ROOT.glob("ict_core/presets/*.toml"), ROOT / "README.md"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_what_the_papers_run_costs_is_said_in_one_place(path: Path) -> None:
    text = " ".join(path.read_text(encoding="utf-8").split())
    here = path.name == "scale.md"
    assert text.count("week") == here
    assert ("about one week on 8 GPUs" in text) == here


@pytest.mark.parametrize("name", ["imagenet64", "imagenet64-deep"])
def test_the_known_divergence_stands_beside_the_preset(name: str) -> None:
    for path in (f"ict_core/presets/{name}.toml", "docs/scale.md"):
        text = (ROOT / path).read_text(encoding="utf-8").replace("#", " ")
        assert "diverged after about 620,000" in " ".join(text.replace("*", "").split())
