"""`ict train`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    grouped,
    open_backend,
    size_option,
)
from ict_core import Config, __version__
from ict_core.settings import Tree, merge, parse_assignment, preset_tree, read_toml

if TYPE_CHECKING:
    from ict_backends.data.dataset import Dataset
    from ict_backends.protocols import Arrays, Backend, Processes
    from ict_backends.runs.folder import RunDir
    from ict_backends.training.recipes import Recipe


_GROUPS = {
    "What to train on": ("data", "size", "crop", "conditional", "init"),
    "Settings": ("preset", "config_file", "assignments", "steps", "batch_size", "lr", "seed", "on_nonfinite"),
    "The run": ("out", "resume", "tensorboard", "wandb", "backend", "device", "dry_run"),
}


@click.command(
    "train",
    cls=grouped(_GROUPS),
    epilog=examples(
        "ict train --preset digits",
        "ict train --data my-images/ --size 32 --crop center --out runs/mine",
        "ict train --out runs/mine --resume",
    ),
)
@backend_option
@click.option(
    "--preset",
    help="Settings to start from; `ict show` lists them.  [default: digits or, for other data, one that fits; with "
    "--init, finetune]",
)
@click.option("--config", "config_file", type=PATH, help="TOML file of settings that override the preset's.")
@click.option("--data", type=SOURCE, help=DATA_HELP)
@size_option
@crop_option
@click.option("--conditional", is_flag=True, help="Train on the classes of the data (network.num_classes).")
@click.option("--out", type=PATH, help="The run's folder.  [default: runs/NAME-BACKEND-NNN, by the preset or the data]")
@click.option("--set", "assignments", metavar="A.B=VALUE", multiple=True, help="Change one setting; repeatable.")
@click.option("--steps", type=int, help="Training steps (train.total_steps).")
@click.option("--batch-size", type=int, help="Images a step, over all devices (train.batch_size).")
@click.option("--lr", type=float, help="Learning rate (train.learning_rate).")
@click.option("--seed", type=int, help="Seed of all random numbers (train.seed).")
@click.option(
    "--on-nonfinite",
    type=click.Choice(["stop", "skip"]),
    help="What to do if a loss or gradient is NaN or infinite (train.on_nonfinite): end the run, or skip and count the "
    "step, which then changes no weights.",
)
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard event files (train.tensorboard).")
@click.option("--wandb", is_flag=True, help="Also log to Weights & Biases (train.wandb).")
@device_option
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the run in --out from its newest checkpoint, or from its beginning if it has none yet.",
)
@click.option(
    "--init",
    type=PATH,
    help="Start from the averaged weights of another run, with the settings of its network and its noise levels. "
    "Classes may be others.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved settings and an estimate of time, and stop.")
@debug_option
def train_command(
    backend: str,
    preset: str | None,
    config_file: Path | None,
    data: str | None,
    size: int | tuple[int, ...] | None,
    crop: str | None,
    conditional: bool,
    out: Path | None,
    assignments: tuple[str, ...],
    steps: int | None,
    batch_size: int | None,
    lr: float | None,
    seed: int | None,
    on_nonfinite: str | None,
    tensorboard: bool,
    wandb: bool,
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
    from ict_backends.runs.folder import RunDir, remember_end
    from ict_backends.training.resolve import check_data, given_settings, warn_of_average

    if resume and (init or conditional):
        raise UsageError(f"--resume and {'--init' if init else '--conditional'} exclude each other")
    flags = {"seed": seed, "on_nonfinite": on_nonfinite, "tensorboard": tensorboard or None, "wandb": wandb or None}
    given = given_settings(
        data=data, size=size, crop=crop, steps=steps, batch_size=batch_size, learning_rate=lr, **flags
    )
    asked = _asked(config_file, assignments, given)
    engine = open_backend(backend, device, joins=share_of_work()[1] > 1)
    with engine.joined(device) as processes, contextlib.ExitStack() as held:
        if processes.world > 1 and out is None:
            raise UsageError("--out RUN is needed where several processes train together")
        claims = held if processes.rank == 0 and not dry_run else None
        if resume:
            plan = _continued(out, preset, asked, claims)
        else:
            gpu = engine.device_name(device) != "cpu"
            plan = _new(out, preset, init, asked, conditional, claims, backend=backend, gpu=gpu)
        run, config, dataset = RunDir(plan.out), plan.config, plan.dataset
        check_data(config, dataset)
        processes.check_split(config)
        weights = _begin(engine, processes, plan, init, device, resume=resume, dry_run=dry_run)
        if processes.rank == 0:  # what is wrong has been said by now, and is not lost below the settings
            _announce(f"{'resume' if resume else 'run'} {run.path} with {backend}", config, dataset, plan.notes)
        if dry_run:
            return
        engine.train(config, dataset, run, processes=processes, resume=bool(run.checkpoints()))
    if processes.rank == 0:
        remember_end(run, config.train.total_steps)
        if weights is None and not resume:
            warn_of_average(config)
        samples = run.samples_file(config.train.total_steps)
        click.echo(f"Samples: {samples}\nMore: ict sample {run.path} --out samples.png")


class _Plan(NamedTuple):
    """What is going to be trained.

    Attributes:
        out: the run's folder.
        config: its settings.
        dataset: its data.
        notes: what there is to say of how they were chosen.
    """

    out: Path
    config: Config
    dataset: Dataset
    notes: list[str]


def _continued(out: Path | None, preset: str | None, asked: Tree, claims: contextlib.ExitStack | None) -> _Plan:
    """A run that goes on; `claims` holds its folder, unless nothing is to be written."""
    from ict_backends.runs.folder import RunDir
    from ict_backends.runs.lock import in_use
    from ict_backends.training.resolve import resolve_resumed

    if out is None:
        raise UsageError("--resume needs --out RUN, the folder of the run to continue")
    if out.is_dir() and claims is not None:
        claims.enter_context(in_use(out))
    config, dataset = resolve_resumed(RunDir(out), merge([preset_tree(preset) if preset else {}, asked]))
    return _Plan(out, config, dataset, [])


def _new(
    out: Path | None,
    preset: str | None,
    init: Path | None,
    asked: Tree,
    conditional: bool,
    claims: contextlib.ExitStack | None,
    *,
    backend: str,
    gpu: bool,
) -> _Plan:
    """A new run, by the preset that is asked for or that the data choose; `claims` holds its folder.

    Args:
        out, preset, init, conditional, backend: the values of the options.
        asked: the user's settings.
        claims: None if nothing is to be written.
        gpu: the run computes on an accelerator.
    """
    from ict_backends.runs.folder import free_run_path, open_run
    from ict_backends.training.recipes import check_family, chosen_recipe, notes_on, recipe_for
    from ict_backends.training.resolve import read_data, resolve_new

    first = open_run(init) if init else None
    recipe = chosen_recipe(preset, first, _source(asked))
    if first is not None:
        check_family(first, asked)
    name = f"{_name(recipe, asked)}-{backend}"
    if claims is not None:  # before the data are read, which may take long
        out = _claim(out, name, claims)
    out = out or free_run_path(Path("runs"), name)
    dataset = read_data(merge([recipe.settings if recipe else {}, asked]))
    recipe = recipe or recipe_for(dataset, str(_source(asked)), gpu=gpu)
    config = resolve_new(recipe.settings, asked, dataset, conditional=conditional)
    notes = recipe.notes() + notes_on(config, first)
    if recipe.reason and dataset.num_classes > 1 and not config.network.num_classes:
        notes.append(f"the {dataset.num_classes} classes are not used; --conditional trains on them")
    return _Plan(out, config, dataset, notes)


def _begin(
    engine: Backend[Any, Any],
    processes: Processes,
    plan: _Plan,
    init: Path | None,
    device: str,
    *,
    resume: bool,
    dry_run: bool,
) -> Arrays | None:
    """Do what comes before the first step, unless it is a dry run, and add to the notes of the plan.

    Returns the first weights, or None where they are not those of `init`.
    """
    from ict_backends.runs.folder import RunDir, open_run
    from ict_backends.training.estimate import estimate
    from ict_backends.training.resolve import averaged_weights, check_alike
    from ict_backends.training.split import describe_split

    run, config, dataset = RunDir(plan.out), plan.config, plan.dataset
    weights, replaced = averaged_weights(open_run(init), config, dataset) if init else (None, "")
    if processes.rank == 0:
        left = config.train.total_steps - (run.steps_done() if resume else 0)
        if processes.world > 1:
            train = config.train
            plan.notes.append(describe_split(train.batch_size, train.micro_batch, processes.world, "processes"))
        plan.notes.extend([replaced, f"{left:,} steps: {estimate(engine, config, device, left, processes.world)}"])
    if not dry_run:
        check_alike(processes, config, dataset, resume=resume, init=weights is not None)
        if processes.rank == 0:
            plan.notes.extend(_prepare(run, config, dataset, weights, resume=resume))
        processes.wait()
    return weights


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


def _source(given: Tree) -> str | None:
    source = given.get("data", {}).get("source")
    return None if source is None else str(source)


def _name(recipe: Recipe | None, given: Tree) -> str:
    """The first part of the default name of a run's folder: the preset or, before it is chosen, the data."""
    if recipe is not None:
        return recipe.preset
    name = Path(str(_source(given))).absolute().name.partition(".")[0].rpartition(":")[2]
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "images"


def _asked(config_file: Path | None, assignments: Sequence[str], flags: Tree) -> Tree:
    """The settings that the user has given; later ones win."""
    file = [_read_file(config_file)] if config_file else []
    return merge([*file, *(parse_assignment(text) for text in assignments), flags])


def _announce(what: str, config: Config, dataset: Dataset, notes: Sequence[str]) -> None:
    """Print what is going to be trained: its size, its settings, and why they are as they are."""
    from ict_backends.networks.families import count_parameters

    click.echo(f"# {what}: {count_parameters(config):,} parameters, {len(dataset.images):,} images")
    click.echo(config.to_toml())
    for note in filter(None, notes):
        click.echo(f"# {note}")


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
        remember_start(run, command_line(), {"ict": __version__, **describe_versions()})
        return []
    remove_leftovers(run)
    remember_data(run, config, dataset)
    changes = remember_changes(run, config).items()
    remember_start(run, command_line(), {"ict": __version__, **describe_versions()})
    notes = [f"from here on, {name} is {new} and no longer {old}" for name, (old, new) in changes]
    if not run.checkpoints():
        notes.append("there is no checkpoint yet: starting from the beginning")
    return notes


def _read_file(path: Path) -> Tree:
    try:
        return read_toml(path)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error
