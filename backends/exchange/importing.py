"""Making runs from checkpoints of other software and from other runs: weights without a history of training."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from ict_backends.errors import CheckpointError, UsageError
from ict_backends.exchange import edm, jcm
from ict_backends.exchange.openai_adm import SeenNetwork
from ict_backends.exchange.openai_adm import official_names as adm_names
from ict_backends.networks.families import parameter_shapes, trained_shapes
from ict_backends.protocols import Arrays
from ict_backends.runs.checkpoint import Checkpoint, check_arrays, check_finite, save_checkpoint
from ict_backends.runs.folder import RunDir, create_run
from ict_core import ADMConfig, Config, NCSNppConfig, karras_sigmas
from ict_core.settings import Tree, build_config, merge

# The settings in the authors' command lines (scripts/launch.sh of openai/consistency_models) for the models that they
# released; all other settings are the defaults of their code.
_IMAGENET64: Tree = {
    "data": {"shape": [3, 64, 64], "source": "unknown"},
    "network": {"family": "adm", "scale_shift": True, "dropout": 0.0, "dropout_resolution": 0, "num_classes": 1000},
}
_LSUN256: Tree = {
    "data": {"shape": [3, 256, 256], "source": "unknown"},
    "network": {
        "family": "adm",
        "channels": 256,
        "channel_mult": [1, 1, 2, 2, 4, 4],
        "blocks": 2,
        "dropout": 0.0,
        "dropout_resolution": 0,
    },
}
# The released CIFAR-10 models: the defaults of NCSN++, except for the embedding scale of original consistency
# training and the dropout.
RELEASED_CIFAR10: Tree = {
    "data": {"shape": [3, 32, 32], "source": "unknown"},
    "network": {"embedding_scale": 16.0, "dropout": 0.0},
}
_RELEASED: Mapping[str, Tree] = {"imagenet64": _IMAGENET64, "bedroom256": _LSUN256, "cat256": _LSUN256}
# The second noise level of the authors' two-step sampling: its number, counted from sigma_max down, and the number of
# all levels. The authors give no level for the distilled cats, which get the one of the distilled bedrooms.
_SECOND_LEVEL = {
    "cd_imagenet64": (22, 40),
    "ct_imagenet64": (106, 201),
    "cd_bedroom256_lpips": (17, 40),
    "cd_bedroom256_l2": (18, 40),
    "ct_bedroom256": (67, 151),
    "cd_cat256": (18, 40),
    "ct_cat256": (62, 151),
}


def released_config(path: Path) -> Config | None:
    """The configuration of a released consistency model, recognised by its file's name; None for any other file.

    The released diffusion models (edm_*) have the same networks but are no consistency models.
    """
    model = next((name for name in _SECOND_LEVEL if path.stem.startswith(name)), None)
    if model is None:
        return None
    number, levels = _SECOND_LEVEL[model]
    second = float(karras_sigmas(levels)[::-1][number])
    return build_config({**_RELEASED[model.split("_")[1]], "sample": {"second_sigma": second}})


def described_config(seen: SeenNetwork | None, preset: Tree, given: Tree, what: str) -> Config:
    """The configuration of ADM weights: what is given, over what their file shows, over a preset.

    Args:
        seen: what the file shows; None where its names are not those of an ADM.
        preset: the settings of a preset, or empty.
        given: the user's settings.
        what: names the file in the error.

    Raises:
        UsageError: the size of the images is neither given nor the preset's.
        CheckpointError: the settings are of another family of networks.
        ConfigError: the settings are not allowed.
    """
    family = merge([{"network": {"family": "adm"}}, preset, given])["network"]["family"]
    if family != "adm":
        raise CheckpointError(f'{what} holds an ADM network, but network.family is "{family}"')
    plain: Tree = {"data": {"source": "unknown", "size": 0, "crop": "none"}, "network": {"family": "adm"}}
    tree = merge([preset, plain, given])
    shape = tree["data"].get("shape")
    if shape is None:
        raise UsageError(f"{what} does not show the size of its images: give data.shape in --config, or a --preset")
    if seen is None or not isinstance(shape, (list, tuple)) or len(shape) != 3:  # the others are refused by themselves
        return build_config(tree)
    network = {**seen.settings, "attention_resolutions": seen.attention_resolutions(shape[1])}
    data = {"shape": [seen.image_channels, *shape[1:]]}
    return build_config(merge([preset, plain, {"network": network, "data": data}, given]))


def import_openai_adm(state_dict: Arrays, config: Config, out: Path, what: str) -> RunDir:
    """Make a run of the authors' PyTorch arrays for ADM.

    Args:
        state_dict: the arrays, by the authors' names.
        config: the configuration of the network.
        out: the folder of the new run.
        what: names the file in the error.

    Raises:
        CheckpointError: the arrays are not those of the network: every difference is listed, in the file's names.
        NonFiniteError, UsageError: a weight is not finite; `out` is in use.
    """
    if not isinstance(config.network, ADMConfig):
        raise CheckpointError(f'{what} holds an ADM network, but network.family is "{config.network.family}"')
    shapes, names = parameter_shapes(config), adm_names(config.network, config.data.shape)
    flat = {name: array.reshape(_without_pixels(array.shape)) for name, array in state_dict.items()}
    check_arrays(what, {names[ours]: _without_pixels(shape) for ours, shape in shapes.items()}, flat)
    check_finite(what, flat)
    return weights_run({ours: flat[names[ours]].reshape(shape) for ours, shape in shapes.items()}, config, out)


def _without_pixels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shorten the shape of a 1x1 convolution to [out, in].

    Some released files have 1x1 convolutions of attention with one dimension of pixels, others with two.
    """
    return shape[:2] if len(shape) > 2 and set(shape[2:]) == {1} else shape


def import_jcm(tree: Mapping[str, object], config: Config, out: Path, what: str) -> tuple[RunDir, str]:
    """Make a run of the authors' Flax parameters for NCSN++.

    Of a whole training state, the moving average (`params_ema` and the like) is taken or, if there is none, `params`.

    Args:
        tree: the arrays, in nested dicts or by '/'-joined paths.
        config: the configuration of the network.
        out: the folder of the new run.
        what: names the file in the error.

    Returns:
        The run, and the names that led to the weights, such as "params_ema"; empty if there was nothing else.

    Raises:
        CheckpointError: the arrays are not those of the network: every difference is listed, in the file's names.
        NonFiniteError, UsageError: a weight is not finite; `out` is in use.
    """
    if not isinstance(config.network, NCSNppConfig):
        raise CheckpointError(f'{what} holds an NCSN++ network, but network.family is "{config.network.family}"')
    if config.network.num_classes:
        raise CheckpointError(
            f"{what} holds an unconditional network, but network.num_classes is {config.network.num_classes}"
        )
    flat, place = jcm.find_params({name: np.asarray(value) for name, value in jcm.flatten(tree)})
    shapes, official = parameter_shapes(config), jcm.official_arrays(config.network, config.data.shape)
    check_arrays(what, {array.name: array.shape for array in official.values()}, flat)
    flat = _as_numbers(what, flat)
    check_finite(what, flat)
    arrays = {ours: jcm.from_official(flat[official[ours].name], shape) for ours, shape in shapes.items()}
    return weights_run(arrays, config, out), place


def import_edm(state_dict: Arrays, config: Config, out: Path, what: str) -> tuple[RunDir, list[str]]:
    """Make a run, in the folder `out`, of the arrays of one of EDM's diffusion models.

    Args, Returns, Raises: as for `edm_weights`, with the run in place of its arrays; UsageError if `out` is in use.
    """
    arrays, left_out = edm_weights(state_dict, config, what)
    return weights_run(arrays, config, out), left_out


def edm_weights(state_dict: Arrays, config: Config, what: str) -> tuple[Arrays, list[str]]:
    """Our arrays of those of one of EDM's diffusion models, and what of the file was left out, in words.

    Args:
        state_dict: the arrays by EDM's names, with "model." before each or without.
        config: the configuration of the network.
        what: names the file in the error.

    Raises:
        CheckpointError: the arrays are not those of the network: every difference is listed, in the file's names.
        NonFiniteError: a weight is not finite.
    """
    edm.check_config(config, what)
    whole = all(name.startswith("model.") for name in state_dict)
    flat = {name.removeprefix("model."): array for name, array in state_dict.items()} if whole else state_dict
    flat, left_out = edm.without_extras(_as_numbers(what, flat), config, what)
    check_arrays(what, edm.edm_shapes(config), flat)
    check_finite(what, flat)
    return edm.from_edm(flat, config), left_out


def _as_numbers(what: str, arrays: Arrays) -> Arrays:
    """The arrays as float32. Raises CheckpointError if one of them holds anything else than real numbers."""
    numbers: Arrays = {}
    for name, array in arrays.items():
        try:
            # bfloat16, which is not NumPy's own, is of the kind "V"; of the others, NumPy refuses to make numbers.
            if array.dtype.kind not in "fiuV":
                raise TypeError
            numbers[name] = np.asarray(array, dtype=np.float32)
        except (TypeError, ValueError):
            raise CheckpointError(f"{what}: {name} holds no real numbers, but {array.dtype}") from None
    return numbers


def weights_run(arrays: Arrays, config: Config, out: Path) -> RunDir:
    """Make a run with these weights before its first step: its EMA equals the weights, and its moments are zero.

    Nothing is left of it where that fails or is interrupted: without its weights, a run would train from random ones.
    """
    return create_run(out, config, None, prepare=partial(start_from, config=config, arrays=arrays))


def start_from(run: RunDir, config: Config, arrays: Arrays) -> None:
    """Write a run's state before the first step: these weights, an EMA equal to them, and moments of zero."""
    weights = {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}
    zeros = {name: np.zeros(shape, np.float32) for name, shape in trained_shapes(config).items()}
    save_checkpoint(run, Checkpoint(0, weights, dict(weights), zeros, dict(zeros)), keep=0, config=config)
