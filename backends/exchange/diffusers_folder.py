"""The folder of a `ConsistencyModelPipeline` of the diffusers library: written and read without that library.

FOLDER/model_index.json                              the classes of the parts
FOLDER/unet/config.json, diffusion_pytorch_model.*   the network
FOLDER/scheduler/scheduler_config.json               the noise levels
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ict_backends.arrays import read_safetensors, write_safetensors
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
from ict_backends.files import check_no_pointer, whole_folder
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
        write_safetensors(folder / f"{_WEIGHTS}.safetensors", theirs, metadata={"format": "pt"})


class Pipeline(NamedTuple):
    """What a pipeline's folder holds.

    Attributes:
        arrays: the weights, float32 by our names.
        config: the configuration of the network.
        file: the name of the weights' file, or of the index of their files, in the folder.
    """

    arrays: Arrays
    config: Config
    file: str


def read_diffusers(folder: Path, read_bin: Callable[[Path], Mapping[str, Any]]) -> Pipeline:
    """Read a pipeline's folder: weights of full precision if there are such, else the variant that is there.

    Args:
        folder: the folder.
        read_bin: reads a state dict of torch, for folders without safetensors files.

    Raises:
        CheckpointError: the folder holds another pipeline, or something is missing, damaged or does not fit.
        NonFiniteError: a weight is not finite.
    """
    index = _read_index(folder)
    if index.get("_class_name") != _PIPELINE:
        raise CheckpointError(f"{folder} is a {index.get('_class_name')}; only a {_PIPELINE} can be imported")
    for part, kind in (("unet", _UNET), ("scheduler", _SCHEDULER)):
        library_and_class = index.get(part)
        if not isinstance(library_and_class, list) or library_and_class[-1:] != [kind]:
            raise CheckpointError(f"{folder}: its {part} must be a {kind}, not {library_and_class!r}")
    config = read_settings(_read_json(folder, _UNET_CONFIG), _read_json(folder, _SCHEDULER_CONFIG), str(folder))
    file = _find_weights(folder)
    theirs = _read_shards(folder, file, read_bin) if file.endswith(".json") else _read_file(folder / file, read_bin)
    arrays = {name: np.asarray(a, dtype=np.float32) for name, a in theirs.items()}
    return Pipeline(from_diffusers(arrays, config, str(folder)), config, file)


def _read_index(folder: Path) -> dict[str, Any]:
    if not (folder / _INDEX).exists() and (folder / "config.json").is_file():
        kind = _read_json(folder, "config.json").get("_class_name")
        raise CheckpointError(
            f"{folder} is a {kind} alone, without {_INDEX} and the scheduler's settings; give the pipeline's folder"
        )
    return _read_json(folder, _INDEX)


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    check_no_pointer(folder / name)
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is no folder of diffusers': it has no {name}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: {name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder}: {name} holds no settings")
    return content


def _find_weights(folder: Path) -> str:
    """The name in the folder of the weights' file, or of the index of their files."""
    for ending in ("safetensors", "safetensors.index.json", "bin", "bin.index.json"):
        if (folder / f"{_WEIGHTS}.{ending}").is_file():
            return f"{_WEIGHTS}.{ending}"
    # Variants, such as "fp16": NAME.fp16.safetensors, or an index NAME.safetensors.index.fp16.json; also the older
    # NAME.fp16.safetensors.index.json.
    for kind in ("safetensors", "bin"):
        found = sorted(
            str(path.relative_to(folder))
            for pattern in (f".*.{kind}", f".{kind}.index.*.json", f".*.{kind}.index.json")
            for path in folder.glob(_WEIGHTS + pattern)
            if "-of-" not in path.name  # a part, which an index names
        )
        if len(found) > 1:
            raise CheckpointError(f"{folder} has several variants of its weights; leave one of {', '.join(found)}")
        if found:
            return found[0]
    raise CheckpointError(
        f"{folder} has no weights: no {_WEIGHTS}.safetensors or .bin, whole, in parts or as a variant"
    )


def _read_file(path: Path, read_bin: Callable[[Path], Mapping[str, Any]]) -> Arrays:
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return find_state_dict(read_bin(path), str(path)).arrays


def _read_shards(folder: Path, index: str, read_bin: Callable[[Path], Mapping[str, Any]]) -> Arrays:
    """Read weights that are divided among files, which an index names by array."""
    files = _read_json(folder, index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f"{folder}: {index} does not say by weight_map which file has which array")
    # No index makes us read what lies elsewhere.
    outside = next((f for f in files.values() if f != Path(f).name or not f.endswith((".safetensors", ".bin"))), None)
    if outside is not None:
        raise CheckpointError(f"{folder}: {index} names {outside!r}, which is no file of weights beside it")
    parent = (folder / index).parent
    shards = {file: _read_file(parent / file, read_bin) for file in sorted(set(files.values()))}
    absent = next((name for name, file in files.items() if name not in shards[file]), None)
    if absent is not None:
        raise CheckpointError(f"{folder}: {files[absent]} has no array {absent}, which {index} says it has")
    return {name: shards[file][name] for name, file in files.items()}
