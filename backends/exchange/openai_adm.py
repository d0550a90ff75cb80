"""The authors' released ADM models (PyTorch state dicts): their names for our arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ict_backends.networks.adm import ADMLevelSpec, adm_layers, adm_spec
from ict_backends.protocols import Arrays
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


class SeenNetwork(NamedTuple):
    """What the names and shapes of a state dict tell of its network.

    Attributes:
        settings: the settings of `ADMConfig` that can be seen; those of heads, dropout and the normalisation of
            queries, keys and values cannot, since they have no arrays.
        image_channels: channels of an image.
        attention: for each level, True if it has attention. At which heights that is depends on the size of the
            images, which cannot be seen either.
    """

    settings: dict[str, object]
    image_channels: int
    attention: list[bool]

    def attention_resolutions(self, height: int) -> list[int]:
        """The heights with attention of a network for images of this height."""
        return [height >> i for i, has in enumerate(self.attention) if has]


def seen_network(state_dict: Arrays) -> SeenNetwork | None:
    """Read what the names and shapes of a state dict tell of its network; None where they are not those of an ADM."""
    shapes = {name: array.shape for name, array in state_dict.items()}
    try:
        return _seen(shapes)
    except (LookupError, ValueError, ZeroDivisionError):  # a name is not there, or a shape has other dimensions
        return None


def _seen(shapes: Mapping[str, tuple[int, ...]]) -> SeenNetwork:
    first, image_channels, *_ = shapes["input_blocks.0.0.weight"]
    _, channels = shapes["time_embed.0.weight"]
    blocks = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("output_blocks."))
    # On the way up, a level's last module also holds the step to the next level.
    steps = [k for k in range(blocks) if _step_up(shapes, k)]
    a_level = steps[0] + 1 if steps else blocks
    # The module before a level is the first convolution, or the step from the level above.
    starts = [1 + i * a_level for i in range(blocks // a_level)]
    widths = [shapes[f"input_blocks.{k}.0.out_layers.3.weight"][0] for k in starts]
    if first != widths[0] or any(width % channels for width in widths):
        raise ValueError("no multiples of the first width")
    embedded = shapes["input_blocks.1.0.emb_layers.1.weight"][0]
    settings: dict[str, object] = {
        "channels": channels,
        "channel_mult": [width // channels for width in widths],
        "blocks": a_level - 1,
        "scale_shift": embedded == 2 * widths[0],
        "num_classes": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else 0,
    }
    if steps:
        settings["resblock_updown"] = _step_up(shapes, steps[0]) == BLOCK["conv_0"]
    return SeenNetwork(settings, image_channels, [f"input_blocks.{k}.1.qkv.weight" in shapes for k in starts])


def _step_up(shapes: Mapping[str, tuple[int, ...]], k: int) -> str:
    """The name of the first convolution of the step to the next level in module k on the way up; "" without a step."""
    kinds = (BLOCK["conv_0"], "conv")
    return next((c for c in kinds for j in (1, 2) if f"output_blocks.{k}.{j}.{c}.weight" in shapes), "")


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
