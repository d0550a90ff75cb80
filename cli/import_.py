"""`ict import`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ict_backends.errors import CheckpointError, UsageError
from ict_backends.protocols import Arrays
from ict_cli.options import (
    PATH,
    debug_option,
    examples,
)
from ict_core import Config
from ict_core.settings import build_config, merge, read_toml


@click.group(
    "import",
    epilog=examples(
        "ict import openai-adm cd_imagenet64_l2.pt --out runs/imagenet64",
        "ict import diffusers a-pipeline/ --out runs/mine",
        "ict import edm edm-cifar10-32x32-uncond-vp.pkl --out runs/edm",
    ),
)
def import_command() -> None:
    """Make a run from a checkpoint of another project, to sample from, to train on, or to start other runs from."""


_file = click.argument("file", type=PATH)
_out = click.option("--out", type=PATH, required=True, help="The new run's folder.")
_config = click.option("--config", "config_file", type=PATH, help="TOML file with the network's settings.")


@import_command.command(
    "openai-adm",
    epilog=examples(
        "ict import openai-adm cd_imagenet64_l2.pt --out runs/imagenet64",
        "ict import openai-adm mine.pt --config network.toml --out runs/mine",
    ),
)
@_file
@_out
@_config
@debug_option
def openai_adm_command(file: Path, out: Path, config_file: Path | None) -> None:
    """Import a PyTorch state dict that OpenAI released, or that their code or another trainer has saved.

    There are consistency models of ImageNet-64, LSUN bedroom and LSUN cat. The released files are recognised by their
    names, such as cd_imagenet64_l2.pt; other files need --config. Of a whole training state, the average of the weights
    is taken ("ema" and the like), or else the weights; the prefixes of wrappers ("module.") are taken off.
    """
    from ict_backends import load_backend
    from ict_backends.exchange.importing import import_openai_adm, released_config
    from ict_backends.exchange.state_dict import find_state_dict

    _check_file(file)
    config = _read_config(config_file) if config_file else released_config(file)
    if config is None:
        raise UsageError(f"{file} has none of the released names; describe its network with --config FILE.toml")
    found = find_state_dict(load_backend("torch").read_arrays(file), str(file))
    _report(import_openai_adm(found.arrays, config, out, str(file)).path, config, _of(found.place, file))


@import_command.command(
    "jcm",
    epilog=examples(
        "ict import jcm checkpoint_40 --out runs/cifar10",
        "ict import jcm params.npz --config network.toml --out runs/mine",
    ),
)
@_file
@_out
@_config
@debug_option
def jcm_command(file: Path, out: Path, config_file: Path | None) -> None:
    """Import a Flax checkpoint of a CIFAR-10 model.

    FILE is a released checkpoint, or an .npz file of the same parameters, named by their paths joined with '/'.
    Without --config, the network is the authors' NCSN++ of CIFAR-10, with their Fourier scale of 16. Of a whole
    training state, the average of the weights is taken, or else the weights.
    """
    from ict_backends import load_backend
    from ict_backends.exchange.importing import RELEASED_CIFAR10, import_jcm

    _check_file(file)
    config = _read_config(config_file) if config_file else build_config(RELEASED_CIFAR10)
    if file.suffix == ".npz":
        tree: dict[str, Any] = dict(_read_npz(file))
    else:
        tree = dict(load_backend("jax").read_arrays(file))
    run, place = import_jcm(tree, config, out, str(file))
    _report(run.path, config, _of(place, file))


@import_command.command(
    "diffusers",
    epilog=examples(
        "ict import diffusers a-pipeline/ --out runs/mine",
        "ict import diffusers ~/models/cat256 --out runs/cat256",
    ),
)
@click.argument("folder", type=PATH)
@_out
@debug_option
def diffusers_command(folder: Path, out: Path) -> None:
    """Import a folder of the diffusers library.

    FOLDER holds a ConsistencyModelPipeline, and describes its network itself.
    """
    from ict_backends import load_backend
    from ict_backends.exchange.diffusers_folder import read_diffusers
    from ict_backends.exchange.importing import weights_run

    found = read_diffusers(folder, lambda file: load_backend("torch").read_arrays(file))
    _report(weights_run(found.arrays, found.config, out).path, found.config, str(folder / found.file))


@import_command.command(
    "edm",
    epilog=examples(
        "ict import edm edm-cifar10-32x32-uncond-vp.pkl --out runs/edm",
        "ict import edm state.safetensors --config network.toml --out runs/mine",
    ),
)
@_file
@_out
@_config
@debug_option
def edm_command(file: Path, out: Path, config_file: Path | None) -> None:
    """Import a diffusion model of EDM, to start consistency models from.

    FILE is a pickle (.pkl) that EDM released or that its code has saved, and describes its network itself: DDPM++,
    NCSN++ or ADM, with or without classes. It is read without executing the code that is in it. A plain state dict
    (.pt, .safetensors, .npz) needs --config.
    """
    from ict_backends.exchange.edm import edm_config
    from ict_backends.exchange.edm_pickle import read_edm
    from ict_backends.exchange.importing import import_edm

    _check_file(file)
    place = ""
    if file.suffix == ".pkl":
        if config_file is not None:
            raise UsageError(f"--config is for state dicts; {file} describes its network itself")
        found = read_edm(file)
        arrays, config, place = found.arrays, edm_config(found, str(file)), "ema"
    else:
        if config_file is None:
            raise UsageError(f"{file} is no pickle of EDM's (.pkl); describe its network with --config FILE.toml")
        config = _read_config(config_file)
        arrays, place = _read_state_dict(file)
    run, left_out = import_edm(arrays, config, out, str(file))
    _report(
        run.path,
        config,
        _of(place, file),
        more=f"It is a diffusion model, drawn in 18 steps. To tune it for one: ict train --init {run.path}",
        notes=left_out,
    )


def _read_state_dict(file: Path) -> tuple[Arrays, str]:
    """The arrays of a state dict, and the names that led to them in the file; "" if there was nothing else."""
    from ict_backends import load_backend
    from ict_backends.arrays import read_safetensors
    from ict_backends.exchange.state_dict import find_state_dict

    if file.suffix == ".safetensors":
        tree: Mapping[str, Any] = read_safetensors(file)
    elif file.suffix == ".npz":
        tree = _read_npz(file)
    else:
        tree = load_backend("torch").read_arrays(file)
    return find_state_dict(tree, str(file))


def _read_npz(file: Path) -> Arrays:
    import numpy as np

    try:
        with open(file, "rb") as content, np.load(content, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # each kind of damage has an exception of its own
        raise CheckpointError(f"{file} is no readable .npz file of plain arrays: {error}") from error


def _check_file(file: Path) -> None:
    if not file.is_file():
        raise CheckpointError(f"{file} does not exist, or is no file")


def _read_config(path: Path) -> Config:
    try:
        tree = read_toml(path)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error
    return build_config(merge([{"data": {"source": "unknown"}}, tree]))


def _of(place: str, file: Path) -> str:
    return f"{place} of {file}" if place else str(file)


def _report(out: Path, config: Config, source: str, *, more: str = "", notes: Sequence[str] = ()) -> None:
    """Say what was made, and of what; then what to note, and what to do next."""
    from ict_backends.networks.families import count_parameters

    click.echo(f"{out}: {count_parameters(config):,} parameters, from {source}")
    for line in (*notes, more or f"More: ict sample {out} --out samples.png"):
        click.echo(line)
