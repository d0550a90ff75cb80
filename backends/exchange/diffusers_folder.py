"""The folder of a `ConsistencyModelPipeline` of the diffusers library: written and read without that library.

FOLDER/model_index.json                              the classes of the parts
FOLDER/unet/config.json, diffusion_pytorch_model.*   the network
FOLDER/scheduler/scheduler_config.json               the noise levels
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ict_backends.errors import CheckpointError
from ict_backends.exchange.diffusers_names import (
    check_exportable,
    from_diffusers,
    read_settings,
    scheduler_settings,
    to_diffusers,
    unet_settings,
)
from ict_backends.exchange.state_dict import find_state_dict
from ict_backends.files import whole_folder
from ict_backends.protocols import Arrays
from ict_core import Config

_PIPELINE, _UNET, _SCHEDULER = "ConsistencyModelPipeline", "UNet2DModel", "CMStochasticIterativeScheduler"
_INDEX, _UNET_CONFIG, _SCHEDULER_CONFIG = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
_WEIGHTS = "unet/diffusion_pytorch_model"


def write_diffusers(arrays: Arrays, config: Config, out: Path) -> None:
    """Write a network's weights as the folder of a pipeline, which is there whole or not at all.

    Args:
        arrays: the weights, by our names.
        config: the configuration of the network.
        out: the folder.

    Raises:
        UsageError: diffusers does not have this network; the message says why.
        CheckpointError, OSError: the folder cannot be written.
    """
    check_exportable(config)
    index = {"_class_name": _PIPELINE, "scheduler": ["diffusers", _SCHEDULER], "unet": ["diffusers", _UNET]}
    theirs = {name: np.ascontiguousarray(array) for name, array in to_diffusers(arrays, config).items()}
    with whole_folder(out) as folder:
        for name, content in (
            (_INDEX, index),
            (_UNET_CONFIG, {"_class_name": _UNET, **unet_settings(config)}),
            (_SCHEDULER_CONFIG, {"_class_name": _SCHEDULER, **scheduler_settings(config)}),
        ):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
        try:
            save_file(theirs, folder / f"{_WEIGHTS}.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:  # the library raises it in place of an OSError
            raise CheckpointError(f"{out} cannot be written: {error}") from error


def read_diffusers(folder: Path, read_bin: Callable[[Path], Mapping[str, Any]]) -> tuple[Arrays, Config]:
    """Read the weights, float32 by our names, and the configuration of a pipeline's folder.

    Args:
        folder: the folder.
        read_bin: reads a state dict of torch, for folders without a safetensors file.

    Raises:
        CheckpointError: the folder holds another pipeline, or something is missing, damaged or does not fit.
        NonFiniteError: a weight is not finite.
    """
    index = _read_json(folder, _INDEX)
    if index.get("_class_name") != _PIPELINE:
        raise CheckpointError(f"{folder} is a {index.get('_class_name')}; only a {_PIPELINE} can be imported")
    for part, kind in (("unet", _UNET), ("scheduler", _SCHEDULER)):
        library_and_class = index.get(part)
        if not isinstance(library_and_class, list) or library_and_class[-1:] != [kind]:
            raise CheckpointError(f"{folder}: its {part} must be a {kind}, not {library_and_class!r}")
    config = read_settings(_read_json(folder, _UNET_CONFIG), _read_json(folder, _SCHEDULER_CONFIG), str(folder))
    arrays = {name: np.asarray(a, dtype=np.float32) for name, a in _read_weights(folder, read_bin).items()}
    return from_diffusers(arrays, config, str(folder)), config


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no folder of diffusers': it has no {name}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder}: {name} holds no settings")
    return content


def _read_weights(folder: Path, read_bin: Callable[[Path], Mapping[str, Any]]) -> Arrays:
    safe = folder / f"{_WEIGHTS}.safetensors"
    if not safe.is_file():
        if not safe.with_suffix(".bin").is_file():
            raise CheckpointError(f"{folder} has no weights: neither {_WEIGHTS}.safetensors nor .bin")
        return find_state_dict(read_bin(safe.with_suffix(".bin")), str(safe.with_suffix(".bin"))).arrays
    try:
        return load_file(safe)
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{safe} cannot be read: {error}") from error
