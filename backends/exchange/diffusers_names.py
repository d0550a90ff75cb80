"""ADM in the diffusers library: the settings and arrays of `UNet2DModel` and `CMStochasticIterativeScheduler`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ict_backends.errors import CheckpointError, UsageError
from ict_backends.networks.adm import ADMLevelSpec, adm_spec
from ict_backends.networks.families import network_layers, parameter_shapes
from ict_backends.networks.layers import Kind
from ict_backends.protocols import Arrays
from ict_backends.runs.checkpoint import check_arrays, check_finite
from ict_core import ADMConfig, Config, ConfigError
from ict_core.settings import Tree, build_config

# The settings of UNet2DModel that ADM requires; then the values that diffusers takes where its file has none.
_FIXED_UNET: Mapping[str, Any] = {
    "act_fn": "silu",
    "add_attention": True,
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2D",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
    "num_train_timesteps": None,
    "time_embedding_type": "positional",
}
_UNET_DEFAULTS: Mapping[str, Any] = {
    **_FIXED_UNET,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "downsample_type": "conv",
    "dropout": 0.0,
    "in_channels": 3,
    "layers_per_block": 2,
    "num_class_embeds": None,
    "out_channels": 3,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "upsample_type": "conv",
}
# The settings that the file must have.
_REQUIRED = ("block_out_channels", "down_block_types", "sample_size", "up_block_types")
_SCHEDULER_DEFAULTS: Mapping[str, Any] = {
    "num_train_timesteps": 40,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "s_noise": 1.0,
    "rho": 7.0,
    "clip_denoised": True,
}
_SHIFTS = {"default": False, "scale_shift": True}

_BLOCK = {
    "norm_0": "norm1",
    "conv_0": "conv1",
    "embed": "time_emb_proj",
    "norm_1": "norm2",
    "conv_1": "conv2",
    "shortcut": "conv_shortcut",
}
_WHOLE = {
    "embedding.dense_0": "time_embedding.linear_1",
    "embedding.dense_1": "time_embedding.linear_2",
    "embedding.labels": "class_embedding",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}


def check_exportable(config: Config) -> ADMConfig:
    """Return the settings of the network if diffusers has it, too, else raise UsageError with the reason."""
    network = config.network
    if not isinstance(network, ADMConfig):
        raise UsageError(
            "an NCSN++ network cannot be exported: diffusers has no twin of it (its skip connections, FIR filters and "
            'input pyramid differ), only of network.family = "adm"'
        )
    if network.channel_mult[0] != 1:
        raise UsageError(
            f"network.channel_mult = {list(network.channel_mult)} cannot be exported: in diffusers, the features of a "
            "noise level are as many as the first level's channels, so the first number must be 1"
        )
    if network.normalize_qkv:
        raise UsageError(
            "network.normalize_qkv = true cannot be exported: the attention of diffusers' UNet2DModel does not "
            "normalise queries, keys and values"
        )
    if network.embedding_scale != 1000:
        raise UsageError(
            f"network.embedding_scale = {network.embedding_scale:g} cannot be exported: diffusers has 1000 always"
        )
    if min(network.channel_mult) * network.channels < 32 * network.min_group_channels:
        raise UsageError(
            f"network.min_group_channels = {network.min_group_channels} cannot be exported: a width of "
            f"{min(network.channel_mult) * network.channels} channels has fewer than 32 groups, and in diffusers all "
            "norms have as many"
        )
    return network


def unet_settings(config: Config) -> dict[str, Any]:
    """The settings of the `UNet2DModel` that is a configuration's network. Raises UsageError as `check_exportable`."""
    network, (channels, height, width) = check_exportable(config), config.data.shape
    kinds = [_kind(height >> i in network.attention_resolutions, network) for i in range(len(network.channel_mult))]
    resampling = "resnet" if network.resblock_updown else "conv"
    return {
        **_UNET_DEFAULTS,
        "attention_head_dim": network.head_channels,
        "attn_norm_num_groups": 32,
        "block_out_channels": [mult * network.channels for mult in network.channel_mult],
        "down_block_types": [down for down, _ in kinds],
        "downsample_type": resampling,
        "dropout": network.dropout,
        "in_channels": channels,
        "layers_per_block": network.blocks,
        "num_class_embeds": network.num_classes or None,
        "out_channels": channels,
        "resnet_time_scale_shift": "scale_shift" if network.scale_shift else "default",
        "sample_size": height if height == width else [height, width],
        "up_block_types": [up for _, up in reversed(kinds)],
        "upsample_type": resampling,
    }


def _kind(attention: bool, network: ADMConfig) -> tuple[str, str]:
    if attention:
        return "AttnDownBlock2D", "AttnUpBlock2D"
    if network.resblock_updown:
        return "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"
    return "DownBlock2D", "UpBlock2D"


def scheduler_settings(config: Config) -> dict[str, Any]:
    """The settings of the scheduler, whose noise levels are those of the last stage of training.

    It does not clip the result of every step: as in `multistep_sample`, only the final images are clipped.
    """
    noise = config.noise
    return {
        **_SCHEDULER_DEFAULTS,
        "num_train_timesteps": config.curriculum.s1 + 1,
        "sigma_min": noise.sigma_min,
        "sigma_max": noise.sigma_max,
        "sigma_data": noise.sigma_data,
        "rho": noise.rho,
        "clip_denoised": False,
    }


def nearest_timestep(config: Config, sigma: float) -> int:
    """The scheduler's number of the noise level nearest to `sigma`, counted from sigma_max (0) down.

    Distances are those of sigma^(1 / rho), in which the levels are equally far apart.
    """
    noise = config.noise
    top, bottom, here = (s ** (1 / noise.rho) for s in (noise.sigma_max, noise.sigma_min, sigma))
    return round((top - here) / (top - bottom) * config.curriculum.s1)


def read_settings(unet: Mapping[str, Any], scheduler: Mapping[str, Any], what: str) -> Config:
    """Translate a pipeline's settings into a configuration.

    Args:
        unet, scheduler: the settings of the pipeline's parts.
        what: names the pipeline in the error.

    Raises:
        CheckpointError: ADM or our sampler has no place for a setting, which the message names.
    """
    try:
        return build_config(_read_sections(unet, scheduler, what))
    except (ConfigError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise CheckpointError(f"{what}: its settings are none of ADM's: {' '.join(str(error).split())}") from error


def _read_sections(unet: Mapping[str, Any], scheduler: Mapping[str, Any], what: str) -> Tree:
    unet = _complete(unet, {**_UNET_DEFAULTS, **dict.fromkeys(_REQUIRED)}, f"{what}: unet")
    scheduler = _complete(scheduler, _SCHEDULER_DEFAULTS, f"{what}: scheduler")
    for name in _REQUIRED:
        _demand(unet[name] is not None, what, "unet", name, unet[name], "given")
    for name, value in _FIXED_UNET.items():
        _demand(unet[name] == value, what, "unet", name, unet[name], repr(value))
    _demand(scheduler["s_noise"] == 1, what, "scheduler", "s_noise", scheduler["s_noise"], "1")
    levels = scheduler["num_train_timesteps"]
    _demand(isinstance(levels, int) and levels >= 2, what, "scheduler", "num_train_timesteps", levels, ">= 2")
    network, shape = _read_network(unet, what)
    noise = {name: float(scheduler[name]) for name in ("sigma_min", "sigma_max", "sigma_data", "rho")}
    return {
        "data": {"source": "unknown", "shape": shape},
        "network": network,
        "noise": noise,
        "curriculum": {"s0": min(10, levels - 1), "s1": levels - 1},
        "sample": {"second_sigma": min(max(0.821, noise["sigma_min"]), 0.5 * noise["sigma_max"])},
    }


def _read_network(unet: Mapping[str, Any], what: str) -> tuple[dict[str, Any], list[int]]:
    widths, size, channels = list(unet["block_out_channels"]), unet["sample_size"], unet["in_channels"]
    sides = size if isinstance(size, list) else [size, size]
    ok = len(sides) == 2 and all(isinstance(side, int) for side in sides)
    _demand(ok, what, "unet", "sample_size", size, "one size, or height and width")
    _demand(unet["out_channels"] == channels, what, "unet", "out_channels", unet["out_channels"], str(channels))
    ok = all(width % widths[0] == 0 for width in widths)
    _demand(ok, what, "unet", "block_out_channels", widths, "multiples of the first")
    ok = unet["time_embedding_dim"] in (None, 4 * widths[0])
    _demand(ok, what, "unet", "time_embedding_dim", unet["time_embedding_dim"], str(4 * widths[0]))
    head, shift = unet["attention_head_dim"], unet["resnet_time_scale_shift"]
    _demand(isinstance(head, int), what, "unet", "attention_head_dim", head, "an integer")
    _demand(shift in _SHIFTS, what, "unet", "resnet_time_scale_shift", shift, " or ".join(map(repr, _SHIFTS)))
    groups = unet["attn_norm_num_groups"]
    ok = groups == 32 or (groups is None and shift == "default")
    _demand(ok, what, "unet", "attn_norm_num_groups", groups, "32")
    attention, updown = _read_levels(unet, what)
    network = {
        "family": "adm",
        "channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "blocks": unet["layers_per_block"],
        "attention_resolutions": [sides[0] >> i for i, has in enumerate(attention) if has],
        "head_channels": head,
        "dropout": float(unet["dropout"]),
        "dropout_resolution": 0,
        "scale_shift": _SHIFTS[shift],
        "resblock_updown": updown,
        "num_classes": unet["num_class_embeds"] or 0,
    }
    return network, [channels, *sides]


def _read_levels(unet: Mapping[str, Any], what: str) -> tuple[list[bool], bool]:
    """For each level, True if it has attention; and True if residual blocks resample."""
    down, up = list(unet["down_block_types"]), list(unet["up_block_types"])[::-1]
    for updown in (True, False):
        network = ADMConfig(resblock_updown=updown)
        kinds = {_kind(attention, network): attention for attention in (True, False)}
        resampling = "resnet" if updown else "conv"
        fits = len(down) == 1 or (unet["downsample_type"], unet["upsample_type"]) == (resampling, resampling)
        pairs = list(zip(down, up, strict=False))
        if len(down) == len(up) and fits and all(pair in kinds for pair in pairs):
            return [kinds[pair] for pair in pairs], updown
    raise CheckpointError(
        f"{what}: the blocks of the unet are none of ADM's: {', '.join(down)}, then {', '.join(up[::-1])}, resampling "
        f"by {unet['downsample_type']} and {unet['upsample_type']}"
    )


def _complete(given: Mapping[str, Any], defaults: Mapping[str, Any], what: str) -> dict[str, Any]:
    unknown = sorted(k for k, v in given.items() if k not in defaults and not k.startswith("_") and v is not None)
    if unknown:
        raise CheckpointError(f"{what} has settings that have no place in ADM: {', '.join(unknown)}")
    return {**defaults, **{k: v for k, v in given.items() if k in defaults}}


def _demand(ok: bool, what: str, part: str, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise CheckpointError(f"{what}: {name} of the {part} must be {allowed}, not {value!r}")


def to_diffusers(arrays: Arrays, config: Config) -> Arrays:
    """Convert the arrays of a network from our names and shapes to those of diffusers."""
    theirs: Arrays = {}
    for ours, array in _their_arrays(config).items():
        parts = np.split(arrays[ours].reshape(array.shape), len(array.names))
        theirs |= dict(zip(array.names, parts, strict=True))
    return theirs


def from_diffusers(arrays: Arrays, config: Config, what: str) -> Arrays:
    """Convert the arrays of a network from the names and shapes of diffusers to ours.

    Args:
        arrays: arrays by the names of diffusers.
        config: the configuration of the network.
        what: names the arrays' file in the error.

    Raises:
        CheckpointError: names or shapes differ: every difference is listed, in the names of diffusers.
        NonFiniteError: a weight is not finite.
    """
    theirs, shapes = _their_arrays(config), parameter_shapes(config)
    expected = {
        name: (array.shape[0] // len(array.names), *array.shape[1:])
        for array in theirs.values()
        for name in array.names
    }
    check_arrays(what, expected, arrays)
    check_finite(what, arrays)
    return {
        ours: np.concatenate([arrays[name] for name in theirs[ours].names]).reshape(shape)
        for ours, shape in shapes.items()
    }


class _TheirArray(NamedTuple):
    """The counterpart of one of our arrays in diffusers.

    Attributes:
        names: the name of one array, or of several (queries, keys, values) that are joined along the first axis.
        shape: the shape of the joined array.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]


def _their_arrays(config: Config) -> dict[str, _TheirArray]:
    """The arrays of diffusers by our names. Attention has dense layers there, and 1x1 convolutions here."""
    modules, arrays = dict(_layers(config)), {}
    for layer in network_layers(config):
        for leaf, shape in layer.arrays.items():
            names = tuple(f"{theirs}.{leaf}" for theirs in modules[layer.name])
            arrays[layer.array_name(leaf)] = _TheirArray(names, shape[:2] if layer.kind is Kind.PROJECTION else shape)
    return arrays


def _layers(config: Config) -> Iterator[tuple[str, tuple[str, ...]]]:
    assert isinstance(config.network, ADMConfig)
    spec = adm_spec(config.network, config.data.shape)
    yield from ((ours, (theirs,)) for ours, theirs in _WHOLE.items())
    for way, levels in (("down", spec.down), ("up", spec.up)):
        for i, level in enumerate(levels):
            yield from _level(f"{way}.{i}", level, f"{way}_blocks.{i}", way)
    yield from _block("middle.block_0", "mid_block.resnets.0")
    yield from _attention("middle.attention", "mid_block.attentions.0")
    yield from _block("middle.block_1", "mid_block.resnets.1")


def _level(ours: str, level: ADMLevelSpec, theirs: str, way: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for j in range(len(level.blocks)):
        yield from _block(f"{ours}.blocks.{j}", f"{theirs}.resnets.{j}")
        if level.attention:
            yield from _attention(f"{ours}.attention.{j}", f"{theirs}.attentions.{j}")
    resample = f"{theirs}.{way}samplers.0"
    if isinstance(level.step, int):
        yield f"{ours}.{way}.conv", (f"{resample}.conv",)
    else:
        yield from _block(f"{ours}.{way}", resample)


def _block(ours: str, theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from ((f"{ours}.{a}", (f"{theirs}.{b}",)) for a, b in _BLOCK.items())


def _attention(ours: str, theirs: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield f"{ours}.norm", (f"{theirs}.group_norm",)
    yield f"{ours}.qkv", tuple(f"{theirs}.{layer}" for layer in ("to_q", "to_k", "to_v"))
    yield f"{ours}.out", (f"{theirs}.to_out.0",)
