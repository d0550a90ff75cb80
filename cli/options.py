"""What several commands share: options, and how their values are read."""

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

backend_option = click.option("--backend", default="torch", show_default=True, help="What computes.")
device_option = click.option(
    "--device", default="auto", show_default=True, help="Where: auto (a GPU if there is one), cpu, cuda, cuda:1, ..."
)
seed_option = click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Of the noise."
)
weights_option = click.option(
    "--weights",
    type=click.Choice(["ema", "raw", "best"]),
    default="ema",
    show_default=True,
    help="Averaged weights, last ones, or the averaged ones of the best evaluation.",
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
# Read by `ict_cli.main.run` from the arguments; declared so that every command takes and documents it.
debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")


def open_backend(name: str, device: str) -> Backend[Any, Any]:
    """A backend, for which this process is set up. Raises UsageError where it or the device is not available."""
    from ict_backends import load_backend

    engine = load_backend(name)
    engine.tune_process(device)
    engine.check_device(device)
    return engine


def steps_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --steps and --sigmas."""
    command = click.option("--sigmas", help="Falling noise levels, one a step, such as 80,0.821.")(command)
    return click.option(
        "--steps",
        type=click.IntRange(min=1),
        help="1; 2 with the preset's second level; or as many as `ict search-sigmas` found.  [default: 1]",
    )(command)


def resolve_sigmas(config: Config, steps: int | None, sigmas: str | None, *, run: Path | None = None) -> list[float]:
    """The levels that --steps or --sigmas ask for: those found for the run, or else the preset's two.

    Raises UsageError, naming the option and what is allowed.
    """
    first, second = config.noise.sigma_max, config.sample.second_sigma
    if sigmas is None:
        known = _found(run) or [first, second]
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


def _found(run: Path | None) -> list[float]:
    from ict_backends.runs.folder import RunDir
    from ict_backends.sampling.search_sigmas import load_sigmas

    return load_sigmas(RunDir(run)) if run else []


def resolve_labels(config: Config, labels: str | None, num: int, *, seed: int = 0) -> np.ndarray | None:
    """[num] class labels; None for an unconditional model.

    Args:
        labels: classes such as "3" or "0,1,2", in turn; "balanced" or None, all in turn; "random", each image's a
            function of (seed, its number).
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
    """What repeats the command that is being carried out: its arguments, and the options that were given.

    Args:
        without: names of parameters that are left out.
    """
    context = click.get_current_context()
    words = ["ict", context.info_name]
    for parameter in context.command.params:
        given = context.params.get(parameter.name)
        if (
            parameter.name in without
            or given is None
            or context.get_parameter_source(parameter.name) == click.core.ParameterSource.DEFAULT
        ):
            continue
        name = [] if isinstance(parameter, click.Argument) else [parameter.opts[0]]
        for value in given if isinstance(given, tuple) else (given,):
            flag = isinstance(parameter, click.Option) and parameter.is_flag
            words += name if flag else [*name, str(value)]
    return shlex.join(words)


def check_new_folder(out: Path) -> None:
    """Raise UsageError where `out` is there and no empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is not an empty folder; choose another one")


def check_output(out: Path, suffixes: Sequence[str], *, create: bool) -> None:
    """Raise before any work unless `out` can become a file with one of the suffixes, or a new folder.

    With `create`, the folder is made, so that one that cannot be made is found out now.
    """
    if out.suffix and out.suffix not in suffixes:
        raise UsageError(f"--out {out} must end in {' or '.join(suffixes)}, or name a folder")
    if out.suffix and out.is_dir():
        raise UsageError(f"--out {out} is a folder")
    if not out.suffix:
        check_new_folder(out)
    if create:
        (out.parent if out.suffix else out).mkdir(parents=True, exist_ok=True)
