"""`ict train`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ict_backends.errors import UsageError
from ict_cli.options import (
    DATA_HELP,
    PATH,
    SOURCE,
    backend_option,
    command_line,
    crop_option,
    debug_option,
    device_option,
    examples,
    open_backend,
    size_option,
)
from ict_core import Config
from ict_core.settings import Tree, merge, parse_assignment, preset_tree, read_toml

if TYPE_CHECKING:
    from ict_backends.data.dataset import Dataset
    from ict_backends.protocols import Arrays
    from ict_backends.runs.folder import RunDir


# A larger share of initial weights in the average shows in samples.
_MOST_INITIAL = 0.05


@click.command(
    "train",
    epilog=examples(
        "ict train --preset digits",
        "ict train --data my-images/ --size 32 --crop center --out runs/mine",
        "ict train --out runs/mine --resume",
    ),
)
@backend_option
@click.option("--preset", default="digits", show_default=True, help="Settings to start from; `ict show` lists them.")
@click.option("--config", "config_file", type=PATH, help="TOML file of settings that override the preset's.")
@click.option("--data", type=SOURCE, help=DATA_HELP)
@size_option
@crop_option
@click.option("--out", type=PATH, help="The run's folder.  [default: runs/PRESET-BACKEND-NNN]")
@click.option("--set", "assignments", metavar="A.B=VALUE", multiple=True, help="Change one setting; repeatable.")
@click.option("--steps", type=int, help="Training steps (train.total_steps).")
@click.option("--seed", type=int, help="Seed of all random numbers (train.seed).")
@click.option(
    "--on-nonfinite",
    type=click.Choice(["stop", "skip"]),
    help="What to do if a loss or gradient is NaN or infinite (train.on_nonfinite): end the run, or skip and count the "
    "step, which then changes no weights.",
)
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard event files (train.tensorboard).")
@device_option
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the run in --out from its newest checkpoint, or from its beginning if it has none yet.",
)
@click.option(
    "--init",
    type=PATH,
    help="Start from the averaged weights of another run, with the settings of its network and its noise levels.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved settings and stop.")
@debug_option
@click.pass_context
def train_command(
    ctx: click.Context,
    backend: str,
    preset: str,
    config_file: Path | None,
    data: str | None,
    size: int | None,
    crop: str | None,
    out: Path | None,
    assignments: tuple[str, ...],
    steps: int | None,
    seed: int | None,
    on_nonfinite: str | None,
    tensorboard: bool,
    device: str,
    resume: bool,
    init: Path | None,
    dry_run: bool,
) -> None:
    """Train a model from images.

    Settings come from the preset, then --config, then --set, then the other options; later ones win. The settings are
    printed, and saved in the run's folder with metrics, sample pictures and checkpoints.

    After Ctrl-C, SIGTERM or SIGHUP, training finishes the current step, writes a checkpoint and exits with 130, 143 or
    129; a second Ctrl-C exits at once. Under torchrun, or wherever RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are
    set, processes train together.
    """
    from ict_backends.environment import share_of_work
    from ict_backends.runs.folder import RunDir, free_run_path, open_run, remember_end
    from ict_backends.runs.lock import in_use
    from ict_backends.training.resolve import (
        averaged_weights,
        check_alike,
        check_data,
        given_settings,
        resolve_new,
        resolve_resumed,
    )

    if resume and init:
        raise UsageError("--resume and --init exclude each other")
    flags = {"seed": seed, "on_nonfinite": on_nonfinite, "tensorboard": tensorboard or None}
    asked = _asked(config_file, assignments, given_settings(data=data, size=size, crop=crop, steps=steps, **flags))
    engine = open_backend(backend, device, joins=share_of_work()[1] > 1)
    with engine.joined(device) as processes, contextlib.ExitStack() as held:
        if processes.world > 1 and out is None:
            raise UsageError("--out RUN is needed where several processes train together")
        claims = processes.rank == 0 and not dry_run
        if resume:
            if out is None:
                raise UsageError("--resume needs --out RUN, the folder of the run to continue")
            if out.is_dir() and claims:
                held.enter_context(in_use(out))
            explicit = ctx.get_parameter_source("preset") != click.core.ParameterSource.DEFAULT
            config, dataset = resolve_resumed(RunDir(out), merge([preset_tree(preset)] * explicit + asked))
        else:
            base = _base(preset, init)
            if claims:  # before the data are read, which may take long
                out = _claim(out, f"{preset}-{backend}", held)
            out = out or free_run_path(Path("runs"), f"{preset}-{backend}")
            config, dataset = resolve_new(base, merge(asked))
        check_data(config, dataset)
        processes.check_split(config)
        weights = averaged_weights(open_run(init), config) if init else None
        run, notes = RunDir(out), list[str]()
        if not dry_run:
            check_alike(processes, config, dataset, resume=resume, init=weights is not None)
            notes = _prepare(run, config, dataset, weights, resume=resume) if processes.rank == 0 else []
            processes.wait()
        if processes.rank == 0:  # what is wrong has been said by now, and is not lost below the settings
            _announce(f"{'resume' if resume else 'run'} {out} with {backend}", config, dataset)
            click.echo("".join(f"# {note}\n" for note in notes), nl=False)
        if dry_run:
            return
        engine.train(config, dataset, run, processes=processes, resume=bool(run.checkpoints()))
    if processes.rank == 0:
        remember_end(run, config.train.total_steps)
        if weights is None and not resume:
            _warn_of_average(config)
        click.echo(f"Samples: {run.samples_file(config.train.total_steps)}\nMore: ict sample {out} --out samples.png")


def _claim(out: Path | None, name: str, held: contextlib.ExitStack) -> Path:
    """Take the folder of a new run, or by default the first runs/NAME-NNN that nobody else takes, until `held` ends."""
    from ict_backends.runs.folder import check_new_run, free_run_path
    from ict_backends.runs.lock import in_use

    if out is not None:
        check_new_run(out)
        held.enter_context(in_use(out))
        return out
    while True:
        free = free_run_path(Path("runs"), name)
        with contextlib.suppress(FileExistsError):
            held.enter_context(in_use(free, fresh=True))
            return free


def _base(preset: str, init: Path | None) -> Tree:
    """The settings to start from: the preset's, except those that make the first weights the function that they are.

    Args:
        init: the run that the first weights are from, or None.
    """
    from ict_backends.runs.folder import open_run
    from ict_backends.training.resolve import settings_of_model

    base = preset_tree(preset)
    if init is None:
        return base
    model = settings_of_model(open_run(init))
    return merge([{**base, "network": model["network"]}, model])


def _asked(config_file: Path | None, assignments: Sequence[str], flags: Tree) -> list[Tree]:
    """The settings that the user has given; later ones win."""
    file = [_read_file(config_file)] if config_file else []
    return [*file, *(parse_assignment(text) for text in assignments), flags]


def _announce(what: str, config: Config, dataset: Dataset) -> None:
    from ict_backends.networks.families import count_parameters

    click.echo(f"# {what}: {count_parameters(config):,} parameters, {len(dataset.images):,} images")
    click.echo(config.to_toml())


def _warn_of_average(config: Config) -> None:
    """Warn if samples of the averaged weights will still show the initial ones, which are drawn at random: as grey."""
    from ict_backends.console import warn

    decay, steps = config.train.ema_decay, config.train.total_steps
    left = decay**steps
    if left > _MOST_INITIAL:
        fits = 1 - 10 / steps
        less = f"train.ema_decay={fits:.3g} would fit" if fits > 0 else "--weights raw samples the others"
        warn(
            f"after {steps} steps, {left:.0%} of the averaged weights are still the initial ones, so that samples are "
            f"grey: train.ema_decay is {decay:g}; {less}"
        )


def _prepare(run: RunDir, config: Config, dataset: Dataset, weights: Arrays | None, *, resume: bool) -> list[str]:
    """Make the run's folder, or prepare it for continuing the run. Returns what there is to say of that."""
    from ict_backends.exchange.importing import start_from
    from ict_backends.reports.host import describe_versions
    from ict_backends.runs.folder import (
        create_run,
        remember_changes,
        remember_data,
        remember_start,
        remove_leftovers,
    )

    if not resume:
        first = None if weights is None else partial(start_from, config=config, arrays=weights)
        create_run(run.path, config, dataset, prepare=first or (lambda run: None))
        remember_start(run, command_line(), {"ict": version("ict"), **describe_versions()})
        return []
    remove_leftovers(run)
    remember_data(run, config, dataset)
    changes = remember_changes(run, config).items()
    remember_start(run, command_line(), {"ict": version("ict"), **describe_versions()})
    notes = [f"from here on, {name} is {new} and no longer {old}" for name, (old, new) in changes]
    if not run.checkpoints():
        notes.append("there is no checkpoint yet: starting from the beginning")
    return notes


def _read_file(path: Path) -> Tree:
    try:
        return read_toml(path)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error
