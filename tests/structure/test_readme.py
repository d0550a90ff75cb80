"""The README's code runs, and what it names exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_example_of_the_core_runs_and_prints_a_loss() -> None:
    (example,) = (block for block in blocks("python") if "ict_core" in block)
    assert len(example.strip().splitlines()) <= 12
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0


def test_pictures_and_links_to_files_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_two_commands_are_on_the_first_screen_and_in_the_makefile() -> None:
    screen = README.splitlines()[:30]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert any(line.startswith(f"make {target} ") for line in screen)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize(
    "line", [line for block in blocks("sh") for line in block.splitlines() if line.startswith("ict ")]
)
def test_every_option_of_the_commands_exists(line: str) -> None:
    words = line.split("#")[0].split()
    from ict_cli.main import ict

    command = ict.get_command(None, words[1])  # type: ignore[arg-type]
    if isinstance(command, click.Group):
        command = command.get_command(None, words[2])  # type: ignore[arg-type]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_the_table_names_every_file_of_the_core() -> None:
    for path in (ROOT / "ict_core").glob("[a-z]*.py"):
        assert f"`{path.name}`" in README
