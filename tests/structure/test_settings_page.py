"""docs/settings.md is made from the dataclasses, and falls behind none of them."""

from __future__ import annotations

import importlib.util
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import pytest

from ict_core import Config, preset_names, reference
from ict_core.config import FAMILIES, one_of
from ict_core.reference import describe_preset, section, sections, summarize_preset

FOLDER = Path(__file__).resolve().parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("settings_page", FOLDER / "settings.py")
assert SPEC is not None
assert SPEC.loader is not None
settings_page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(settings_page)
KINDS = [kind for name, kind in typing.get_type_hints(Config).items() if name != "network"] + [*FAMILIES.values()]


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

        Sources:
            a paper, sec. 1: haste, way
        """

        speed: float = 2.0
        haste: float = 3.0
        way: Annotated[str, one_of(("left", "right"))] = "left"

    Section.__annotations__ = {"speed": float, "haste": float, "way": Annotated[str, one_of(("left", "right"))]}
    assert settings_page.table(section("x", "[x]", Section)).splitlines()[2:] == [
        "Something.",
        "",
        "| name | type | default | allowed | what it is | source |",
        "|---|---|---|---|---|---|",
        "| `speed` | number | `2.0` |  | how fast. |  |",
        "| `haste` | number | `3.0` |  | how fast. | a paper, sec. 1 |",
        '| `way` | word | `"left"` | "left" or "right" | which way. | a paper, sec. 1 |',
    ]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_source_is_that_of_settings(kind: type) -> None:
    named = [name for _, names in reference._entries(kind, "Sources") for name in names.split(", ")]
    assert len(named) == len(set(named))
    assert set(named) <= {field.name for field in fields(kind)}


def test_the_numbers_of_the_method_have_sources() -> None:
    source = {f"{s.name}.{each.name}": each.source for s in sections() for each in s.settings}
    assert source["noise.rho"] == "EDM table 1"
    assert source["loss.huber_factor"] == "iCT sec. 3.3"
    assert source["train.ema_decay"] == "iCT app."
    assert source["sample.second_sigma"] == "iCT sec. 4"
    assert source["train.log_every"] == reference.OURS


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_has_a_sentence_of_its_own(name: str) -> None:
    sentence = summarize_preset(name)
    assert describe_preset(name).startswith(sentence)
    assert sentence.endswith(".")
    assert 20 < len(sentence) < 200
