"""What the commands import before they need it: nothing that takes long."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from ict_cli.main import ict

SLOW = {"torch", "jax", "jaxlib", "flax", "optax", "sklearn", "scipy", "matplotlib", "PIL", "pyarrow", "tqdm"}
SLOW |= {"array_api_strict", "datasets", "diffusers", "einops", "safetensors", "tensorboardX", "torchmetrics"}


def imported_by(arguments: list[str]) -> set[str]:
    """The top-level names that a command has loaded at its end, in a process of its own."""
    script = (
        "import sys\nfrom ict_cli.main import run\n"
        "try:\n    run(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout
    return set(done.stderr.split())


def commands(group: click.Group, *path: str) -> Iterator[list[str]]:
    """Every command, those of groups too."""
    context = click.Context(group)
    for name in group.list_commands(context):
        yield [*path, name]
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


HELP = [[*names, "--help"] for names in ([], *commands(ict))]


@pytest.mark.parametrize(
    "arguments", [["--version"], ["show"], ["show", "digits"], ["show", "--settings"], *HELP], ids=" ".join
)
def test_a_command_imports_nothing_slow(arguments: list[str]) -> None:
    assert imported_by(arguments) & SLOW == set()


def test_help_needs_not_even_numpy() -> None:
    assert "numpy" not in imported_by(["--help"])


def test_the_check_finds_what_is_imported() -> None:
    assert "numpy" in imported_by(["show", "digits"])
