"""docs/settings.md is made from the dataclasses, and falls behind none of them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest

from ict_core import Config
from ict_core.config import FAMILIES, one_of
from ict_core.settings import preset_names

FOLDER = Path(__file__).resolve().parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("settings_page", FOLDER / "settings.py")
assert SPEC is not None
assert SPEC.loader is not None
settings_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(settings_page)


def test_the_page_is_that_of_the_dataclasses() -> None:
    assert (FOLDER / "settings.md").read_text(encoding="utf-8") == settings_page.page()


@pytest.mark.parametrize("name", Config().flat())
def test_the_page_has_every_setting_with_its_description(name: str) -> None:
    section, _, key = name.partition(".")
    lines = [line for line in settings_page.page().splitlines() if line.startswith(f"| `{key}` | ")]
    assert lines, f"{section} has no {key}"
    assert all(line.rstrip(" |").count("|") >= 5 for line in lines)


@pytest.mark.parametrize("name", preset_names())
def test_the_page_says_what_each_preset_is(name: str) -> None:
    (line,) = (line for line in settings_page.page().splitlines() if line.startswith(f"| `{name}` | "))
    assert len(line) > len(name) + 40


def test_every_family_of_networks_has_its_table() -> None:
    assert all(f'family = "{family}"' in settings_page.page() for family in FAMILIES)


def test_a_changed_dataclass_changes_the_page() -> None:
    @dataclass
    class Section:
        """Something.

        Attributes:
            speed, haste: how fast.
            way: which
                way.
        """

        speed: float = 2.0
        haste: float = 3.0
        way: Annotated[str, one_of(("left", "right"))] = "left"

    Section.__annotations__ = {"speed": float, "haste": float, "way": Annotated[str, one_of(("left", "right"))]}
    assert settings_page.table("[x]", Section).splitlines()[2:] == [
        "Something.",
        "",
        "| name | type | default | allowed | what it is |",
        "|---|---|---|---|---|",
        "| `speed` | number | `2.0` |  | how fast. |",
        "| `haste` | number | `3.0` |  | how fast. |",
        '| `way` | word | `"left"` | "left" or "right" | which way. |',
    ]
