"""Write docs/settings.md from the presets and the dataclasses: `python docs/settings.py`, or `--check`."""

from __future__ import annotations

import sys
from pathlib import Path

from ict_core import preset_names
from ict_core.reference import OURS, PAPERS, Section, Setting, describe_preset, sections
from ict_core.settings import RENAMED

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Settings

Every setting of a run: its type, its default, what it may be and where its default comes from. This page is made from
the dataclasses of `ict_core/config.py` by `python docs/settings.py`.

A setting is given as `--set section.name=value`, or in a TOML file for `--config` under `[section]`. A run starts from
a preset (`ict show` lists them, `ict show cifar10` prints one), then takes `--config`, then `--set`, then the other
options; later ones win. `ict show --settings` prints what follows, or what of it has a word in it. The defaults are
those of the paper's CIFAR-10 run; the last column says where each comes from, and is empty where it is chosen here. An
unknown name, a wrong type or a value out of range is refused in one line.

"""
HEAD += f"{PAPERS}: [the map](paper-map.md) has what is from where.\n"


def table(section: Section) -> str:
    """The heading of a section, what it is about, and a row for each setting."""
    head = "| name | type | default | allowed | what it is | source |\n|---|---|---|---|---|---|"
    return "\n".join([f"## {section.title}", "", section.about, "", head, *map(row, section.settings)])


def row(setting: Setting) -> str:
    """The line of the table for a setting."""
    source = "" if setting.source == OURS else setting.source
    cells = (f"`{setting.name}`", setting.kind, f"`{setting.default}`", setting.allowed, setting.about, source)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def presets() -> str:
    """A table of the presets."""
    lines = [f"| `{name}` | {describe_preset(name)} |" for name in preset_names()]
    return "\n".join(["## The presets", "", "| name | what it is |", "|---|---|", *lines])


def page() -> str:
    """The whole page."""
    parts = [HEAD, presets(), *map(table, sections())]
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
