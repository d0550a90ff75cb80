"""The authors' released ADM models (PyTorch state dicts): their names for our arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ict_backends.networks.adm import ADMLevelSpec, adm_layers, adm_spec
from ict_core import ADMConfig

# The authors' layers of a block or of attention, by our names.
BLOCK = {
    "norm_0": "in_layers.0",
    "conv_0": "in_layers.2",
    "embed": "emb_layers.1",
    "norm_1": "out_layers.0",
    "conv_1": "out_layers.3",
    "shortcut": "skip_connection",
}
ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
_WHOLE = {
    "embedding.dense_0": "time_embed.0",
    "embedding.dense_1": "time_embed.2",
    "embedding.labels": "label_emb",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
}


def official_names(config: ADMConfig, shape: Sequence[int]) -> dict[str, str]:
    """The authors' names of the arrays by ours; theirs number the modules in the order of evaluation."""
    modules = dict(_layers(config, shape))
    return {
        layer.array_name(leaf): f"{modules[layer.name]}.{leaf}"
        for layer in adm_layers(config, shape)
        for leaf in layer.arrays
    }


def _layers(config: ADMConfig, shape: Sequence[int]) -> Iterator[tuple[str, str]]:
    spec = adm_spec(config, shape)
    yield from _WHOLE.items()
    number = 1
    for i, level in enumerate(spec.down):
        for j in range(len(level.blocks)):
            yield from _block(f"down.{i}", j, level, f"input_blocks.{number}")
            number += 1
        if level.step is not None:
            yield from _step(f"down.{i}.down", level, f"input_blocks.{number}.0", convolution="op")
            number += 1
    yield from _named("middle.block_0", "middle_block.0", BLOCK)
    yield from _named("middle.attention", "middle_block.1", ATTENTION)
    yield from _named("middle.block_1", "middle_block.2", BLOCK)
    number = 0
    for i, level in enumerate(spec.up):
        for j in range(len(level.blocks)):
            yield from _block(f"up.{i}", j, level, f"output_blocks.{number}")
            number += 1
        if level.step is not None:  # in the module of the last block, after its attention
            place = f"output_blocks.{number - 1}.{2 if level.attention else 1}"
            yield from _step(f"up.{i}.up", level, place, convolution="conv")


def _block(ours: str, j: int, level: ADMLevelSpec, theirs: str) -> Iterator[tuple[str, str]]:
    yield from _named(f"{ours}.blocks.{j}", f"{theirs}.0", BLOCK)
    if level.attention:
        yield from _named(f"{ours}.attention.{j}", f"{theirs}.1", ATTENTION)


def _step(ours: str, level: ADMLevelSpec, theirs: str, *, convolution: str) -> Iterator[tuple[str, str]]:
    if isinstance(level.step, int):
        yield f"{ours}.conv", f"{theirs}.{convolution}"
    else:
        yield from _named(ours, theirs, BLOCK)


def _named(ours: str, theirs: str, layers: dict[str, str]) -> Iterator[tuple[str, str]]:
    yield from ((f"{ours}.{a}", f"{theirs}.{b}") for a, b in layers.items())
