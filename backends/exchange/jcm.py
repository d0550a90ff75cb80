"""The authors' released CIFAR-10 models (Flax checkpoints): their names and layouts for our arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ict_backends.networks.ncsnpp import ncsnpp_parameters, ncsnpp_spec
from ict_core import NCSNppConfig

_Leaves = tuple[str, str]
_CONV, _NORM, _NIN, _PYRAMID = ("kernel", "bias"), ("scale", "bias"), ("W", "b"), ("weight", "bias")


def official_names(config: NCSNppConfig, shape: Sequence[int]) -> dict[str, str]:
    """From our names of the arrays to their '/'-joined paths, which count each kind of module in order of creation."""
    layers = {ours: (theirs, leaves) for ours, theirs, leaves in _layers(config, shape)}
    names = {}
    for name in ncsnpp_parameters(config, shape):
        if name == "embedding.frequencies":
            names[name] = "GaussianFourierProjection_0/W"
            continue
        layer, _, leaf = name.rpartition(".")
        theirs, (weight, bias) = layers[layer]
        names[name] = f"{theirs}/{weight if leaf == 'weight' else bias}"
    return names


def from_official(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Their array in our layout: HWIO to OIHW and [in, out] to [out, in], also where ours is a 1x1 convolution."""
    array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    return array.reshape(shape) if array.ndim == 2 else array


def to_official_shape(shape: Sequence[int], name: str) -> tuple[int, ...]:
    """The shape that their array of a name has, where ours has `shape`."""
    if name.rpartition("/")[0].rpartition("/")[2].startswith("NIN"):
        shape = shape[:2]
    return tuple(shape[2:]) + tuple(reversed(shape[:2])) if len(shape) > 1 else tuple(shape)


def _layers(config: NCSNppConfig, shape: Sequence[int]) -> Iterator[tuple[str, str, _Leaves]]:
    """Our layers, theirs, and what theirs call weight and bias."""
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
    """The leaves of nested dicts with their '/'-joined paths."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
