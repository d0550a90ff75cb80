"""Write docs/settings.md from the presets and the dataclasses: `python docs/settings.py`, or `--check`."""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields
from itertools import takewhile
from pathlib import Path

import ict_core
from ict_core.config import FAMILIES, Config, literal, rules_of
from ict_core.settings import RENAMED, preset_names

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Settings

Every setting of a run: its type, its default and what it may be. This page is made from the dataclasses of
`ict_core/config.py` by `python docs/settings.py`.

A setting is given as `--set section.name=value`, or in a TOML file for `--config` under `[section]`. A run starts from
a preset (`ict show` lists them, `ict show cifar10` prints one), then takes `--config`, then `--set`, then the other
options; later ones win. The defaults below are those of the paper's CIFAR-10 run. An unknown name, a wrong type or a
value out of range is refused in one line.
"""
KINDS = {int: "integer", float: "number", str: "word", bool: "true or false"}


def descriptions(section: type) -> dict[str, str]:
    """The descriptions of a section's settings, by name, from the "Attributes" of its docstring."""
    _, _, text = (inspect.getdoc(section) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", text):
        names, _, words = entry.strip().partition(": ")
        for name in names.split(", "):
            found[name] = " ".join(words.split())
    return found


def kind_of(hint: object) -> str:
    """A setting's type in words."""
    if typing.get_origin(hint) is types.UnionType:
        return " or ".join(map(kind_of, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"list of {KINDS[typing.get_args(hint)[0]]}s"
    return KINDS[typing.cast(type, hint)]


def rows(section: type) -> Iterator[str]:
    """A line of the table for each setting of a section."""
    hints, rules, words = typing.get_type_hints(section), rules_of(section), descriptions(section)
    for field in fields(section):
        assert field.default is not MISSING, field.name
        allowed = rules[field.name].words if field.name in rules else ""
        kind = kind_of(hints[field.name])
        cells = (f"`{field.name}`", kind, f"`{literal(field.default)}`", allowed, words[field.name])
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(title: str, section: type) -> str:
    """The heading of a section, what it is about, and its table."""
    about = (inspect.getdoc(section) or "").partition("\n\n")[0]
    head = "| name | type | default | allowed | what it is |\n|---|---|---|---|---|"
    return "\n".join([f"## {title}", "", " ".join(about.split()), "", head, *rows(section)])


def presets() -> str:
    """A table of the presets, from the first lines of their files."""
    lines = ["## The presets", "", "| name | what it is |", "|---|---|"]
    for name in preset_names():
        text = (Path(ict_core.__file__).parent / "presets" / f"{name}.toml").read_text(encoding="utf-8")
        about = [line[2:] for line in takewhile(lambda line: line.startswith("#"), text.splitlines())]
        lines.append(f"| `{name}` | {' '.join(line for line in about if not line.startswith(('(c):', '(b):')))} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    parts = [HEAD, presets()]
    for name, hint in typing.get_type_hints(Config).items():
        if name == "network":
            parts += [table(f'[network], family = "{family}"', kind) for family, kind in FAMILIES.items()]
        else:
            parts.append(table(f"[{name}]", hint))
    old = ", ".join(f"`{old}` (now `{old.partition('.')[0]}.{new}`)" for old, new in RENAMED.items())
    parts.append(f"## Names of earlier versions\n\nStill read, in runs and on the command line: {old}.")
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def main() -> None:
    """Write the page, or with --check exit with 1 where it is behind."""
    if sys.argv[1:] == ["--check"]:
        if PAGE.read_text(encoding="utf-8") != page():
            sys.exit(f"{PAGE} is behind ict_core/config.py: run python docs/settings.py")
    else:
        PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
