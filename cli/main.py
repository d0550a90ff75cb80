"""The `ict` command: the list of its subcommands, and the only place that turns errors into a line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

_COMMANDS = {
    "train": "Train a model from images.",
    "data": "Describe a data set, or pack it into one file.",
    "sample": "Draw images from a trained model.",
    "edit": "Edit images: inpaint, colorize, super-resolve, denoise, interpolate, stroke.",
    "eval": "Measure how far a model's images are from the data.",
    "report": "Write an HTML page about a run.",
    "search-sigmas": "Find good noise levels for sampling in several steps.",
    "show": "Print the settings, size and stages of a preset or a run.",
    "ablate": "Train variants of a recipe over several seeds, and compare them.",
    "bench": "Measure how fast this machine trains and samples, and how near that is to its limits.",
    "import": "Convert somebody else's checkpoint into a run.",
    "export": "Write a run's model in the format of another library.",
}
_INTERRUPTED = 130


class _LazyGroup(click.Group):
    """Imports the module of a command only when the command is used, so that `ict --help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = "import_" if name == "import" else name  # a keyword cannot name a module
        return getattr(importlib.import_module(f"ict_cli.{module}"), f"{name}_command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ict")
def ict() -> None:
    """Train, sample and study consistency models by improved consistency training (arXiv 2310.14189).

    Start with `ict train --preset digits`, then `ict sample RUN --out samples.png`.
    """
    from ict_backends.console import show_on_stderr

    show_on_stderr()


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with a code.

    The code is 0, or 1 for errors of data, checkpoints and disks, 2 for errors of usage, 130 for Ctrl-C, and 128 + the
    signal's number for a training that was told to stop.

    Args:
        argv: the arguments; by default those of the process.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _exit(ict.main(args=arguments, prog_name="ict", standalone_mode=False) or 0)
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            raise
        line, code = _explain(error)
        if line is None:
            raise
        click.echo(line, err=True)
        _exit(code, error)


def _exit(code: int, error: BaseException | None = None) -> NoReturn:
    """Exit with a code; if several processes train together, without the exit handlers of libraries.

    These would wait for the other processes, and one of those may be gone.
    """
    from ict_backends.environment import leaves_at_once
    from ict_backends.errors import LostProcessError

    if leaves_at_once() or isinstance(error, LostProcessError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _explain(error: BaseException) -> tuple[str | None, int]:
    """The line to show for an error, and the exit code.

    The line is None for a fault of the software, which shows its traceback.
    """
    from ict_backends.errors import UserError
    from ict_core import ConfigError

    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "Interrupted.", _INTERRUPTED
    if isinstance(error, click.ClickException):
        return f"Error: {' '.join(error.format_message().split())}", error.exit_code
    if isinstance(error, UserError):
        return f"Error: {error}", error.exit_code
    if isinstance(error, ConfigError):
        return f"Error: {error}", 2
    if isinstance(error, BrokenPipeError):
        # The reader of the output is gone; output that Python still flushes at exit is discarded.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "Error: the output was closed", 1
    if isinstance(error, OSError) and error.strerror:
        return f"Error: {error.filename or 'output'}: {error.strerror}", 1
    return None, 1
