"""Reading, merging and naming settings, and the presets: from TOML and the command line to a `Config`."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ict_core.config import FAMILIES, ADMConfig, Config, ConfigError, NCSNppConfig, literal, require
from ict_core.suggestions import Suggestion, nearest, suggest_setting

PRESETS = Path(__file__).parent / "presets"

# Sections of settings by name, each a dict of values.
Tree = Mapping[str, Mapping[str, Any]]


def preset_names() -> list[str]:
    """The names that `load_preset` takes."""
    return sorted(p.stem for p in PRESETS.glob("*.toml"))


def load_preset(name: str) -> Config:
    """A preset's configuration. Raises ConfigError, naming the presets there are."""
    return build_config(preset_tree(name))


def preset_tree(name: str) -> Tree:
    """A preset's TOML as nested dicts, to be merged with others before `build_config`."""
    if name not in preset_names():
        raise ConfigError(
            f"unknown preset {literal(name)}{_suggest(name, preset_names())}; there are {', '.join(preset_names())}"
        )
    return read_toml(PRESETS / f"{name}.toml")


def read_toml(path: Path) -> Tree:
    """A TOML file of sections as nested dicts. Raises ConfigError where it is no such file."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # among them, those of TOML, of UTF-8 and of endless numbers
        raise ConfigError(f"{path} is not a TOML file: {error}") from None
    for name, section in tree.items():
        if not isinstance(section, dict):
            raise ConfigError(f"{path}: {name} must stand in a section such as [train]")
    return with_current_names(tree)


def load_config(path: Path) -> Config:
    """The configuration that a TOML file holds over the defaults. Raises OSError, and ConfigError as `build_config`."""
    return build_config(read_toml(path))


# Settings of earlier versions, which their runs still have -> what they are called now.
RENAMED = {"noise.noise_mean": "p_mean", "noise.noise_std": "p_std"}


def current_name(name: str) -> str:
    """The current dotted name of a setting; runs of earlier versions may use an older one."""
    section, _, _ = name.partition(".")
    return f"{section}.{RENAMED[name]}" if name in RENAMED else name


def with_current_names(tree: Tree) -> Tree:
    """The tree with the settings of earlier versions under the names that they have now.

    Raises ConfigError where one is given by both names.
    """
    return {section: _current_section(section, values) for section, values in tree.items()}


def _current_section(section: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    current: dict[str, Any] = {}
    for key, value in values.items():
        name = RENAMED.get(f"{section}.{key}", key)
        if name != key and name in values:
            raise ConfigError(f"{section}.{key} is the old name of {section}.{name}; only one of them may be given")
        current[name] = value
    return current


def parse_assignment(text: str) -> Tree:
    """The `a.b=value` of the command line; the value is TOML, or else a bare string."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key):
        meant = suggest(name.strip()) if equals and not dot else None
        hint = f"; did you mean {meant.name}={value.strip()}?" if meant and not meant.note else ""
        raise ConfigError(f"--set {literal(text)} must be SECTION.KEY=VALUE, such as train.batch_size=64{hint}")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value.strip()
    return with_current_names({section: {key: parsed}})


def merge(trees: Iterable[Tree]) -> Tree:
    """One tree in which later values replace earlier ones."""
    merged: dict[str, dict[str, Any]] = {}
    for tree in trees:
        for section, values in with_current_names(tree).items():
            merged.setdefault(section, {}).update(values)
    return merged


def build_config(tree: Tree) -> Config:
    """The configuration of nested dicts: names, types and ranges checked, defaults filled in.

    Raises:
        ConfigError: for an unknown name (with the nearest known one), a wrong type, a bad value.
    """
    return Config(**build_sections(tree))


def build_sections(tree: Tree) -> dict[str, Any]:
    """The sections that `tree` names, each checked by itself; `Config` checks what they must agree on."""
    types = typing.get_type_hints(Config)
    tree = with_current_names(tree)
    for section in tree:
        if section not in types:
            meant = _suggest_section(section, tree[section])
            raise ConfigError(f"unknown section [{section}]{meant}; there are {', '.join(types)}")
    if "network" in tree:
        types["network"] = _network_type(tree["network"].get("family", "ncsnpp"))
    return {name: _build_section(name, types[name], tree[name]) for name in tree}


def _network_type(family: object) -> type[NCSNppConfig] | type[ADMConfig]:
    """The class of settings of a network family. Raises ConfigError, naming the families there are."""
    if not isinstance(family, str) or family not in FAMILIES:
        allowed = " or ".join(map(literal, FAMILIES))
        raise ConfigError(f"network.family must be {allowed}, not {literal(family)}")
    return FAMILIES[family]


def _build_section(section: str, kind: type[Any], values: Mapping[str, Any]) -> Any:
    types = typing.get_type_hints(kind)
    for key in values:
        if key not in types:
            raise ConfigError(f"unknown key {section}.{key}{_suggest_setting(section, kind, key)}")
    return kind(**{key: _coerce(f"{section}.{key}", types[key], value) for key, value in values.items()})


def _coerce(name: str, kind: Any, value: Any) -> Any:
    """`value` as `kind`; integers become floats and lists become tuples, nothing else is converted."""
    if typing.get_origin(kind) is types.UnionType:  # an integer, or a list of integers
        one, several = typing.get_args(kind)
        return _coerce(name, several if isinstance(value, (list, tuple)) else one, value)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        require(isinstance(value, (list, tuple)), name, value, f"a list of {_KINDS[item]}s")
        return tuple(_coerce(name, item, v) for v in value)
    if isinstance(value, int):
        require(-_WIDEST <= value < _WIDEST, name, value, "an integer of 64 bits")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    require(type(value) is kind, name, value, f"a{'n' if kind is int else ''} {_KINDS[kind]}")
    if kind is float:
        require(math.isfinite(value), name, value, "finite")
    return value


# Integers beyond these would overflow in NumPy, in floats and in files.
_WIDEST = 2**63
_KINDS = {int: "integer", float: "number", str: "string", bool: "boolean (true or false)"}


def _settings() -> dict[str, list[str]]:
    """The names of all settings by section; for the network, those of every family."""
    sections = {name: [f.name for f in fields(kind)] for name, kind in _sections().items()}
    return sections | {"network": list(dict.fromkeys(f.name for kind in FAMILIES.values() for f in fields(kind)))}


def _sections() -> dict[str, type[Any]]:
    """The class of each section; for the network, that of the first family."""
    return typing.get_type_hints(Config) | {"network": NCSNppConfig}


def suggest(name: str) -> Suggestion | None:
    """The setting that is meant by a name without a section, such as "lr"; None where that is not clear."""
    return suggest_setting(name, _settings())


def _suggest_setting(section: str, kind: type[Any], key: str) -> str:
    """The setting that an unknown key of a section may mean, or else all settings of the section."""
    here = [f.name for f in fields(kind)]
    if section == "network" and key in _settings()["network"]:
        family = next(name for name, other in FAMILIES.items() if key in {f.name for f in fields(other)})
        return f"; it is of network.family = {literal(family)}"
    meant = suggest_setting(key, _settings() | {section: here}, section)
    return f"; did you mean {meant}?" if meant else f"; [{section}] has {', '.join(here)}"


# What sections are called elsewhere.
_SECTIONS_ELSEWHERE = {
    "dataset": "data",
    "diffusion": "noise",
    "evaluation": "eval",
    "model": "network",
    "net": "network",
    "optim": "train",
    "optimizer": "train",
    "sampler": "sample",
    "sampling": "sample",
    "trainer": "train",
    "training": "train",
    "unet": "network",
}


def _suggest_section(section: str, values: Mapping[str, Any]) -> str:
    """The section or the setting that an unknown section with these values may mean."""
    near = nearest(section, _settings())
    keys = [] if near else [str(meant) for key in values if (meant := suggest(key))]
    found = near or (keys[0] if keys else _SECTIONS_ELSEWHERE.get(section))
    return f"; did you mean {found}?" if found else ""


def _suggest(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def replace(config: Config, **sections: Mapping[str, Any]) -> Config:
    """A copy with some values changed: `replace(config, train={"seed": 1})`."""
    changed = {s: dataclasses.replace(getattr(config, s), **values) for s, values in sections.items()}
    return dataclasses.replace(config, **changed)
