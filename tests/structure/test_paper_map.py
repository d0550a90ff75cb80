"""docs/paper-map.md names what exists, and leaves out nothing that `ict_core` offers."""

from __future__ import annotations

import ast
import importlib
import re
from functools import lru_cache
from pathlib import Path

import pytest

import ict_core

ROOT = Path(__file__).resolve().parents[2]
MAP = (ROOT / "docs" / "paper-map.md").read_text(encoding="utf-8")
FUNCTIONS = sorted(set(re.findall(r"`(ict_(?:core|backends)(?:\.\w+)+)`", MAP)))
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", MAP)))


@lru_cache
def functions_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def exists(name: str) -> bool:
    """Whether a function (`ict_core.x`) or a test (`tests/x.py::test_x`) is there."""
    if name.startswith("tests/"):
        path, _, test = name.partition("::")
        return (ROOT / path).is_file() and (not test or test in functions_in(path))
    module, _, attribute = name.rpartition(".")
    return hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", FUNCTIONS + TESTS)
def test_what_the_map_names_exists(name: str) -> None:
    assert exists(name)


@pytest.mark.parametrize("name", ict_core.__all__)
def test_the_map_names_all_that_is_public(name: str) -> None:
    assert f"ict_core.{name}" in FUNCTIONS


def test_settings_of_the_map_exist() -> None:
    named = re.findall(r"`(\w+Config)\.(\w+)`", MAP)
    assert named
    assert all(field in getattr(ict_core, config).__dataclass_fields__ for config, field in named)


def test_the_check_can_fail() -> None:
    missing = ["ict_core.karras_sigma", "ict_backends.torch.step.nothing", "tests/core/test_none.py"]
    assert not any(exists(name) for name in [*missing, "tests/core/test_loss.py::test_nothing"])
    assert len(FUNCTIONS) > 40
    assert len(TESTS) > 70
