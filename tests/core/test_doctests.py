"""The examples in the docstrings of the core give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import ict_core

MODULES = [importlib.import_module(f"ict_core.{module.name}") for module in pkgutil.iter_modules(ict_core.__path__)]


def test_every_example_gives_what_it_says() -> None:
    examples = [t for module in MODULES for t in doctest.DocTestFinder().find(module) if t.examples]
    assert len(examples) >= 6
    results = [doctest.testmod(module) for module in MODULES]
    assert sum(result.failed for result in results) == 0


def test_a_wrong_example_is_found() -> None:
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda text: None).failed == 1
