"""`ict train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from ict_backends.errors import DataError, UsageError
from ict_cli.options import DATA_HELP, backend_option, crop_option, debug_option, device_option, size_option

from ict_core import Config
from ict_core.config import (
    DataConfig,
    Tree,
    build_sections,
    merge,
    parse_assignment,
    preset_tree,
    read_toml,
    replace,
)

if TYPE_CHECKING:
    from ict_backends.data import Dataset

# What may differ when a run is resumed: it changes what is written or held in memory, not what is computed.
_FREE_ON_RESUME = {
    "data.source",
    "eval.every",
    "eval.metric",
    "eval.num",
    "network.checkpoint",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.sample_every",
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
    device: str,
    resume: bool,
    init: Path | None,
    dry_run: bool,
) -> None:
    """Train a model from images.

    Settings come from the preset, then --config, then --set, then the other options; later ones win. They are
    printed, and saved in the run's folder with metrics, sample pictures and checkpoints.
    """
    from ict_backends import load_backend
    from ict_backends.importing import start_from
    from ict_backends.networks import count_parameters
    from ict_backends.rundir import RunDir, create_run, free_run_path, remember_data

    engine = load_backend(backend)
    engine.check_device(device)
    asked = [_read_file(config_file)] if config_file else []
    asked += [parse_assignment(text) for text in assignments]
    asked.append(_flags(data=data, size=size, crop=crop, steps=steps, seed=seed))
    if resume and init:
        raise UsageError("--resume and --init exclude each other")
    if resume:
        explicit = ctx.get_parameter_source("preset") != click.core.ParameterSource.DEFAULT
        config, dataset = _resolve_resumed(out, merge([preset_tree(preset)] * explicit + asked))
    else:
        base = {**preset_tree(preset), **(_network_of(init) if init else {})}
        config, dataset = _resolve_new(base, merge(asked))
        out = out or free_run_path(Path("runs"), f"{preset}-{backend}")
    _check_data(config, dataset)

    weights = _averaged_weights(init, config) if init else None
    parameters = count_parameters(config)
    verb = "resume" if resume else "run"
    click.echo(f"# {verb} {out} with {backend}: {parameters:,} parameters, {len(dataset.images):,} images")
    click.echo(config.to_toml())
    if dry_run:
        return
    run = RunDir(out) if resume else create_run(out, config, dataset)
    if resume:
        remember_data(run, dataset)
    if weights is not None:
        start_from(run, config, weights)
    engine.train(config, dataset, run, device=device, resume=resume or weights is not None)
    click.echo(f"Samples: {run.samples_file(config.train.total_steps)}\nMore: ict sample {out} --out samples.png")


def _resolve_new(base: Tree, asked: Tree) -> tuple[Config, Dataset]:
    """The configuration and the data of a new run: what was asked for over the base, shaped by the data."""
    from ict_backends.data import load_data_of

    sections = build_sections(merge([base, asked]))
    dataset = load_data_of(sections.get("data", DataConfig()))
    return Config(**_fit_to_data(sections, asked, dataset.shape)), dataset


def _resolve_resumed(out: Path | None, asked: Tree) -> tuple[Config, Dataset]:
    """The configuration and the data of a run to continue, where they are the ones that it was started with."""
    from ict_backends.data import load_data_of
    from ict_backends.rundir import RunDir, check_same_data

    config = _resume_config(out, asked)
    dataset = load_data_of(config.data)
    check_same_data(RunDir(out), dataset)
    if dataset.shape != config.data.shape:
        found, needed = list(dataset.shape), list(config.data.shape)
        raise DataError(f"data {config.data.source} has images of {found}, but the run in {out} is of {needed}")
    RunDir(out).latest_checkpoint()
    return config, dataset


def _network_of(run: Path) -> Tree:
    from ict_backends.rundir import RunDir

    return {"network": dataclasses.asdict(RunDir(run).load_config().network)}


def _averaged_weights(run: Path, config: Config) -> dict[str, Any]:
    """The EMA of another run. Raises CheckpointError, naming both shapes, where they do not fit the configuration."""
    from ict_backends.checkpoint import check_arrays, load_checkpoint
    from ict_backends.networks import parameter_shapes
    from ict_backends.rundir import RunDir

    folder = RunDir(run).latest_checkpoint()
    weights = load_checkpoint(folder).ema
    check_arrays(f"--init {run}: {folder.name}", parameter_shapes(config), weights)
    return weights


def _read_file(path: Path) -> Tree:
    try:
        return read_toml(path)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error


def _flags(*, data: str | None, size: int | None, crop: str | None, steps: int | None, seed: int | None) -> Tree:
    given = {"data": {"source": data, "size": size, "crop": crop}, "train": {"total_steps": steps, "seed": seed}}
    return {section: {k: v for k, v in values.items() if v is not None} for section, values in given.items()}


def _fit_to_data(sections: dict[str, Any], asked: Tree, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The sections with the shape of the data; a shape that the user has set must be that one."""
    data = sections.get("data", DataConfig())
    if "shape" in asked.get("data", {}) and data.shape != shape:
        raise DataError(f"data {data.source} has images of {list(shape)}, but data.shape is set to {list(data.shape)}")
    return sections | {"data": dataclasses.replace(data, shape=shape)}


def _resume_config(out: Path | None, asked: Tree) -> Config:
    """The configuration of the run to resume, where nothing that was asked for contradicts it."""
    from ict_backends.rundir import RunDir

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
        raise UsageError(f"--resume: the run in {out} has other settings: {'; '.join(refused)}")
    free: dict[str, dict[str, Any]] = {s: {} for s in sections}
    for name in changed.keys() & _FREE_ON_RESUME:
        section, _, key = name.partition(".")
        free[section][key] = changed[name]
    return replace(config, **free)


def _check_data(config: Config, dataset: Dataset) -> None:
    """Raise DataError unless there are the labels that the network needs, and images enough for the evaluations."""
    from ict_backends.evaluator import evaluation_size

    if config.eval.every:
        evaluation_size(config, len(dataset.images))
    classes, labels = config.network.num_classes, dataset.labels
    if classes and labels is None:
        raise DataError(f"data {config.data.source} has no labels, which network.num_classes = {classes} needs")
    if classes and labels.max() >= classes:
        raise DataError(
            f"data {config.data.source}: label {labels.max()} is not in 0..{classes - 1} (network.num_classes)"
        )
