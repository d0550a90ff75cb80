"""The options that several commands share, and the functions that read their values."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ict_backends.errors import UsageError
from ict_core import Config
from ict_core.sampling import check_falling_sigmas

if TYPE_CHECKING:
    from ict_backends.protocols import Backend

backend_option = click.option("--backend", default="torch", show_default=True, help="The framework: torch or jax.")
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    help="The device: auto (a GPU if there is one), cpu, cuda, cuda:1, ...",
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Seed of the noise."
)
weights_option = click.option(
    "--weights",
    type=click.Choice(["ema", "raw", "best"]),
    default="ema",
    show_default=True,
    help="ema: averaged weights; raw: last weights; best: averaged weights of the best evaluation.",
)
batch_option = click.option(
    "--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="Images computed at a time."
)
DATA_HELP = (
    'Images: "digits"; a folder, .zip or .tar (.gz, .xz) of image files; .npz, .npy or .parquet; or hf:NAME of a '
    "Hugging Face dataset. docs/data.md says more."
)
size_option = click.option("--size", type=int, help="Resample all images to this height and width (data.size).")
crop_option = click.option(
    "--crop",
    type=click.Choice(["none", "center"]),
    help="Take the middle square of each image first (data.crop).  [default: none]",
)
# `ict_cli.main.run` reads --debug from the arguments; it is declared so that every command takes and documents it.
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")


def open_backend(name: str, device: str) -> Backend[Any, Any]:
    """Load a backend, and set this process up for it and for the device.

    Raises:
        UsageError: the backend or the device is not available.
    """
    from ict_backends import load_backend

    engine = load_backend(name)
    engine.tune_process(device)
    engine.check_device(device)
    return engine


def steps_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --steps and --sigmas to a command; `resolve_sigmas` reads them."""
    command = click.option("--sigmas", help="Falling noise levels, one for each step, such as 80,0.821.")(command)
    return click.option(
        "--steps",
        type=click.IntRange(min=1),
        help="Sampling steps: 1; 2, with the preset's second level; or as many as `ict search-sigmas` has found levels "
        "for.  [default: 1]",
    )(command)


def resolve_sigmas(config: Config, steps: int | None, sigmas: str | None, *, run: Path | None = None) -> list[float]:
    """The falling noise levels of sampling, one for each step: those of --sigmas, or the first --steps known levels.

    The known levels are those that `ict search-sigmas` has found for `run`, or else the two of its settings.

    Args:
        config: the settings of the model.
        steps: the value of --steps.
        sigmas: the value of --sigmas.
        run: the run's folder.

    Raises:
        UsageError: the options are wrong; the message says what is allowed.
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
    return levels


def _searched_sigmas(run: Path | None) -> list[float]:
    from ict_backends.runs.folder import RunDir
    from ict_backends.sampling.search_sigmas import load_sigmas

    return load_sigmas(RunDir(run)) if run else []


def resolve_labels(config: Config, labels: str | None, num: int, *, seed: int = 0) -> np.ndarray | None:
    """The classes of images 0..num-1, [num] int64; None for an unconditional model.

    Args:
        config: the settings of the model.
        labels: classes that take turns, such as "3" or "0,1,2"; "balanced" or None for all of them; or "random", where
            the class of image i depends only on the seed and i.
        num: number of images.
        seed: seed of random classes.

    Raises:
        UsageError: the labels are wrong; the message says what is allowed.
    """
    classes = config.network.num_classes
    if not classes:
        if labels is not None:
            raise UsageError(f"--labels {labels}: the model is unconditional (network.num_classes = 0)")
        return None
    if labels == "random":
        from ict_backends.randomness import image_labels

        return image_labels(seed, range(num), classes)
    try:
        asked = list(range(classes)) if labels in (None, "balanced") else [int(text) for text in labels.split(",")]
    except ValueError:
        raise UsageError(f'--labels {labels} must be integers such as 3 or 0,1,2, "balanced" or "random"') from None
    bad = [label for label in asked if not 0 <= label < classes]
    if bad:
        raise UsageError(f"--labels {labels}: {bad[0]} is not in 0..{classes - 1}")
    return np.resize(np.array(asked, dtype=np.int64), num)


def command_line(*without: str) -> str:
    """The words that repeat the running command: its name, its arguments, and the options that were given.

    Args:
        without: names of parameters that are left out.
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
    """The words that give a parameter its value."""
    option = [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
    values = value if isinstance(value, tuple) else (value,)
    if isinstance(parameter, click.Option) and parameter.is_flag:
        return option * len(values)
    return [word for each in values for word in (*option, str(each))]


def check_new_folder(out: Path) -> None:
    """Raise UsageError if `out` exists and is not an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is not an empty folder; choose another one")


def check_output(out: Path, suffixes: Sequence[str], *, create: bool) -> None:
    """Check, before any work, that `out` can become a file with one of the suffixes, or a new folder.

    Args:
        out: the file or folder.
        suffixes: the suffixes that a file may have.
        create: make the folder, or that of the file, so that an error is raised now and not after the work.

    Raises:
        UsageError: `out` has another suffix, is a folder that should be a file, or is not an empty folder.
        OSError: the folder cannot be made.
    """
    if out.suffix and out.suffix not in suffixes:
        raise UsageError(f"--out {out} must end in {' or '.join(suffixes)}, or name a folder")
    if out.suffix and out.is_dir():
        raise UsageError(f"--out {out} is a folder")
    if not out.suffix:
        check_new_folder(out)
    if create:
        (out.parent if out.suffix else out).mkdir(parents=True, exist_ok=True)
