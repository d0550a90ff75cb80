"""The authors' released CIFAR-10 models (Flax checkpoints): their names and layouts for our arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ict_backends.networks.layers import Kind
from ict_backends.networks.ncsnpp import ncsnpp_layers, ncsnpp_spec
from ict_core import NCSNppConfig

# The authors' names for the weight and the bias of a layer.
_Leaves = tuple[str, str]
_CONV, _NORM, _NIN, _PYRAMID = ("kernel", "bias"), ("scale", "bias"), ("W", "b"), ("weight", "bias")


class OfficialArray(NamedTuple):
    """One of the authors' arrays: its '/'-joined path, and its shape."""

    name: str
    shape: tuple[int, ...]


def official_arrays(config: NCSNppConfig, shape: Sequence[int]) -> dict[str, OfficialArray]:
    """The authors' arrays by our names; their paths number the modules of each kind in order of creation."""
    modules = {ours: (theirs, leaves) for ours, theirs, leaves in _layers(config, shape)}
    arrays = {}
    for layer in ncsnpp_layers(config, shape):
        for leaf, ours in layer.arrays.items():
            if layer.kind is Kind.FREQUENCIES:
                name = "GaussianFourierProjection_0/W"
            else:
                theirs, (weight, bias) = modules[layer.name]
                name = f"{theirs}/{weight if leaf == 'weight' else bias}"
            arrays[layer.array_name(leaf)] = OfficialArray(name, _official_shape(ours, layer.kind))
    return arrays


def from_official(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Bring one of the authors' arrays into our layout and `shape`.

    [h, w, in, out] becomes [out, in, h, w]; [in, out] becomes [out, in] or, for a 1x1 convolution, [out, in, 1, 1].
    """
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return array.reshape(shape) if array.ndim == 2 else array


def _official_shape(shape: tuple[int, ...], kind: Kind) -> tuple[int, ...]:
    """The shape of the authors' array for our `shape`; their attention has dense layers, ours 1x1 convolutions."""
    if kind is Kind.PROJECTION:
        shape = shape[:2]
    return (*shape[2:], *reversed(shape[:2])) if len(shape) > 1 else shape


def _layers(config: NCSNppConfig, shape: Sequence[int]) -> Iterator[tuple[str, str, _Leaves]]:
    """Yield (our name, the authors' name, their names for weight and bias) for each layer."""
    spec = ncsnpp_spec(config, shape)
    for ours, theirs in (("dense_0", "Dense_0"), ("dense_1", "Dense_1")):
        yield f"embedding.{ours}", theirs, _CONV
    yield "conv_in", "Conv_0", _CONV
    yield "conv_out", "Conv_1", _CONV
    yield "norm_out", "GroupNorm_0", _NORM
    for i, (name, _) in enumerate(spec.blocks()):
        for ours, theirs in (("conv_0", "Conv_0"), ("embed", "Dense_0"), ("conv_1", "Conv_1"), ("shortcut", "Conv_2")):
            yield f"{name}.{ours}", f"ResnetBlockBigGANpp_{i}/{theirs}", _CONV
        for j in (0, 1):
            yield f"{name}.norm_{j}", f"ResnetBlockBigGANpp_{i}/GroupNorm_{j}", _NORM
    for i, name in enumerate(_attention(config, shape)):
        yield f"{name}.norm", f"AttnBlockpp_{i}/GroupNorm_0", _NORM
        for j, ours in enumerate(("query", "key", "value", "out")):
            yield f"{name}.{ours}", f"AttnBlockpp_{i}/NIN_{j}", _NIN
    for i in range(len(spec.down) - 1):
        yield f"down.{i}.pyramid.conv", f"Downsample_{i}/Conv2d_0", _PYRAMID


def _attention(config: NCSNppConfig, shape: Sequence[int]) -> list[str]:
    spec = ncsnpp_spec(config, shape)
    down = [
        f"down.{i}.attention.{j}" for i, level in enumerate(spec.down) if level.attention for j in range(config.blocks)
    ]
    return [*down, "middle.attention", *(f"up.{i}.attention" for i, level in enumerate(spec.up) if level.attention)]


def flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield ('/'-joined path, leaf) for each leaf of nested dicts."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


# The dicts in which Flax's trainers keep weights: the first that is there is taken, averages before the weights.
_GROUPS = ("params_ema", "ema_params", "ema", "params", "state", "model")


def find_params(flat: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """The weights among the arrays of a training state by '/'-joined paths, and the path of the dicts they lie in."""
    found, place = dict(flat), list[str]()
    while group := next((g for g in _GROUPS if any(name.startswith(f"{g}/") for name in found)), None):
        found = {name.removeprefix(f"{group}/"): a for name, a in found.items() if name.startswith(f"{group}/")}
        place.append(group)
    return found, "/".join(place)
