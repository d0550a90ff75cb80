"""Every array of both families of networks starts with the mean and standard deviation of the authors' rule."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch

from ict_backends.jax.device import check_device
from ict_backends.jax.state import init_state as jax_init_state
from ict_backends.jax.weights import to_checkpoint as jax_to_checkpoint
from ict_backends.networks.families import network_layers
from ict_backends.networks.layers import Kind, Layer
from ict_backends.torch.parallel import Processes
from ict_backends.torch.state import init_state as torch_init_state
from ict_backends.torch.weights import to_checkpoint as torch_to_checkpoint
from ict_core import Config
from ict_core.settings import build_config

FAMILIES = {
    "ncsnpp": {
        "channels": 32,
        "channel_mult": [1, 2],
        "blocks": 1,
        "attention_resolutions": [8, 4],
        "num_classes": 10,
    },
    "ncsnpp positional": {"channels": 32, "channel_mult": [1], "blocks": 1, "embedding": "positional"},
    "ncsnpp with early labels": {
        "channels": 32,
        "channel_mult": [1],
        "blocks": 1,
        "num_classes": 10,
        "labels_at": "features",
    },
    "adm": {
        "family": "adm",
        "channels": 32,
        "channel_mult": [1, 2],
        "blocks": 1,
        "attention_resolutions": [8, 4],
        "head_channels": 32,
        "num_classes": 10,
    },
    "adm without updown": {
        "family": "adm",
        "channels": 32,
        "channel_mult": [1, 2],
        "blocks": 1,
        "attention_resolutions": [4],
        "head_channels": 16,
        "resblock_updown": False,
        "scale_shift": True,
    },
}


def config_of(name: str) -> Config:
    return build_config({"data": {"shape": [3, 8, 8]}, "network": FAMILIES[name]})


@cache
def initial(name: str, backend: str) -> dict[str, np.ndarray]:
    config = config_of(name)
    if backend == "torch":
        return torch_to_checkpoint(torch_init_state(config, Processes(torch.device("cpu")))).params
    mesh = check_device("cpu")
    return jax_to_checkpoint(config, jax_init_state(config, mesh), mesh).params


def ends_a_branch(layer: Layer) -> bool:
    """True of the layers that the authors fill with (nearly) nothing."""
    parts = layer.name.split(".")
    return parts[-1] in ("conv_1", "conv_out") or (parts[-1] == "out" and "attention" in parts)


def ncsnpp_std(layer: Layer, leaf: str, config: Config) -> float:
    """Of the jcm code: uniform with fan_avg, variance scale 1, 0.1 (NIN) or 1e-10; no bias; W by its scale."""
    if layer.kind is Kind.FREQUENCIES:
        return config.network.embedding_scale
    if layer.kind is Kind.TABLE:
        return 1.0
    if leaf == "bias":
        return 0.0
    scale = 1e-10 if ends_a_branch(layer) else 0.1 if layer.name.endswith(("query", "key", "value")) else 1.0
    return math.sqrt(scale / (layer.kernel**2 * (layer.in_size + layer.out_size) / 2))


def adm_std(layer: Layer, leaf: str, config: Config) -> float:
    """Of the guided diffusion code: torch's default, uniform in 1 / sqrt(fan_in), or zero_module."""
    if layer.kind is Kind.TABLE:
        return 1.0
    return 0.0 if ends_a_branch(layer) else 1 / math.sqrt(3 * layer.kernel**2 * layer.in_size)


def fault(layer: Layer, leaf: str, name: str, values: np.ndarray) -> str | None:
    """What is wrong with the initial values of an array; None where nothing is."""
    where = layer.array_name(leaf)
    if layer.kind is Kind.NORM:
        fill = 1.0 if leaf == "weight" else 0.0
        return None if np.array_equal(values, np.full(values.shape, fill)) else f"{where} is not all {fill}"
    std = (adm_std if name.startswith("adm") else ncsnpp_std)(layer, leaf, config_of(name))
    if std == 0.0:
        return f"{where} is not all 0" if values.any() else None
    # The estimate from n normal numbers has the relative error 1 / sqrt(2 n), that from uniform ones less.
    if abs(values.std() / std - 1) > 5 / math.sqrt(2 * values.size):
        return f"{where} has the standard deviation {values.std():.4g}, not {std:.4g}"
    off = abs(values.mean()) > 5 * std / math.sqrt(values.size)
    return f"{where} has the mean {values.mean():.4g}" if off else None


def faults(name: str, arrays: dict[str, np.ndarray]) -> list[str]:
    layers = network_layers(config_of(name))
    found = (fault(x, leaf, name, np.float64(arrays[x.array_name(leaf)])) for x in layers for leaf in x.arrays)
    return [each for each in found if each]


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_array_starts_as_the_authors_have_it(name: str, backend: str) -> None:
    assert faults(name, initial(name, backend)) == []


@pytest.mark.parametrize("factor", [0.9, 10**0.5])
def test_the_check_finds_a_scale_that_is_off(factor: float) -> None:
    """The larger one is that of queries with the variance scale of the other layers."""
    arrays = initial("ncsnpp", "torch")
    wrong = "middle.attention.query.weight"
    (said,) = faults("ncsnpp", arrays | {wrong: factor * arrays[wrong]})
    assert said.startswith(wrong)
