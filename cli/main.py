"""The `ict` command: the list of its subcommands, and the only place where errors become one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

_SECTIONS = {
    "Train": {
        "train": "Train a model from images.",
        "data": "Describe a data set, or pack it into one file.",
        "show": "Print the settings, size and stages of a preset or a run.",
        "runs": "List runs, with how far each has come.",
        "ema": "Make an average of the weights of another length.",
    },
    "Sample": {
        "sample": "Draw images from a trained model.",
        "edit": "Change images: inpaint, colorize, super-resolve, denoise, interpolate, stroke.",
        "search-sigmas": "Find good noise levels for sampling in several steps.",
    },
    "Measure": {
        "eval": "Measure how far a model's images are from the data.",
        "report": "Write a page about a run, or about two side by side.",
        "ablate": "Train variants of a recipe over several seeds and compare them.",
        "bench": "Measure the speed of training and sampling against this machine's limits.",
    },
    "Exchange": {
        "import": "Make a run from a checkpoint of another project.",
        "export": "Write a run's model in the format of another library.",
    },
}
_COMMANDS = [name for section in _SECTIONS.values() for name in section]
_INTERRUPTED = 130


class _LazyGroup(click.Group):
    """A group that imports a command's module only when the command is used, so that `ict --help` answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        module = "import_" if name == "import" else name  # a keyword cannot name a module
        return getattr(importlib.import_module(f"ict_cli.{module}"), f"{name}_command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, _COMMANDS))
        for title, commands in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), what) for name, what in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in _COMMANDS and not args[0].startswith("-"):
            from ict_cli.unknown import describe_command

            raise click.UsageError(describe_command(args[0], _COMMANDS))
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ict")
def ict() -> None:
    """Train, sample and study consistency models by improved consistency training (arXiv 2310.14189).

    Start with `ict train --preset digits`, then `ict sample RUN --out samples.png`.
    """
    from ict_backends.console import show_on_stderr

    show_on_stderr()


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    The exit code is 0 on success, 1 for errors of data, checkpoints and disks, 2 for errors of usage, 130 after Ctrl-C,
    and 143 or 129 where training was stopped by SIGTERM or SIGHUP.

    Args:
        argv: the arguments after `ict`; by default those of this process.
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
    """Exit with a code; as one of several processes, without running the exit handlers of libraries.

    These handlers would wait for the other processes, of which one may be gone.
    """
    from ict_backends.environment import leaves_at_once
    from ict_backends.errors import LostProcessError

    if leaves_at_once() or isinstance(error, LostProcessError):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _explain(error: BaseException) -> tuple[str | None, int]:
    """The line to show for an error, and the exit code; the line is None for a bug, which shows its traceback.

    Where a group is called without a command, its help takes the place of the line.
    """
    from ict_backends.errors import UserError
    from ict_core import ConfigError

    if isinstance(error, click.Abort) and isinstance(
        error.__cause__, EOFError
    ):  # which click takes for the end of what a user types
        return "Error: a file that was being read ends too early; --debug shows where", 1
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "Interrupted.", _INTERRUPTED
    no_arguments = getattr(click.exceptions, "NoArgsIsHelpError", ())  # which click 8.1 lacks
    if isinstance(error, click.ClickException) and isinstance(error, no_arguments):
        return error.format_message(), error.exit_code
    if isinstance(error, click.NoSuchOption):
        from ict_cli.unknown import describe_option

        return f"Error: {describe_option(error.option_name, error.ctx.command if error.ctx else None)}", error.exit_code
    if isinstance(error, click.ClickException):
        return f"Error: {' '.join(error.format_message().split())}", error.exit_code
    if isinstance(error, UserError):
        return f"{error.prefix}{error}", error.exit_code
    if isinstance(error, ConfigError):
        return f"Error: {error}", 2
    if isinstance(error, BrokenPipeError):
        # The reader of the output is gone; the rest, which Python flushes at exit, goes to the null device.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return "Error: the output was closed", 1
    if isinstance(error, MemoryError):
        return f"Error: out of memory{f': {error}' if str(error) else ''}", 1
    if isinstance(error, OSError) and error.strerror:
        return f"Error: {error.filename or 'output'}: {error.strerror}", 1
    return None, 1
