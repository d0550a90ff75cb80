"""NCSN++ in both backends, whole and part by part: what the authors' own computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from twins import assert_close, jax_weights, nchw, nhwc, torch_network

from ict_backends.exchange.jcm import from_official, official_arrays
from ict_backends.jax import layers as jax_layers
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.jax.state import merge_network
from ict_backends.jax.weights import load_arrays as jax_load
from ict_backends.networks.layers import BlockSpec, ImageSize
from ict_backends.torch import layers as torch_layers
from ict_backends.torch.networks import UNet
from ict_core import Config, consistency_output
from ict_core.settings import build_config

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
BACKENDS = ["torch", "jax"]
FIR, ASYMMETRIC = (1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 4.0, 1.0)
# Our layers of a module and their two arrays -> theirs.
RESBLOCK = {
    "norm_0": ("GroupNorm_0", "scale", "bias"),
    "conv_0": ("Conv_0", "kernel", "bias"),
    "embed": ("Dense_0", "kernel", "bias"),
    "norm_1": ("GroupNorm_1", "scale", "bias"),
    "conv_1": ("Conv_1", "kernel", "bias"),
    "shortcut": ("Conv_2", "kernel", "bias"),
}
ATTENTION = {
    "norm": ("GroupNorm_0", "scale", "bias"),
    "query": ("NIN_0", "W", "b"),
    "key": ("NIN_1", "W", "b"),
    "value": ("NIN_2", "W", "b"),
    "out": ("NIN_3", "W", "b"),
}


@lru_cache
def fixture(name: str = "ncsnpp_blocks_open.npz") -> Mapping[str, np.ndarray]:
    if not (REFERENCE / name).is_file():
        pytest.skip(f"reference fixtures are not here: {REFERENCE / name}")
    with np.load(REFERENCE / name, allow_pickle=False) as file:
        return dict(file)


def their_config(theirs: Mapping[str, Any]) -> Config:
    model, size = theirs["model"], theirs["image_size"]
    network = {
        "channels": model["nf"],
        "channel_mult": list(model["ch_mult"]),
        "blocks": model["num_res_blocks"],
        "attention_resolutions": list(model["attn_resolutions"]),
    }
    return build_config({"data": {"shape": [3, size, size]}, "network": network})


def load_theirs(config: Config, params: Mapping[str, np.ndarray]) -> UNet:
    """The network in torch with their parameters, each of which must have its place."""
    theirs = official_arrays(config.network, config.data.shape)
    assert {f"params/{name}" for name, _ in theirs.values()} == params.keys()
    network = torch_network(config, "float32")
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(
        {n: torch.tensor(from_official(params[f"params/{theirs[n].name}"], s).copy()) for n, s in shapes.items()}
    )
    return network


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "suffix", "tolerance"), [("float32", "", 1e-5), ("float64", "_from_float64", 1e-7)])
def test_it_computes_what_the_authors_network_computes(backend: str, dtype: str, suffix: str, tolerance: float) -> None:
    whole = fixture("ncsnpp_open.npz")
    config = their_config(json.loads(bytes(whole["config_json"])))
    network = load_theirs(config, {name: a for name, a in whole.items() if name.startswith("params/")})

    def run(x: np.ndarray, c_noise: np.ndarray, labels: None = None) -> np.ndarray:
        if backend == "torch":
            with torch.no_grad():
                return network.to(getattr(torch, dtype))(torch.tensor(x), torch.tensor(c_noise)).numpy()
        with jax.enable_x64(dtype == "float64"):
            module = merge_network(config, *jax_weights(config, network, dtype))
            return nchw(nnx.jit(lambda m, *inputs: m(*inputs))(module, nhwc(x), jnp.asarray(c_noise)))

    def expected(key: str) -> np.ndarray:
        return channels_first(whole[f"{key}{suffix}"]).astype(dtype)

    net_in_x, net_in_t, x, sigma = (whole[k].astype(dtype) for k in ("net_in_x", "net_in_t", "x", "sigma"))
    assert_close(run(channels_first(net_in_x), net_in_t), expected("network_output"), tolerance)
    assert_close(consistency_output(run, channels_first(x), sigma), expected("consistency_output"), tolerance)


def channels_first(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 3, 1, 2)


def run_layer(
    backend: str, make: Callable[..., Any], weights: Mapping[str, np.ndarray], *inputs: np.ndarray | None
) -> np.ndarray:
    """A module of a backend with these weights, on images [b, c, h, w] and vectors [b, e]."""
    if backend == "torch":
        module = make(torch_layers)
        shapes = {name: value.shape for name, value in module.state_dict().items()}
        assert shapes.keys() == weights.keys()
        module.load_state_dict({name: torch.tensor(a).reshape(shapes[name]) for name, a in weights.items()})
        with torch.no_grad():
            return module(*(None if a is None else torch.tensor(a) for a in inputs)).numpy()
    module = make(jax_layers, rngs=nnx.Rngs(0))
    # A 1x1 convolution is a matrix in theirs.
    wide = {n: a[:, :, None, None] if a.ndim == 2 and "embed" not in n else a for n, a in weights.items()}
    (state,) = jax_load([nnx.state(module, nnx.Param)], wide, jax_devices("cpu"), "it")
    nnx.update(module, state)
    return nchw(module(*(a if a is None else nhwc(a) if a.ndim == 4 else jnp.asarray(a) for a in inputs)))


def official(name: str, layers: Mapping[str, tuple[str, str, str]]) -> dict[str, np.ndarray]:
    """The weights of one of their modules under our names and in our layouts."""
    found = {}
    for ours, (theirs, weight, bias) in layers.items():
        for leaf, their_leaf in (("weight", weight), ("bias", bias)):
            key = f"{name}/params/{theirs}/{their_leaf}" if theirs else f"{name}/params/{their_leaf}"
            if key in fixture():
                array = fixture()[key]
                shape = array.shape[::-1] if array.ndim == 2 else array.shape
                found[f"{ours}.{leaf}".removeprefix(".")] = from_official(array, shape).copy()
    assert len(found) == sum(key.startswith(f"{name}/params/") for key in fixture())
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("key", "taps"), [("fir", FIR), ("fir_asym", ASYMMETRIC)])
def test_resampling_is_theirs(backend: str, key: str, taps: tuple[float, ...]) -> None:
    """An asymmetric filter tells a convolution from a correlation."""
    if key == "fir_asym":
        assert tuple(fixture()["fir_asym/kernel1d"]) == taps
    x = channels_first(fixture()["fir/x"])
    for name in ("downsample", "upsample"):
        if backend == "torch":
            found = getattr(torch_layers, name)(torch.tensor(x), taps).numpy()
        else:
            found = nchw(getattr(jax_layers, name)(nhwc(x), taps))
        assert_close(found, channels_first(fixture()[f"{key}/{name}_2d"]), 1e-5)


def test_the_filter_is_their_kernel() -> None:
    expected = fixture()["fir/kernel2d_normalised"]
    assert_close(torch_layers.fir_kernel(FIR).float().numpy(), expected, 1e-6)
    taps = jax_layers.fir_taps(FIR)
    assert_close(np.outer(taps, taps).astype(np.float32), expected, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("key", "taps"), [("fir", FIR), ("fir_asym", ASYMMETRIC)])
def test_a_strided_convolution_follows_the_filter(backend: str, key: str, taps: tuple[float, ...]) -> None:
    weights = {"conv.weight": fixture()["fir/conv_weight_HWIO"].transpose(3, 2, 0, 1).copy()}
    weights["conv.bias"] = np.zeros(5, np.float32)
    found = run_layer(
        backend,
        lambda m, **rngs: m.PyramidDownsample(3, 5, taps, **rngs),
        weights,
        channels_first(fixture()["fir/x"]),
    )
    assert_close(found, channels_first(fixture()[f"{key}/conv_downsample_2d"]), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_pyramids_step_is_theirs(backend: str) -> None:
    weights = official("downsample_conv_fir", {"conv": ("Conv2d_0", "weight", "bias")})
    found = run_layer(
        backend,
        lambda m, **rngs: m.PyramidDownsample(8, 12, FIR, **rngs),
        weights,
        channels_first(fixture()["resblock/x"]),
    )
    assert_close(found, channels_first(fixture()["downsample_conv_fir/out"]), 1e-5)


BLOCKS = {
    "resblock_same": ("resblock", BlockSpec(8, 8, ImageSize(6, 6))),
    "resblock_out": ("resblock", BlockSpec(8, 12, ImageSize(6, 6))),
    "resblock_down": ("resblock", BlockSpec(8, 8, ImageSize(3, 3), down=True)),
    "resblock_up": ("resblock", BlockSpec(8, 8, ImageSize(12, 12), up=True)),
    "resblock_cap": ("resblock_cap", BlockSpec(160, 4, ImageSize(4, 4))),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("key", BLOCKS)
def test_residual_blocks_are_theirs(backend: str, key: str) -> None:
    given, spec = BLOCKS[key]
    x, embedding = channels_first(fixture()[f"{given}/x"]), fixture()[f"{given}/temb"]

    def make(layers: Any, **rngs: nnx.Rngs) -> Any:
        return layers.ResidualBlock(spec, 10, taps=FIR, dropout=0.3, skip_rescale=True, **rngs)

    found = run_layer(backend, make, official(key, RESBLOCK), x, embedding, None)
    assert_close(found, channels_first(fixture()[f"{key}/out"]), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_theirs(backend: str) -> None:
    found = run_layer(
        backend,
        lambda m, **rngs: m.Attention(8, skip_rescale=True, **rngs),
        official("attn", ATTENTION),
        channels_first(fixture()["resblock/x"]),
    )
    assert_close(found, channels_first(fixture()["attn/out"]), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_1x1_convolution_is_their_product_over_channels(backend: str) -> None:
    found = run_layer(
        backend,
        lambda m, **rngs: m.Conv(8, 12, 1, **rngs),
        official("nin", {"": ("", "W", "b")}),
        channels_first(fixture()["resblock/x"]),
    )
    assert_close(found, channels_first(fixture()["nin/out"]), 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalisation_has_their_epsilon_and_groups(backend: str) -> None:
    found = run_layer(
        backend,
        lambda m, **rngs: m.GroupNorm(8, **rngs),
        official("groupnorm_eps", {"": ("", "scale", "bias")}),
        channels_first(fixture()["groupnorm_eps/x"]),
    )
    assert_close(found, channels_first(fixture()["groupnorm_eps/out"]), 1e-5)


def features(backend: str, kind: str, channels: int, t: np.ndarray, stored: np.ndarray | None = None) -> np.ndarray:
    """What the embedding's first dense layer is fed."""
    seen: list[Any] = []
    if backend == "torch":
        embedding = torch_layers.NoiseEmbedding(channels, kind=kind, scale=1.0, num_classes=0)
        if stored is not None:
            embedding.frequencies.copy_(torch.tensor(stored))
        embedding.dense_0.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        embedding(torch.tensor(t), None)
        return seen[0].numpy()
    embedding = jax_layers.NoiseEmbedding(channels, kind=kind, scale=1.0, num_classes=0, rngs=nnx.Rngs(0))
    if stored is not None:
        embedding.frequencies[...] = jnp.asarray(stored)
    dense = embedding.dense_0
    embedding.dense_0 = lambda x: (seen.append(x), dense(x))[1]
    embedding(jnp.asarray(t), None)
    return np.asarray(seen[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_fourier_features_are_theirs(backend: str) -> None:
    found = features(backend, "fourier", 6, fixture()["fourier/t"], fixture()["fourier/W"])
    assert_close(found, fixture()["fourier/out"], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_positional_features_are_theirs(backend: str) -> None:
    found = features(backend, "positional", 8, fixture()["positional/t"])
    assert_close(found, fixture()["positional/out_dim8"], 1e-5)


def test_every_array_of_the_file_is_compared() -> None:
    """What a comparison above does not read would prove nothing."""
    text = Path(__file__).read_text(encoding="utf-8")
    names = {key.partition("/")[0] for key in fixture()}
    assert all(f'"{name}' in text for name in names)
    # Each comparison can fail: a filter turned round, another epsilon, another order of the features.
    x = channels_first(fixture()["fir/x"])
    turned = torch_layers.upsample(torch.tensor(x), ASYMMETRIC[::-1]).numpy()
    with pytest.raises(AssertionError):
        assert_close(turned, channels_first(fixture()["fir_asym/upsample_2d"]), 1e-5)
