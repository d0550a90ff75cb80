"""What each setting and each preset is, in words: for docs/settings.md and `ict show --settings`.

The words are those of the docstrings of `ict_core.config`, under "Attributes" and "Sources", and of the first comment
in the file of each preset.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from dataclasses import MISSING, fields
from itertools import takewhile
from typing import NamedTuple

from ict_core.config import FAMILIES, Config, literal, rules_of
from ict_core.settings import PRESETS

_KINDS = {int: "integer", float: "number", str: "word", bool: "true or false"}
# Where a default comes from that no source gives.
OURS = "this software"
# The papers that sources name by their letters.
PAPERS = "iCT is arXiv 2310.14189, CM arXiv 2303.01469 and EDM arXiv 2206.00364"


class Setting(NamedTuple):
    """A setting.

    Attributes:
        name: its name in its section.
        kind: its type, in words.
        default: its default, in the notation of TOML.
        allowed: its range, in words; "" where every value of the type is allowed, or `about` says it.
        about: what it is.
        source: the paper and its section, or the code, that the default is from; else `OURS`.
    """

    name: str
    kind: str
    default: str
    allowed: str
    about: str
    source: str


class Section(NamedTuple):
    """A section of settings.

    Attributes:
        name: its name in TOML files.
        title: its heading; the network has one for each family.
        about: what it is about.
        settings: its settings, in order.
    """

    name: str
    title: str
    about: str
    settings: list[Setting]


def sections() -> list[Section]:
    """All sections, in order; for the network, one for each family."""
    found = []
    for name, hint in typing.get_type_hints(Config).items():
        if name == "network":
            found += [section(name, f'[network], family = "{family}"', kind) for family, kind in FAMILIES.items()]
        else:
            found.append(section(name, f"[{name}]", hint))
    return found


def section(name: str, title: str, kind: type) -> Section:
    """The section of a dataclass."""
    about = (inspect.getdoc(kind) or "").partition("\n\n")[0]
    return Section(name, title, " ".join(about.split()), _settings(kind))


def _settings(kind: type) -> list[Setting]:
    hints, rules, words, sources = typing.get_type_hints(kind), rules_of(kind), _descriptions(kind), _sources(kind)
    found = []
    for field in fields(kind):
        assert field.default is not MISSING, field.name
        name = field.name
        allowed = rules[name].words if name in rules else ""
        default, source = literal(field.default), sources.get(name, OURS)
        found.append(Setting(name, _kind_of(hints[name]), default, allowed, words[name], source))
    return found


def _kind_of(hint: object) -> str:
    """A setting's type in words."""
    if typing.get_origin(hint) is types.UnionType:
        return " or ".join(map(_kind_of, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return f"list of {_KINDS[typing.get_args(hint)[0]]}s"
    return _KINDS[typing.cast(type, hint)]


def _entries(kind: type, heading: str) -> list[tuple[str, str]]:
    """The entries "NAME: words" under a heading of a docstring."""
    match = re.search(rf"^{heading}:\n((?:(?:    .*)?\n?)*)", inspect.getdoc(kind) or "", re.M)
    entries = re.split(r"\n(?=    \S)", match[1].rstrip()) if match else []
    return [(name, " ".join(words.split())) for name, _, words in (e.strip().partition(": ") for e in entries)]


def _descriptions(kind: type) -> dict[str, str]:
    """The descriptions of a section's settings, by name."""
    return {name: words for names, words in _entries(kind, "Attributes") for name in names.split(", ")}


def _sources(kind: type) -> dict[str, str]:
    """The sources of the defaults of a section's settings, by name, for those that have one."""
    return {name: source for source, names in _entries(kind, "Sources") for name in names.split(", ")}


def describe_preset(name: str) -> str:
    """What a preset is: the first comment of its file, without the key to its marks."""
    text = (PRESETS / f"{name}.toml").read_text(encoding="utf-8")
    comment = [line[2:] for line in takewhile(lambda line: line.startswith("#"), text.splitlines())]
    return " ".join(line for line in comment if not line.startswith("(c):"))


def summarize_preset(name: str) -> str:
    """The first sentence of `describe_preset`."""
    return re.split(r"(?<=\.) (?=[A-Z])", describe_preset(name), maxsplit=1)[0]
