"""The options that several commands share, and the functions that read their values."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ict_backends.console import say
from ict_backends.errors import UsageError

if TYPE_CHECKING:
    from ict_backends.protocols import Backend


class _Path(click.Path):
    """A path, in which `~` stands for the user's home, also where the shell has left it as it is."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path. "-", which other programs take for a pipe, and an empty name are refused."""
        text = os.fspath(value)
        if text in ("", "-"):
            self.fail(f'"{text}" names no file or folder; pipes are not supported', param, ctx)
        return super().convert(os.path.expanduser(text), param, ctx)


class _Source(click.ParamType):
    """A path, as above, or another name of what is meant."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, with the user's home for `~`. "-" and an empty text are refused."""
        if value in ("", "-"):
            self.fail(f'"{value}" names nothing; pipes are not supported', param, ctx)
        return os.path.expanduser(value)


class _Weights(click.ParamType):
    """A kind of weights, in the form of `weights_name`."""

    name = "weights"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name. Raises UsageError if there cannot be such weights."""
        from ict_backends.runs.checkpoint import weights_name

        return weights_name(value)


# The types of all arguments and options that name a file or a folder; and of those that may name something else.
PATH, SOURCE = _Path(), _Source()

backend_option = click.option(
    "--backend", default="torch", show_default=True, help="Library to compute with: torch or jax."
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1, ...",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the random numbers."
)
weights_option = click.option(
    "--weights",
    type=_Weights(),
    metavar="ema|raw|best|LENGTH",
    default="ema",
    show_default=True,
    help="Which weights: averaged (ema), not averaged (raw), averaged at the best evaluation (best), or the average of "
    "a length that train.ema_sigma_rel keeps, such as 0.05.",
)
batch_option = click.option(
    "--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Images to compute at a time."
)
DATA_HELP = (
    'Images: "digits"; a folder, .zip or .tar (.gz, .xz) of image files; .npz, .npy or .parquet; or hf:NAME of a '
    "Hugging Face dataset. See docs/data.md."
)


class _Size(click.ParamType):
    """N, for squares, or HEIGHTxWIDTH: an integer or a tuple of two."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | tuple[int, ...]:
        parts = str(value).lower().split("x")
        if len(parts) > 2 or not all(part.isascii() and part.strip("+-").isdigit() for part in parts):
            self.fail(f"{value!r} is neither a number of pixels nor HEIGHTxWIDTH, such as 32 or 32x48", param, ctx)
        return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


size_option = click.option(
    "--size", type=_Size(), metavar="N|HxW", help="Resample all images to N x N, or to a height and width (data.size)."
)
crop_option = click.option(
    "--crop",
    type=click.Choice(["none", "center"]),
    help="First crop each image to its middle part of the proportions of --size, a square without it (data.crop).  "
    "[default: none]",
)
# `ict_cli.main.run` reads --debug from the arguments; this declares it, so that every command takes and documents it.
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")


def examples(*lines: str) -> str:
    """The end of a command's help: its examples, a line each."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])  # click keeps the lines after a \b


def grouped(groups: Mapping[str, Sequence[str]]) -> type[click.Command]:
    """A class of commands whose help lists the options under headings; those of no group come last.

    Args:
        groups: the names of the parameters under each heading.
    """

    class Grouped(click.Command):
        def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            records = {str(p.name): record for p in self.get_params(ctx) if (record := p.get_help_record(ctx))}
            rest = [name for name in records if not any(name in names for names in groups.values())]
            for title, names in {**groups, "Other options": rest}.items():
                with formatter.section(title):
                    formatter.write_dl([records[name] for name in names])

    return Grouped


def open_backend(name: str, device: str, *, joins: bool = False) -> Backend[Any, Any]:
    """Load a backend by its name, and set up this process for the backend and the device.

    Args:
        joins: several processes are going to train together: `joined` checks the device then, since JAX must not look
            for devices before it knows of the other processes.

    Raises:
        UsageError: the backend or the device is not available.
    """
    from ict_backends import load_backend

    engine = load_backend(name)
    engine.tune_process(device)
    if not joins:
        engine.check_device(device)
    return engine


def steps_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --steps and --sigmas to a command, whose values `sampling.choices.resolve_sigmas` reads."""
    command = click.option("--sigmas", help="Falling noise levels, one per step, such as 80,0.821.")(command)
    return click.option(
        "--steps",
        type=click.IntRange(min=1),
        help="Sampling steps: 1, 2, or up to as many as `ict search-sigmas` has found levels for.  [default: 1]",
    )(command)


def released_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --clip-steps and --truncate to a command: what released samplers do differently."""
    command = click.option(
        "--truncate", is_flag=True, help="Cut values off to 8 bits, as released samplers do, instead of rounding them."
    )(command)
    return click.option(
        "--clip-steps",
        is_flag=True,
        help="Clip to [-1, 1] after each step, as released samplers do, and not only at the end.",
    )(command)


solver_option = click.option(
    "--solver",
    type=click.Choice(("multistep", "heun")),
    help="How noise becomes an image: multistep, by the consistency function; heun, by the ODE of a diffusion model, "
    "in 18 steps unless --steps says otherwise.  [default: what the model was trained for]",
)

guidance_option = click.option(
    "--guidance",
    type=float,
    default=1.0,
    show_default=True,
    help="How strongly images are of their class (classifier-free guidance): 1 as trained, more for more, 0 for no "
    "class. For a model trained with train.label_dropout.",
)

labels_option = click.option(
    "--labels", help="Classes to draw, as for `ict sample`.  [default: in the proportions of the data, or in turn]"
)


def command_line(*without: str) -> str:
    """The command line, quoted for a shell, that repeats the running command with the options that were given.

    Args:
        without: names of parameters to leave out.
    """
    context = click.get_current_context()
    words = ["ict", str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        value = context.params.get(name)
        default = context.get_parameter_source(name) == click.core.ParameterSource.DEFAULT
        if name not in without and value is not None and not default:
            words += _repeat(parameter, value)
    return shlex.join(words)


def _repeat(parameter: click.Parameter, value: object) -> list[str]:
    """The words on the command line that give a parameter its value."""
    option = [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
    values = value if isinstance(value, tuple) else (value,)
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return option * len(values)
    return [word for each in values for word in (*option, str(each))]


def check_new_folder(out: Path) -> None:
    """Raise UsageError if `out` exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is not an empty folder; choose another one")


def check_replaceable(option: str, path: Path) -> None:
    """Say that a file which is there already will be replaced, if it is one that a command wrote.

    Raises:
        UsageError: `path` is a folder, or any other file; the message names the option.
    """
    from ict_backends.data.ours import is_our_output

    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder")
    if not (path.exists() or path.is_symlink()):
        return
    if not is_our_output(path):
        raise UsageError(f"{option} {path} is there already, and nothing that ict wrote; choose another name")
    say(f"{path} is there already, and will be replaced")


def check_output(out: Path, suffixes: Sequence[str], *, create: bool) -> None:
    """Check, before any work, that `out` can become a file with one of the suffixes, or a new folder.

    Args:
        suffixes: the suffixes that a file may have, such as ".png", in small letters; `out` may have capital ones.
        create: make the folder, or the folder of the file, so that an error comes now and not after the work.

    Raises:
        UsageError: `out` has another suffix, is a folder but should be a file, is a file that ict did not write, or is
            a folder that is not empty.
        OSError: the folder cannot be made.
    """
    if out.suffix and out.suffix.lower() not in suffixes:
        raise UsageError(f"--out {out} must end in {' or '.join(suffixes)}, or name a folder")
    if out.suffix and out.is_dir():
        raise UsageError(f"--out {out} is a folder")
    if out.suffix.lower() not in ("", ".npz"):  # what an .npz of samples holds is checked by `check_sink`
        check_replaceable("--out", out)
    if not out.suffix:
        check_new_folder(out)
    if create:
        (out.parent if out.suffix else out).mkdir(parents=True, exist_ok=True)
