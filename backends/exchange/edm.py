"""The diffusion models of EDM (Karras et al. 2022): their settings, names and layouts for our networks.

DDPM++ and NCSN++ (the class SongUNet) are settings of our NCSN++, and ADM (DhariwalUNet) of our ADM.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from ict_backends.errors import CheckpointError
from ict_backends.exchange.edm_pickle import EDMFile
from ict_backends.networks.families import network_layers
from ict_backends.networks.layers import Kind, Layer
from ict_backends.protocols import Arrays
from ict_core import ADMConfig, Config, ConfigError, NCSNppConfig
from ict_core.settings import Tree, build_config

# How such a model was trained, EDM table 1: it tells the commands that it is a diffusion model.
TRAINED_BY: Tree = {
    "noise": {"p_mean": -1.2, "p_std": 1.2},
    "curriculum": {"schedule": "diffusion"},
    "loss": {"distance": "l2", "weighting": "edm"},
}
# The arguments of both classes, with the values that they have where a file gives none; then those of each.
_BOTH: Mapping[str, Any] = {
    "label_dim": 0,
    "augment_dim": 0,
    "channel_mult_emb": 4,
    "dropout": 0.1,
    "label_dropout": 0,
}
_SONG: Mapping[str, Any] = {
    **_BOTH,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
_DHARIWAL: Mapping[str, Any] = {
    **_BOTH,
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
}
_GIVEN = ("img_resolution", "in_channels", "out_channels")
_CLASSES: Mapping[str, Mapping[str, Any]] = {"SongUNet": _SONG, "DhariwalUNet": _DHARIWAL}
# The channels of an attention head in ADM, and the fewest of a group in its norms.
_HEAD_CHANNELS, _GROUP_CHANNELS = 64, 4
# The noise embedding's features, in units of the channels, by its kind: our NCSN++ has no others.
_FEATURES = {"positional": 1, "fourier": 2}

_BLOCK = {
    "norm_0": "norm0",
    "conv_0": "conv0",
    "embed": "affine",
    "norm_1": "norm1",
    "conv_1": "conv1",
    "shortcut": "skip",
}
_ATTENTION = {"norm": "norm2", "qkv": "qkv", "query": "qkv", "key": "qkv", "value": "qkv", "out": "proj"}
_EMBEDDING = {
    "embedding.dense_0": "map_layer0",
    "embedding.dense_1": "map_layer1",
    "embedding.labels": "map_label",
    "embedding.frequencies": "map_noise.freqs",
}
# What is in a file and in no network of ours: it is checked or left out.
_FILTER, AUGMENT = "resample_filter", "map_augment.weight"


def edm_config(file: EDMFile, what: str) -> Config:
    """The configuration of the network that a file describes.

    Raises:
        CheckpointError: we have no such network; the message names what differs.
    """
    whole, network = file.whole, file.network
    if whole.kind != "EDMPrecond" or network.kind not in _CLASSES:
        raise CheckpointError(
            f"{what} holds {whole.kind} around {network.kind}; what is imported is EDMPrecond around "
            f"{' or '.join(_CLASSES)}"
        )
    settings = _complete(network.settings, network.kind, what)
    for name, value in (*network.settings.items(), ("sigma_data", whole.values.get("sigma_data"))):
        if isinstance(value, str | bool) and not isinstance(_CLASSES[network.kind].get(name), str):
            raise CheckpointError(f"{what}: {network.kind} has {name} = {value!r:.40}, which is no number")
    if "sigma_data" not in whole.values:
        raise CheckpointError(f"{what}: its {whole.kind} has no sigma_data, the deviation of its images, as EDM's have")
    try:
        sections = _song(settings) if network.kind == "SongUNet" else _dhariwal(settings)
        size, channels = settings["img_resolution"], settings["in_channels"]
        data = {"shape": [channels, size, size], "source": "unknown"}
        noise = {"sigma_data": float(whole.values["sigma_data"]), **TRAINED_BY["noise"]}
        # Whether guidance fits the model depends on it; without classes, training refuses it.
        train = {"label_dropout": float(settings["label_dropout"])} if settings["label_dim"] else {}
        return build_config({"data": data, "network": sections, **TRAINED_BY, "noise": noise, "train": train})
    except _OtherNetworkError as error:
        raise CheckpointError(f"{what} holds a {network.kind} that we do not have: {error}") from error
    except (ConfigError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{what} holds a {network.kind} that we do not have: {reason}") from error


class _OtherNetworkError(Exception):
    """What a network has that ours have not, in words."""


def _demand(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise _OtherNetworkError(f"its {name} is {value!r:.60}, and only {allowed} is imported")


def _complete(settings: Mapping[str, Any], kind: str, what: str) -> dict[str, Any]:
    """All arguments of a class, of which a file gives some. Raises CheckpointError for one that the class has not."""
    other = sorted(settings.keys() - {*_GIVEN, *_CLASSES[kind]})
    missing = [name for name in _GIVEN if name not in settings]
    if other or missing:
        problem = f"{other[0]:.60}, which EDM's has not" if other else f"no {missing[0]}"
        raise CheckpointError(f"{what} holds a {kind} that we do not have: its settings have {problem}")
    return {**_CLASSES[kind], **settings}


def _shared(settings: Mapping[str, Any]) -> Tree:
    """The settings that both of our networks have."""
    _demand(
        settings["in_channels"] == settings["out_channels"], "out_channels", settings["out_channels"], "in_channels"
    )
    _demand(settings["channel_mult_emb"] == 4, "channel_mult_emb", settings["channel_mult_emb"], "4")
    return {
        "channels": settings["model_channels"],
        "channel_mult": settings["channel_mult"],
        "blocks": settings["num_blocks"],
        "dropout": float(settings["dropout"]),
        "num_classes": settings["label_dim"],
        "embedding_scale": 1.0,
    }


def _song(settings: Mapping[str, Any]) -> Tree:
    levels = [settings["img_resolution"] >> i for i in range(len(settings["channel_mult"]))]
    kind, encoder, taps = (settings[n] for n in ("embedding_type", "encoder_type", "resample_filter"))
    _demand(kind in _FEATURES, "embedding_type", kind, '"positional" or "fourier"')
    _demand(encoder in ("standard", "residual"), "encoder_type", encoder, '"standard" or "residual"')
    _demand(settings["decoder_type"] == "standard", "decoder_type", settings["decoder_type"], '"standard"')
    width = settings["channel_mult_noise"]
    _demand(width == _FEATURES[kind], "channel_mult_noise", width, f'{_FEATURES[kind]}, with "{kind}",')
    # Turned round, another filter would be another network.
    _demand(taps == taps[::-1], "resample_filter", taps, "a symmetric one")
    # Without a pyramid, averaging and repeating pixels are the same, and faster.
    plain = taps == [1, 1] and encoder == "standard"
    return {
        **_shared(settings),
        # EDM's default is [16], which images of many sizes have no level for.
        "attention_resolutions": [height for height in settings["attn_resolutions"] if height in levels],
        "embedding": kind,
        "fir_kernel": [] if plain else [float(tap) for tap in taps],
        "input_pyramid": encoder == "residual",
        "labels_at": "features",
    }


def _dhariwal(settings: Mapping[str, Any]) -> Tree:
    size, widths = settings["img_resolution"], [m * settings["model_channels"] for m in settings["channel_mult"]]
    heads = [width // _HEAD_CHANNELS for width in widths]
    _demand(
        heads[-1] > 0, "model_channels", settings["model_channels"], "one with an attention head at the lowest level"
    )
    # A level of fewer channels than a head has no attention.
    heights = [size >> i for i, n in enumerate(heads) if n > 0 and size >> i in settings["attn_resolutions"]]
    inner = {
        w // n for i, (w, n) in enumerate(zip(widths, heads, strict=True)) if size >> i in heights or w == widths[-1]
    }
    _demand(len(inner) == 1, "channels of an attention head", sorted(inner), "one number of them for all levels")
    return {
        **_shared(settings),
        "family": "adm",
        "attention_resolutions": heights,
        "head_channels": inner.pop(),
        "min_group_channels": _GROUP_CHANNELS,
        "scale_shift": True,
        "dropout_resolution": 0,
    }


def check_config(config: Config, what: str) -> None:
    """Raise CheckpointError if classes enter a configuration's network where they enter none of EDM's."""
    network = config.network
    if isinstance(network, NCSNppConfig) and network.num_classes and network.labels_at != "features":
        raise CheckpointError(f'{what}: classes enter EDM\'s networks at network.labels_at = "features"')


class Place(NamedTuple):
    """Where one of our arrays comes from: the name of EDM's array, and which third of its rows; None for all."""

    name: str
    third: int | None = None


def edm_places(config: Config) -> dict[str, Place]:
    """The place of each of our arrays in EDM's file, by our names."""
    modules = dict(_modules(config))
    places = {}
    for layer in network_layers(config):
        before, _, leaf = layer.name.rpartition(".")
        theirs = modules.get(layer.name) or f"{modules.get(before)}.{({**_BLOCK, **_ATTENTION}).get(leaf)}"
        third = {"query": 0, "key": 1, "value": 2}.get(leaf)
        for array in layer.arrays:
            places[layer.array_name(array)] = Place(f"{theirs}.{array}" if array else theirs, third)
    return places


def _modules(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (our name, EDM's name) of each block, attention, and layer that is in none of them."""
    network, size, levels = config.network, config.data.shape[1], len(config.network.channel_mult)
    adm = isinstance(network, ADMConfig)
    yield from _EMBEDDING.items()
    yield from _pairs("conv_in", f"enc.{_level(size, 0)}_conv")
    for i in range(levels):
        here, below = f"enc.{_level(size, i)}", f"enc.{_level(size, i + 1)}"
        for j in range(network.blocks):
            yield from ((f"down.{i}.{part}.{j}", f"{here}_block{j}") for part in ("blocks", "attention"))
        yield from _pairs(f"down.{i}.down", f"{below}_down", f"down.{i}.pyramid.conv", f"{below}_aux_residual")
    low = f"dec.{_level(size, levels - 1)}"
    yield from _pairs("middle.block_0", f"{low}_in0", "middle.attention", f"{low}_in0", "middle.block_1", f"{low}_in1")
    for i in range(levels):
        up, here = f"up.{levels - 1 - i}", f"dec.{_level(size, i)}"
        for j in range(network.blocks + 1):
            yield from ((f"{up}.{part}.{j}", f"{here}_block{j}") for part in ("blocks", "attention"))
        if not adm:
            yield f"{up}.attention", f"{here}_block{network.blocks}"
        if i > 0:
            yield f"{up}.up", f"dec.{_level(size, i - 1)}_up"
    top = f"dec.{_level(size, 0)}_aux"
    yield from _pairs(
        "norm_out", "out_norm" if adm else f"{top}_norm", "conv_out", "out_conv" if adm else f"{top}_conv"
    )


def _pairs(*names: str) -> Iterator[tuple[str, str]]:
    return zip(names[::2], names[1::2], strict=True)


def _level(size: int, i: int) -> str:
    return f"{size >> i}x{size >> i}"


def edm_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shapes of EDM's arrays by their names, those of its filters and augmentation aside."""
    places, shapes = edm_places(config), dict[str, tuple[int, ...]]()
    for layer in network_layers(config):
        for array, shape in layer.arrays.items():
            name, third = places[layer.array_name(array)]
            if layer.kind is Kind.TABLE:
                shape = shape[::-1]
            shapes[name] = shape if third is None else (3 * shape[0], *shape[1:])
    return shapes


def from_edm(arrays: Arrays, config: Config) -> Arrays:
    """Our arrays, by our names, of EDM's, which are those of `edm_shapes`.

    DhariwalUNet has a column a class where our ADM has a row. Queries, keys and values are every third row of one
    product there; in our NCSN++, they are products of their own, and in our ADM, blocks of rows.
    """
    places = edm_places(config)
    names = ((layer, layer.array_name(leaf)) for layer in network_layers(config) for leaf in layer.arrays)
    return {name: _ours(layer, arrays[places[name].name], places[name].third, config) for layer, name in names}


def _ours(layer: Layer, array: np.ndarray, third: int | None, config: Config) -> np.ndarray:
    network = config.network
    if layer.kind is Kind.TABLE:
        return array.T
    if third is not None:
        return array[third::3]
    if layer.name.endswith(".qkv") and isinstance(
        network, ADMConfig
    ):  # [heads, d, three, ...] to [three, heads, d, ...]
        heads = layer.in_size // network.head_channels
        split = array.reshape(heads, network.head_channels, 3, *array.shape[1:])
        return np.moveaxis(split, 2, 0).reshape(array.shape)
    return array


def without_extras(arrays: Arrays, config: Config, what: str) -> tuple[Arrays, list[str]]:
    """The arrays that weights come from, and what was left out, in words.

    Raises:
        CheckpointError: a filter for resampling is not the configuration's.
    """
    network = config.network
    taps = np.array(network.fir_kernel if isinstance(network, NCSNppConfig) else (), np.float64)
    taps = taps if len(taps) else np.ones(2)
    kernel = np.outer(taps, taps)[None, None] / taps.sum() ** 2
    kept = {}
    for name, array in arrays.items():
        if name.rpartition(".")[2] != _FILTER:
            kept[name] = array
        elif array.shape != kernel.shape or not np.allclose(array, kernel, atol=1e-4):
            raise CheckpointError(f"{what}: {name} is another filter than the network's, {_numbers(taps)}")
    left = kept.pop(AUGMENT, None)
    return kept, [] if left is None else [f"{AUGMENT} is left out: it is for augmented images, in training only"]


def _numbers(taps: Iterable[float]) -> str:
    return f"[{', '.join(f'{tap:g}' for tap in taps)}]"
