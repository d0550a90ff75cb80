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
from ict_core import ADMConfig, Config
from ict_core.settings import Tree, build_config, merge, preset_tree, read_toml


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
        "ict import openai-adm ema_0.99997_800000.pt --preset imagenet64-stable --out runs/stable",
        "ict import openai-adm mine.pt --config network.toml --out runs/mine",
    ),
)
@_file
@_out
@_config
@click.option(
    "--preset",
    help="The preset that a file is of, such as imagenet64-stable. It gives what a file does not show.",
)
@debug_option
def openai_adm_command(file: Path, out: Path, config_file: Path | None, preset: str | None) -> None:
    """Import a PyTorch state dict that OpenAI released, or that their code or another trainer has saved.

    There are consistency models of ImageNet-64, LSUN bedroom and LSUN cat. The released files are recognised by their
    names, such as cd_imagenet64_l2.pt; other files, such as ema_0.99997_800000.pt, need --preset or --config. Widths,
    blocks, attention, classes and scale_shift are seen in the file. No file shows the size of the images
    (data.shape), network.head_channels and network.normalize_qkv: they are those of --config, or of the preset. Of a
    whole training state, the average of the weights is taken ("ema" and the like), or else the weights; the prefixes
    of wrappers ("module.") are taken off.
    """
    from ict_backends import load_backend
    from ict_backends.exchange.importing import described_config, import_openai_adm, released_config
    from ict_backends.exchange.openai_adm import seen_network
    from ict_backends.exchange.state_dict import find_state_dict

    _check_file(file)
    base = preset_tree(preset) if preset else {}
    given = _read_tree(config_file) if config_file else {}
    config = None if preset or config_file else released_config(file)
    if config is None and not (preset or config_file):
        raise UsageError(
            f"{file} has none of the released names; --preset NAME or --config FILE.toml describes its network"
        )
    found = find_state_dict(load_backend("torch").read_arrays(file), str(file))
    described = config is None
    if config is None:
        config = described_config(seen_network(found.arrays), base, given, str(file))
    run = import_openai_adm(found.arrays, config, out, str(file))
    notes = [_unseen(config.data.shape, config.network)] if described and isinstance(config.network, ADMConfig) else []
    _report(run.path, config, _of(found.place, file), notes=notes)


def _unseen(shape: Sequence[int], network: ADMConfig) -> str:
    """What had to be taken from a preset or from settings."""
    levels = ", ".join(map(str, network.attention_resolutions)) or "none but the lowest level"
    return (
        f"not seen in the file: images of {shape[1]}x{shape[2]} (so attention at {levels}), network.head_channels = "
        f"{network.head_channels}, network.normalize_qkv = {str(network.normalize_qkv).lower()}"
    )


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
    if file.suffix.lower() == ".npz":
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
    from ict_backends.exchange.edm import TRAINED_BY, edm_config
    from ict_backends.exchange.edm_pickle import read_edm
    from ict_backends.exchange.importing import import_edm

    _check_file(file)
    place = ""
    if file.suffix.lower() == ".pkl":
        if config_file is not None:
            raise UsageError(f"--config is for state dicts; {file} describes its network itself")
        found = read_edm(file)
        arrays, config, place = found.arrays, edm_config(found, str(file)), "ema"
    else:
        if config_file is None:
            raise UsageError(f"{file} is no pickle of EDM's (.pkl); describe its network with --config FILE.toml")
        config = _read_config(config_file, TRAINED_BY)
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

    if file.suffix.lower() == ".safetensors":
        tree: Mapping[str, Any] = read_safetensors(file)
    elif file.suffix.lower() == ".npz":
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


def _read_config(path: Path, base: Tree | None = None) -> Config:
    """The configuration of a file of settings, over those of `base` and the defaults."""
    return build_config(merge([{"data": {"source": "unknown"}}, base or {}, _read_tree(path)]))


def _read_tree(path: Path) -> Tree:
    try:
        return read_toml(path)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}") from error


def _of(place: str, file: Path) -> str:
    return f"{place} of {file}" if place else str(file)


def _report(out: Path, config: Config, source: str, *, more: str = "", notes: Sequence[str] = ()) -> None:
    """Say what was made, and of what; then what to note, and what to do next."""
    from ict_backends.networks.families import count_parameters

    click.echo(f"{out}: {count_parameters(config):,} parameters, from {source}")
    for line in (*notes, more or f"More: ict sample {out} --out samples.png"):
        click.echo(line)
