"""What the README and the pages of docs/ name exists, and the README's code runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "bench" / "gpu.md")
}
LINES = [
    (name, line)
    for name, text in PAGES.items()
    for block in re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)
    for line in re.sub(r"\\\n *", "", block).splitlines()
]
COMMAND_LINES = [pytest.param(line, id=f"{name}: {line}") for name, line in LINES if line.startswith("ict ")]
LAUNCHES = [pytest.param(line, id=f"{name}: {line}") for name, line in LINES if line.startswith("torchrun ")]


def anchor(heading: str) -> str:
    """The name that a link gives to a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def test_the_example_of_the_core_runs_and_prints_a_loss() -> None:
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "ict_core" in block)
    assert len(example.strip().splitlines()) <= 12
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 0


@pytest.mark.parametrize("page", PAGES)
def test_pictures_and_links_lead_to_files_and_headings(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in map(anchor, headings), link


def test_the_readme_leads_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", README))
    assert linked == PAGES.keys() - {"README.md", "bench/gpu.md"}


def test_the_two_commands_are_on_the_first_screen_and_in_the_makefile() -> None:
    screen = README.splitlines()[:30]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("demo", "test"):
        assert any(line.startswith(f"make {target} ") for line in screen)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_option_of_the_commands_exists(line: str) -> None:
    words = line.split("#")[0].split()
    from ict_cli.main import ict

    command = ict.get_command(None, words[1])  # type: ignore[arg-type]
    if isinstance(command, click.Group):
        command = command.get_command(None, words[2])  # type: ignore[arg-type]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("line", LAUNCHES)
def test_torchrun_takes_the_options_of_the_commands_for_no_options_of_its_own(line: str) -> None:
    from torch.distributed.run import get_args_parser

    words = line.split("#")[0].split()[1:]
    launch = get_args_parser().parse_args(words)
    assert (launch.module, launch.training_script) == (True, "ict_cli")
    test_every_option_of_the_commands_exists(" ".join(["ict", *launch.training_script_args]))
    # And none that the user adds.
    assert get_args_parser().parse_args([*words, "--num", "5"]).training_script_args[-2:] == ["--num", "5"]


def test_the_table_names_every_file_of_the_core() -> None:
    for path in (ROOT / "ict_core").glob("[a-z]*.py"):
        assert f"`{path.name}`" in PAGES["docs/architecture.md"]


def test_the_table_of_commands_is_whole() -> None:
    from ict_cli.main import ict

    table = README.partition("## The commands")[2].partition("##")[0]
    assert set(re.findall(r"`ict ([\w-]+)`", table)) == set(ict.list_commands(None))  # type: ignore[arg-type]


def test_the_trees_name_every_room() -> None:
    rooms = [path.parent.name for path in (ROOT / "backends").glob("*/__init__.py")]
    architecture = PAGES["docs/architecture.md"]
    assert [room for room in rooms if f"  {room}/" not in architecture and f" {room}/" not in architecture] == []
    tree = README.partition("## How it is organised")[2].partition("##")[0]
    for folder in ("ict_core", "backends", "cli", "tests", "bench", "docs"):
        assert f"\n{folder}/ " in tree
