"""`ict train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ict_backends.errors import DataError, UsageError
from ict_cli.options import (
    DATA_HELP,
    backend_option,
    crop_option,
    debug_option,
    device_option,
    open_backend,
    size_option,
)
from ict_core import Config
from ict_core.config import DataConfig
from ict_core.settings import Tree, build_sections, merge, parse_assignment, preset_tree, read_toml, replace

if TYPE_CHECKING:
    from ict_backends.data.dataset import Dataset

# What may differ when a run is resumed: it changes what is written or held in memory, not what is computed.
_FREE_ON_RESUME = {
    "data.hold",
    "data.source",
    "eval.every",
    "eval.metric",
    "eval.num",
    "network.checkpoint",
    "train.checkpoint_every",
    "train.compile",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.log_every",
    "train.micro_batch",
    "train.on_nonfinite",
    "train.sample_every",
    "train.shard_weights",
    "train.tensorboard",
}


@click.command("train")
@backend_option
@click.option("--preset", default="digits", show_default=True, help="Settings to start from; `ict show` knows them.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="Your own TOML file, over the preset.")
@click.option("--data", help=DATA_HELP)
@size_option
@crop_option
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/PRESET-BACKEND-NNN]")
@click.option("--set", "assignments", metavar="A.B=VALUE", multiple=True, help="Change one setting; repeatable.")
@click.option("--steps", type=int, help="Training steps (train.total_steps).")
@click.option("--seed", type=int, help="Of all randomness (train.seed).")
@click.option(
    "--on-nonfinite",
    type=click.Choice(["stop", "skip"]),
    help="What a loss or gradient that is NaN or infinite does (train.on_nonfinite): end the run, or leave the weights "
    "as they are in that step, and count it.",
)
@click.option("--tensorboard", is_flag=True, help="Write event files, too (train.tensorboard).")
@device_option
@click.option("--resume", is_flag=True, help="Continue the run in --out from its newest checkpoint.")
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    help="Start from the averaged weights of another run, with its network's settings.",
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

    Settings come from the preset, then --config, then --set, then the other options; later ones win. They are
    printed, and saved in the run's folder with metrics, sample pictures and checkpoints.

    Ctrl-C or SIGTERM ends the step that is being done, writes a checkpoint and exits with 130 or 143; a second Ctrl-C
    leaves at once. Under torchrun, or wherever RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set, processes train
    together.
    """
    from ict_backends.runs.folder import RunDir, free_run_path

    if resume and init:
        raise UsageError("--resume and --init exclude each other")
    flags = {"seed": seed, "on_nonfinite": on_nonfinite, "tensorboard": tensorboard or None}
    asked = _asked(config_file, assignments, given_settings(data=data, size=size, crop=crop, steps=steps, **flags))
    engine = open_backend(backend, device)
    with engine.joined(device) as processes:
        if processes.world > 1 and out is None:
            raise UsageError("--out RUN is needed where several processes train together")
        if resume:
            explicit = ctx.get_parameter_source("preset") != click.core.ParameterSource.DEFAULT
            config, dataset = _resolve_resumed(out, merge([preset_tree(preset)] * explicit + asked))
        else:
            base = {**preset_tree(preset), **(_network_of(init) if init else {})}
            config, dataset = resolve_new(base, merge(asked))
            out = out or free_run_path(Path("runs"), f"{preset}-{backend}")
        check_data(config, dataset)
        weights = _averaged_weights(init, config) if init else None
        if processes.rank == 0:
            _announce(f"{'resume' if resume else 'run'} {out} with {backend}", config, dataset)
        if dry_run:
            return
        if processes.rank == 0:
            _prepare(out, config, dataset, weights, resume=resume)
        processes.wait()
        run = RunDir(out)
        engine.train(config, dataset, run, device=device, resume=resume or weights is not None)
    if processes.rank == 0:
        click.echo(f"Samples: {run.samples_file(config.train.total_steps)}\nMore: ict sample {out} --out samples.png")


def _asked(config_file: Path | None, assignments: Sequence[str], flags: Tree) -> list[Tree]:
    """What the user has set, later ones winning."""
    file = [_read_file(config_file)] if config_file else []
    return [*file, *(parse_assignment(text) for text in assignments), flags]


def _announce(what: str, config: Config, dataset: Dataset) -> None:
    from ict_backends.networks.families import count_parameters

    click.echo(f"# {what}: {count_parameters(config):,} parameters, {len(dataset.images):,} images")
    click.echo(config.to_toml())


def _prepare(out: Path, config: Config, dataset: Dataset, weights: dict[str, Any] | None, *, resume: bool) -> None:
    """Make the run's folder, or make it ready to go on."""
    from ict_backends.exchange.importing import start_from
    from ict_backends.runs.folder import RunDir, create_run, remember_data, remove_leftovers

    if resume:
        remove_leftovers(RunDir(out))
        remember_data(RunDir(out), dataset)
    else:
        create_run(out, config, dataset)
    if weights is not None:
        start_from(RunDir(out), config, weights)


def resolve_new(base: Tree, asked: Tree) -> tuple[Config, Dataset]:
    """The configuration and the data of a new run: what was asked for over the base, shaped by the data."""
    from ict_backends.data.dataset import load_data_of

    merged = merge([base, asked])
    dataset = load_data_of(build_sections(merged).get("data", DataConfig()))
    return fit_to_data(merged, asked, dataset.shape), dataset


def _resolve_resumed(out: Path | None, asked: Tree) -> tuple[Config, Dataset]:
    """The configuration and the data of a run to continue, where they are the ones that it was started with."""
    from ict_backends.data.dataset import load_data_of
    from ict_backends.runs.folder import RunDir, check_same_data

    config = _resume_config(out, asked)
    dataset = load_data_of(config.data)
    check_same_data(RunDir(out), dataset)
    if dataset.shape != config.data.shape:
        found, needed = list(dataset.shape), list(config.data.shape)
        raise DataError(f"data {config.data.source} has images of {found}, but the run in {out} is of {needed}")
    RunDir(out).latest_checkpoint()
    return config, dataset


def _network_of(run: Path) -> Tree:
    from ict_backends.runs.folder import RunDir

    return {"network": dataclasses.asdict(RunDir(run).load_config().network)}


def _averaged_weights(run: Path, config: Config) -> dict[str, Any]:
    """The EMA of another run. Raises CheckpointError, naming both shapes, where they do not fit the configuration."""
    from ict_backends.networks.families import parameter_shapes
    from ict_backends.runs.checkpoint import check_arrays, load_checkpoint
    from ict_backends.runs.folder import RunDir

    folder = RunDir(run).latest_checkpoint()
    weights = load_checkpoint(folder).ema
    check_arrays(f"--init {run}: {folder.name}", parameter_shapes(config), weights)
    return weights


def _read_file(path: Path) -> Tree:
    try:
        return read_toml(path)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error


def given_settings(*, data: str | None, size: int | None, crop: str | None, steps: int | None, **train: Any) -> Tree:
    """The settings that options of their own give; what is None was not given."""
    given = {"data": {"source": data, "size": size, "crop": crop}, "train": {"total_steps": steps, **train}}
    return {section: {k: v for k, v in values.items() if v is not None} for section, values in given.items()}


def fit_to_data(tree: Tree, asked: Tree, shape: tuple[int, int, int]) -> Config:
    """The configuration with the shape of the data; a shape that the user has set must be that one."""
    sections = build_sections(tree)
    data = sections.get("data", DataConfig())
    if "shape" in asked.get("data", {}) and data.shape != shape:
        raise DataError(f"data {data.source} has images of {list(shape)}, but data.shape is set to {list(data.shape)}")
    return Config(**sections | {"data": dataclasses.replace(data, shape=shape)})


def _resume_config(out: Path | None, asked: Tree) -> Config:
    """The configuration of the run to resume, where nothing that was asked for contradicts it."""
    from ict_backends.runs.folder import RunDir

    if out is None:
        raise UsageError("--resume needs --out RUN, the folder of the run to continue")
    config = RunDir(out).load_config()
    known = config.flat()
    sections = build_sections(asked)
    changed = {f"{s}.{key}": getattr(sections[s], key) for s, values in asked.items() for key in values}
    refused = [
        f"{name} is {known[name]} and not {value}"
        for name, value in changed.items()
        if value != known[name] and name not in _FREE_ON_RESUME
    ]
    if refused:
        free = ", ".join(sorted(_FREE_ON_RESUME))
        raise UsageError(
            f"--resume: the run in {out} has other settings: {'; '.join(refused)} (what may be changed: {free})"
        )
    free: dict[str, dict[str, Any]] = {s: {} for s in sections}
    for name in changed.keys() & _FREE_ON_RESUME:
        section, _, key = name.partition(".")
        free[section][key] = changed[name]
    return replace(config, **free)


def check_data(config: Config, dataset: Dataset) -> None:
    """Raise DataError unless there are the labels that the network needs, and images enough for the evaluations;
    UsageError where TensorBoard is asked for and not there."""
    from ict_backends.training.evaluator import evaluation_size
    from ict_backends.training.tensorboard import check_tensorboard

    if config.train.tensorboard:
        check_tensorboard()
    if config.eval.every:
        evaluation_size(config, len(dataset.images))
    classes, labels = config.network.num_classes, dataset.labels
    if classes and labels is None:
        raise DataError(f"data {config.data.source} has no labels, which network.num_classes = {classes} needs")
    if classes and labels.max() >= classes:
        raise DataError(
            f"data {config.data.source}: label {labels.max()} is not in 0..{classes - 1} (network.num_classes)"
        )
