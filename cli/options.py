"""The options that several commands share, and the functions that read their values."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ict_backends.console import say, warn
from ict_backends.errors import UsageError
from ict_core import Config
from ict_core.sampling import check_falling_sigmas

if TYPE_CHECKING:
    from ict_backends.measuring.reference import Reference
    from ict_backends.protocols import Backend
    from ict_backends.runs.folder import RunDir


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
    type=click.Choice(["ema", "raw", "best"]),
    default="ema",
    show_default=True,
    help="Which weights: averaged (ema), not averaged (raw), or averaged at the best evaluation (best).",
)
batch_option = click.option(
    "--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Images to compute at a time."
)
DATA_HELP = (
    'Images: "digits"; a folder, .zip or .tar (.gz, .xz) of image files; .npz, .npy or .parquet; or hf:NAME of a '
    "Hugging Face dataset. See docs/data.md."
)
size_option = click.option("--size", type=int, help="Resample all images to this height and width (data.size).")
crop_option = click.option(
    "--crop",
    type=click.Choice(["none", "center"]),
    help="First crop each image to its middle square (data.crop).  [default: none]",
)
# `ict_cli.main.run` reads --debug from the arguments; this declares it, so that every command takes and documents it.
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")

# Warn of a first level below this share of sigma_max.
_NEAR_FIRST = 0.5


def examples(*lines: str) -> str:
    """The end of a command's help: its examples, a line each."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])  # click keeps the lines after a \b


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
    """Add --steps and --sigmas to a command, whose values `resolve_sigmas` reads."""
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


labels_option = click.option(
    "--labels", help="Classes to draw, as for `ict sample`.  [default: in the proportions of the data, or in turn]"
)


def check_reference(run: RunDir, config: Config, reference: Reference) -> None:
    """Raise DataError unless the images of a reference, if it has any, are those that the run was trained on."""
    from ict_backends.data.dataset import Dataset
    from ict_backends.runs.folder import check_training_data

    if reference.images is not None and reference.moments is None:
        check_training_data(run, config, Dataset(reference.images, reference.labels))


def labels_to_compare(
    run: RunDir, config: Config, reference: Reference, labels: str | None, num: int, *, seed: int
) -> tuple[str | None, np.ndarray | None]:
    """The classes of samples that are compared with a reference, as `resolve_labels` returns them.

    Args:
        labels: the value of --labels; by default "data", if it is known how many images of each class the data have.

    Returns:
        The value of --labels, or its default; and the classes, [num] int64, or None for an unconditional model.
    """
    from ict_backends.measuring.reference import class_counts_of
    from ict_backends.runs.folder import class_counts

    counts = class_counts_of(reference, config.network.num_classes, class_counts(run, config))
    chosen = "data" if labels is None and counts is not None else labels
    return chosen, resolve_labels(config, chosen, num, seed=seed, counts=counts)


def resolve_sigmas(config: Config, steps: int | None, sigmas: str | None, *, run: Path | None = None) -> list[float]:
    """The falling noise levels to sample at, one per step: those of --sigmas, or the first --steps known levels.

    The known levels are those that `ict search-sigmas` found for `run`, or else the two of the settings. A first level
    of --sigmas that is far below sigma_max leads to a warning.

    Raises:
        UsageError: the options exclude each other, or their values are not allowed; the message says what is.
        CheckpointError: the levels of the run cannot be read.
    """
    first, second = config.noise.sigma_max, config.sample.second_sigma
    if sigmas is None:
        known = _searched_sigmas(run) or [first, second]
        if (steps or 1) > len(known):
            raise UsageError(
                f"--steps {steps} needs its levels: --sigmas {first:g},... with {steps} falling values, or "
                f"`ict search-sigmas RUN --steps {steps}` first"
            )
        return known[: steps or 1]
    if steps is not None:
        raise UsageError("--steps and --sigmas exclude each other")
    try:
        levels = [float(text) for text in sigmas.split(",")]
        check_falling_sigmas(levels, sigma_min=config.noise.sigma_min, sigma_max=first)
    except ValueError as error:
        raise UsageError(f"--sigmas {sigmas}: {error}") from error
    if levels[0] < _NEAR_FIRST * first:
        warn(
            f"--sigmas {sigmas}: the first level is far below {first:g} (noise.sigma_max), where the first images are "
            "nothing but noise: they will have too little contrast"
        )
    return levels


def _searched_sigmas(run: Path | None) -> list[float]:
    from ict_backends.runs.folder import open_run
    from ict_backends.sampling.search_sigmas import load_sigmas

    return load_sigmas(open_run(run)) if run else []


def resolve_labels(
    config: Config, labels: str | None, num: int, *, seed: int = 0, counts: np.ndarray | None = None
) -> np.ndarray | None:
    """The classes of images 0..num-1, [num] int64; None for an unconditional model.

    Args:
        labels: the value of --labels: classes that take turns, such as "3" or "0,1,2"; "balanced" or None for all
            classes in turn; "data" for the proportions of the data; or "random", where the class of image i depends
            only on the seed and i.
        counts: how many images of each class the data have, [num_classes]; None if that is not known.

    Raises:
        UsageError: the value is not allowed; the message says what is.
    """
    classes = config.network.num_classes
    if not classes:
        if labels is not None:
            raise UsageError(f"--labels {labels}: the model is unconditional (network.num_classes = 0)")
        return None
    if labels == "random":
        from ict_backends.randomness import image_labels

        return image_labels(seed, range(num), classes)
    if labels == "data":
        from ict_backends.sampling.batches import proportional_labels

        if counts is None:
            raise UsageError("--labels data: the run does not say how many images of each class its data have")
        return proportional_labels(counts, num)
    try:
        asked = list(range(classes)) if labels in (None, "balanced") else [int(text) for text in labels.split(",")]
    except ValueError:
        raise UsageError(
            f'--labels {labels} must be integers such as 3 or 0,1,2, "balanced", "data" or "random"'
        ) from None
    bad = [label for label in asked if not 0 <= label < classes]
    if bad:
        raise UsageError(f"--labels {labels}: {bad[0]} is not in 0..{classes - 1}")
    return np.resize(np.array(asked, dtype=np.int64), num)


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
