"""ADM: its parameters, and what the authors' network and its parts computed, in both backends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load_file
from twins import adm_configs, assert_close, jax_weights, nchw, nhwc, torch_network

from ict_backends.exchange import openai_adm
from ict_backends.jax import adm as jax_adm
from ict_backends.jax import layers as jax_layers
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.jax.weights import load_arrays as jax_load
from ict_backends.networks.adm import adm_groups, adm_layers, adm_spec
from ict_backends.networks.layers import BlockSpec, ImageSize, array_shapes
from ict_backends.torch import adm as torch_adm
from ict_backends.torch import layers as torch_layers
from ict_core import (
    ADMConfig,
    Config,
    ConfigError,
    consistency_output,
    karras_sigmas,
    load_preset,
    multistep_sample,
    scalings,
)
from ict_core.settings import build_config

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
OPEN = {
    "family": "adm",
    "channels": 16,
    "channel_mult": [4, 2],
    "blocks": 1,
    "attention_resolutions": [8],
    "head_channels": 16,
    "dropout": 0.1,
    "dropout_resolution": 0,
    "scale_shift": True,
    "num_classes": 10,
}
OPEN_CONFIG = build_config({"data": {"shape": [3, 16, 16]}, "network": OPEN})
BACKENDS = ["torch", "jax"]


def arrays(name: str) -> Mapping[str, np.ndarray]:
    path = REFERENCE / name
    if not path.is_file():
        pytest.skip(f"reference fixtures are not here: {path}")
    if path.suffix == ".safetensors":
        return load_file(path)
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(adm_configs())
def test_it_has_the_parameters_that_the_specification_lists(config: Config) -> None:
    network = torch_adm.ADM(config.network, config.data.shape)
    found = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert found == array_shapes(adm_layers(config.network, config.data.shape))
    names = openai_adm.official_names(config.network, config.data.shape)
    assert names.keys() == found.keys()
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize(("scale_shift", "expected"), [(True, 295_899_267), (False, 282_168_003)])
def test_the_imagenet_64_network_keeps_its_size(scale_shift: bool, expected: int) -> None:
    """With 1000 classes: another count breaks checkpoints, the authors' among them (which scale and shift)."""
    config = ADMConfig(num_classes=1000, scale_shift=scale_shift)
    assert sum(math.prod(s) for s in array_shapes(adm_layers(config, (3, 64, 64))).values()) == expected


def test_the_stable_preset_keeps_its_size() -> None:
    """That of imagenet64 without the seven attention layers at 32x32, of 384 channels each."""
    attention = 7 * (2 * 384 + 384 * 3 * 384 + 3 * 384 + 384 * 384 + 384)
    found = array_shapes(adm_layers(load_preset("imagenet64-stable").network, (3, 64, 64)))
    assert sum(map(math.prod, found.values())) == 282_168_003 - attention == 278_023_107


@pytest.fixture(scope="module", params=BACKENDS)
def run(request: pytest.FixtureRequest) -> Callable[..., np.ndarray]:
    """The open network with the authors' weights in a backend: run(dtype, x [b, c, h, w], c_noise, labels)."""
    theirs = arrays("adm_open.safetensors")
    names = openai_adm.official_names(OPEN_CONFIG.network, OPEN_CONFIG.data.shape)
    assert set(names.values()) == set(theirs)
    network = torch_network(OPEN_CONFIG, "float32")
    network.load_state_dict({ours: torch.tensor(theirs[name]) for ours, name in names.items()})

    def run_torch(dtype: str, x: np.ndarray, c_noise: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            wide = network.to(getattr(torch, dtype))
            return wide(*(torch.tensor(a.astype(dtype)) for a in (x, c_noise)), torch.tensor(labels)).numpy()

    forward = nnx.jit(lambda m, x, c, y: m(x, c, y))

    def run_jax(dtype: str, x: np.ndarray, c_noise: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with jax.enable_x64(dtype == "float64"):
            weights = jax_weights(OPEN_CONFIG, network, dtype)
            module = jax_adm.ADM(OPEN_CONFIG.network, OPEN_CONFIG.data.shape, rngs=nnx.Rngs(0))
            nnx.update(module, *weights)
            return nchw(forward(module, nhwc(x.astype(dtype)), jnp.asarray(c_noise.astype(dtype)), labels))

    return {"torch": run_torch, "jax": run_jax}[request.param]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_computes_what_the_authors_network_computes(run: Callable[..., np.ndarray], dtype: str) -> None:
    io = arrays("adm_open_io.npz")
    expected = io["network_output" if dtype == "float32" else "network_output_from_float64"].astype(dtype)
    found = run(dtype, io["net_in_x"], io["net_in_t"].astype(dtype) / 1000, io["y"])
    assert_close(found, expected, 3e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-7)])
def test_from_images_and_levels_it_is_the_authors_consistency_function(
    run: Callable[..., np.ndarray], dtype: str, tolerance: float
) -> None:
    io = arrays("adm_open_io.npz")
    x, sigma = io["x"].astype(dtype), io["sigma"].astype(dtype)
    found = consistency_output(lambda *a: run(dtype, *a), x, sigma, io["y"])
    suffix = "" if dtype == "float32" else "_from_float64"
    assert_close(found, io[f"consistency_output{suffix}"].astype(dtype), tolerance)
    c_in, c_noise = scalings(sigma)[2:]
    output = run(dtype, c_in[:, None, None, None] * x, c_noise, io["y"])
    assert_close(output, io[f"network_output{suffix}"].astype(dtype), tolerance)


# Their lists of steps, as fractions of 39 from sigma_max down; the last is where they stop.
MULTISTEP = ["0_39", "0_22_39", "0_10_20_30_39"]


@pytest.mark.parametrize("steps", MULTISTEP)
def test_multistep_sampling_with_their_noise_gives_their_images(run: Callable[..., np.ndarray], steps: str) -> None:
    """Their sampler clips each step's result, or only the last; ours does the last, and the first where f clips."""
    io = arrays("multistep_open.npz")
    key = f"multistep_{steps}_of40"
    sigmas = [float(s) for s in karras_sigmas(40)[::-1][io[f"{key}/ts"][:-1]]]
    np.testing.assert_allclose(io[f"{key}/raw_sigmas"], sigmas, rtol=1e-5)
    noises = np.stack([io["z_T"], *io["noise"]])[: len(sigmas)]
    seen = []

    def f(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        seen.append(consistency_output(lambda *a: run("float32", *a), x, sigma, io["y"]))
        return seen[-1]

    assert_close(multistep_sample(f, noises, sigmas, clip=False), io[f"{key}/raw_out"], 2e-4)
    if f"{key}/raw_x0" in io:
        assert_close(np.stack(seen), io[f"{key}/raw_x0"], 2e-4)
    assert_close(multistep_sample(f, noises, sigmas, clip=True), io[f"{key}/karras_sample_noclip"], 2e-4)
    clipped = multistep_sample(lambda x, sigma: np.clip(f(x, sigma), -1, 1), noises, sigmas, clip=True)
    assert_close(clipped, io[f"{key}/karras_sample_clip"], 2e-4)


def test_one_step_sampling_gives_their_images(run: Callable[..., np.ndarray]) -> None:
    io = arrays("multistep_open.npz")

    def f(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        return consistency_output(lambda *a: run("float32", *a), x, sigma, io["y"])

    for key, clip in (("raw_out", False), ("karras_sample_clip", True), ("karras_sample_noclip", True)):
        assert_close(multistep_sample(f, io["z_T"][None], [80.0], clip=clip), io[f"onestep/{key}"], 2e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_over_queries_keys_and_values_is_theirs(backend: str) -> None:
    blocks = arrays("adm_blocks_open.npz")
    qkv, heads = blocks["qkv/in"][..., None], int(blocks["qkv/n_heads"])
    if backend == "torch":
        found = torch_adm.attend(torch.tensor(qkv), heads).numpy()
    else:
        found = nchw(jax_adm.attend(nhwc(qkv), heads))
    assert_close(found[..., 0], blocks["qkv/out"], 1e-5)


def run_module(
    backend: str, make: Callable[..., object], weights: Mapping[str, np.ndarray], *inputs: np.ndarray
) -> np.ndarray:
    """A module of a backend with given weights, on images [b, c, h, w] and embeddings [b, e]."""
    if backend == "torch":
        module = make(torch_adm)
        module.load_state_dict({name: torch.tensor(a) for name, a in weights.items()})
        with torch.no_grad():
            return module(*map(torch.tensor, inputs)).numpy()
    module = make(jax_adm, rngs=nnx.Rngs(0))
    (state,) = jax_load([nnx.state(module, nnx.Param)], dict(weights), jax_devices("cpu"), "it")
    nnx.update(module, state)
    return nchw(module(*(nhwc(a) if a.ndim == 4 else jnp.asarray(a) for a in inputs)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_block_without_scale_shift_is_theirs(backend: str) -> None:
    blocks = arrays("adm_blocks_open.npz")
    assert not blocks["resblock/use_scale_shift_norm"]
    spec = BlockSpec(32, 64, ImageSize(4, 4))
    weights = {
        f"{ours}.{leaf}": blocks[f"resblock/params/{theirs}.{leaf}"]
        for ours, theirs in openai_adm.BLOCK.items()
        for leaf in ("weight", "bias")
    }

    if backend == "torch":
        block = torch_adm.ADMBlock(spec, 12, scale_shift=False, dropout=0.0)
        block.load_state_dict({name: torch.tensor(a) for name, a in weights.items()})
        with torch.no_grad():
            found = block(torch.tensor(blocks["resblock/x"]), torch.tensor(blocks["resblock/emb"]), None).numpy()
    else:
        block = jax_adm.ADMBlock(spec, 12, scale_shift=False, dropout=0.0, rngs=nnx.Rngs(0))
        (state,) = jax_load([nnx.state(block, nnx.Param)], weights, jax_devices("cpu"), "it")
        nnx.update(block, state)
        found = nchw(block(nhwc(blocks["resblock/x"]), jnp.asarray(blocks["resblock/emb"]), None))
    assert_close(found, blocks["resblock/out"], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("up", "key", "layer"), [(False, "resample_down_conv", "op"), (True, "resample_up_conv", "conv")]
)
def test_resampling_by_convolution_is_theirs(backend: str, up: bool, key: str, layer: str) -> None:
    blocks = arrays("adm_blocks_open.npz")
    weights = {f"conv.{leaf}": blocks[f"{key}/params/{layer}.{leaf}"] for leaf in ("weight", "bias")}
    found = run_module(backend, lambda m, **rngs: m.Resample(6, up=up, **rngs), weights, blocks["resample/x"])
    assert_close(found, blocks[f"{key}/out"], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalisation_has_their_epsilon(backend: str) -> None:
    blocks = arrays("adm_blocks_open.npz")
    weights = {leaf: blocks[f"groupnorm_eps/params/{leaf}"] for leaf in ("weight", "bias")}
    found = run_module(backend, lambda m, **rngs: m.group_norm(32, **rngs), weights, blocks["groupnorm_eps/x"])
    assert_close(found, blocks["groupnorm_eps/out"], 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_resampling_without_a_convolution_is_theirs(backend: str) -> None:
    """As the branches of their blocks are resampled: means of 2x2, and repeated pixels."""
    blocks = arrays("adm_blocks_open.npz")
    for name, key in (("downsample", "resample_down_avgpool"), ("upsample", "resample_up_nearest")):
        if backend == "torch":
            found = getattr(torch_layers, name)(torch.tensor(blocks["resample/x"]), ()).numpy()
        else:
            found = nchw(getattr(jax_layers, name)(nhwc(blocks["resample/x"]), ()))
        assert_close(found, blocks[f"{key}/out"], 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [16, 17])
def test_features_are_their_cosines_then_sines(backend: str, channels: int) -> None:
    blocks, found = arrays("adm_blocks_open.npz"), []
    t = blocks["timestep_embedding/t"]
    if backend == "torch":
        ours = torch_adm.PositionalEmbedding(channels, scale=1.0, num_classes=0)
        ours.dense_0.register_forward_pre_hook(lambda _, args: found.append(args[0].numpy()))
        ours(torch.tensor(t), None)
    else:
        ours = jax_adm.PositionalEmbedding(channels, scale=1.0, num_classes=0, rngs=nnx.Rngs(0))
        dense = ours.dense_0
        ours.dense_0 = lambda x: (found.append(np.asarray(x)), dense(x))[1]
        ours(jnp.asarray(t), None)
    assert_close(found[0], blocks[f"timestep_embedding/dim{channels}"], 1e-4)


def test_dropout_acts_at_low_resolutions_only() -> None:
    config = ADMConfig(channels=32, channel_mult=(1, 1, 1), blocks=1, head_channels=32, dropout_resolution=16)
    heights = {block.size.height: block.dropout for _, block in adm_spec(config, (3, 64, 64)).blocks()}
    assert heights == {64: False, 32: False, 16: True}
    network = torch_adm.ADM(config, (3, 64, 64))
    assert {shape[1] for shape in network.mask_shapes} == {16}


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ConfigError, match="network.head_channels = 48 must divide .* 64 is not divisible"):
        adm_spec(ADMConfig(channels=64, channel_mult=(1,), head_channels=48), (3, 8, 8))


def test_widths_must_divide_into_the_groups_of_their_norms() -> None:
    """With fewer, smaller groups, widths need not be multiples of 32."""
    config = ADMConfig(
        channels=20, channel_mult=(1, 4), min_group_channels=4, head_channels=80, attention_resolutions=()
    )
    assert adm_groups(20, 4) == 5
    assert adm_groups(192, 4) == adm_groups(32, 1) == 32
    assert adm_spec(config, (3, 8, 8)).in_channels == 20
    odd = replace(config, channels=72, channel_mult=(1, 1), head_channels=72)
    with pytest.raises(ConfigError, match=r"gives up.0.blocks.0 144 channels, which do not divide into 32 groups"):
        adm_spec(odd, (3, 8, 8))
