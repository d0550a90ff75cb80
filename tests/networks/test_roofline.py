"""The least time of a step: two small networks worked out by hand, and what holds for every network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from tiny import smallest
from twins import configs, small_config

from ict_backends.networks.cost import model_flops, step_flops
from ict_backends.networks.families import mask_shapes, parameter_shapes, trained_shapes
from ict_backends.networks.roofline import (
    ATTENTION,
    CONVOLUTIONS,
    IMAGES,
    NOISE,
    NORMS,
    OPTIMISER,
    PRODUCTS,
    RESAMPLING,
    SUMS,
    Operation,
    least_seconds,
    operations,
    shares,
)
from ict_core import Config, load_preset, preset_names
from ict_core.settings import build_config, replace

# NCSN++ on images of 1x4x4: 4 wide, one level, one block down, two up.
TINY = smallest(network={"channels": 4}, train={"batch_size": 1})
# ADM on them: 32 wide, two levels, resampling by convolutions, masks at 2x2 alone.
TINY_ADM = {
    "data": {"shape": [1, 4, 4]},
    "network": {
        "family": "adm",
        "channels": 32,
        "channel_mult": [1, 1],
        "blocks": 1,
        "attention_resolutions": [],
        "head_channels": 32,
        "dropout": 0.5,
        "dropout_resolution": 2,
        "scale_shift": True,
        "resblock_updown": False,
        "num_classes": 3,
    },
    "train": {"batch_size": 2, "precision": "bf16"},
}


def by_kind(found: Sequence[Operation], attribute: str) -> dict[str, int]:
    """Of the operations or bytes of each kind, the sum."""
    sums: Counter[str] = Counter()
    for operation in found:
        sums[operation.kind] += getattr(operation, attribute)
    return {kind: number for kind, number in sums.items() if number}


def all_bytes(config: Config, **changes: Any) -> int:
    """Of a step, with the training's settings changed."""
    return sum(o.bytes for o in operations(replace(config, train=changes)))


def count(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(map(math.prod, shapes.values()))


def test_a_small_ncsnpp_by_hand() -> None:
    """float32: 64 bytes a channel, 256 of four. Blocks: three of 4 to 4 channels, two of 8 to 4 with a shortcut."""
    found = operations(build_config(TINY))
    # conv_in; of each block conv_0 and conv_1; conv_out.
    weights = (36 + 4) + 3 * (148 + 148) + 2 * (292 + 148) + (36 + 1)
    arrays = (64 + 256) + 3 * (512 + 512) + 2 * (768 + 512) + (256 + 64)
    # Four passes; the two forward ones read the other branch, too, which is the block's input or its shortcut's result.
    convolutions = 4 * (4 * weights + arrays) + 2 * 5 * 256
    # The noise's two layers, five embeddings, two shortcuts, queries with keys and values, attention's last layer.
    weights_1x1 = (8 * 16 + 16) + (16 * 16 + 16) + 5 * (16 * 4 + 4) + 2 * (8 * 4 + 4) + (4 * 12 + 12) + (4 * 4 + 4)
    arrays_1x1 = 4 * (8 + 16) + 4 * (16 + 16) + 5 * 4 * (16 + 4) + 2 * (512 + 256) + (256 + 768) + (256 + 256)
    products = 4 * (4 * weights_1x1 + arrays_1x1) + 2 * 256
    # First norms: 4, 4, 4, 8, 8 channels, and attention's 4; second norms: 5 of 4, and the last. A forward reads twice
    # and writes; the gradient reads two arrays, the two again and, after a first norm, the other branch's; it writes.
    first, second = 4 + 4 + 4 + 8 + 8 + 4, 5 * 4 + 4
    norms = 64 * (2 * 3 * (first + second) + 5 * (first + second) + first) + 4 * 4 * 2 * (first + second)
    trained = weights + weights_1x1 + 2 * (first + second)
    assert trained == count(trained_shapes(build_config(TINY)))
    assert by_kind(found, "bytes") == {
        CONVOLUTIONS: convolutions,
        PRODUCTS: products,
        NORMS: norms,
        ATTENTION: 2 * 4 * 256 + 8 * 256,
        SUMS: 2 * 256,  # skips: conv_in and one block
        NOISE: 64,
        # uint8 to float32; image and noise to two noisy images; twice those and both results; a gradient.
        IMAGES: (16 + 64) + (128 + 128) + 2 * (128 + 128) + 64,
        OPTIMISER: 4 * (7 + 2) * trained,
    }
    assert by_kind(found, "flops") == {
        CONVOLUTIONS: 4 * 2 * 16 * (36 + 3 * (144 + 144) + 2 * (288 + 144) + 36),
        PRODUCTS: 4 * 2 * (8 * 16 + 16 * 16 + 5 * 16 * 4 + 16 * (2 * 8 * 4 + 4 * 12 + 4 * 4)),
        ATTENTION: 4 * 2 * 2 * 16 * 16 * 4,
    }


def test_a_small_adm_by_hand() -> None:
    """bf16: 1,024 bytes of 32 channels at 4x4 and 256 at 2x2. Blocks: at 4x4 one of 32 to 32 channels and two of 64 to
    32, at 2x2 three and two. Two images."""
    found = operations(build_config(TINY_ADM))
    same, twice = 9 * 32 * 32 + 32, 9 * 64 * 32 + 32
    # conv_in, conv_out in float32, the steps down and up, then of each block conv_0 and conv_1.
    weights = (9 * 32 + 32) + (9 * 32 + 1) + 2 * same + 4 * (same + same) + 4 * (twice + same)
    arrays = (32 + 1024) + (2048 + 64) + (1024 + 256) + (1024 + 1024)
    arrays += (2048 + 2048) + 2 * (3072 + 2048) + 3 * (512 + 512) + 2 * (768 + 512)
    branches, masks = 3 * 1024 + 5 * 256, 5 * 32 * 4
    convolutions = 4 * 4 * weights + 2 * (4 * arrays + 2 * branches + masks)
    weights_1x1 = (32 * 128 + 128) + (128 * 128 + 128) + 8 * (128 * 64 + 64) + 4 * (64 * 32 + 32)
    weights_1x1 += (32 * 96 + 96) + (32 * 32 + 32)
    arrays_1x1 = 4 * (32 + 128) + 4 * (128 + 128) + 8 * 4 * (128 + 64) + 2 * (2048 + 1024) + 2 * (512 + 256)
    arrays_1x1 += (256 + 768) + (256 + 256)
    label, residual = 4 * 128, 256
    products = 4 * 4 * weights_1x1 + 2 * (4 * arrays_1x1 + 2 * (label + residual))
    # Norms before conv_0 and attention, whose input has a gradient of the other branch; before conv_1; the last one,
    # which writes float32.
    first = (1024 + 2 * 2048) + (3 * 256 + 2 * 512) + 256
    second = 3 * 1024 + 5 * 256
    channels = (4 * 32 + 4 * 64) + 32 + 8 * 32 + 32
    forward = 3 * (first + second) + (2 * 1024 + 2048) + masks
    gradient = 6 * first + 5 * second + (2 * 2048 + 3 * 1024)
    norms = 2 * (2 * forward + gradient) + 4 * 4 * 2 * channels
    trained = weights + weights_1x1 + 2 * channels + 3 * 128
    assert trained == count(trained_shapes(build_config(TINY_ADM)))
    assert by_kind(found, "bytes") == {
        CONVOLUTIONS: convolutions,
        PRODUCTS: products,
        NORMS: norms,
        ATTENTION: 2 * (2 * 4 * 256 + 8 * 256),
        SUMS: 2 * (1024 + 1024 + 256 + 256 + label) + 4 * 3 * 128,
        RESAMPLING: 2 * 3 * (256 + 1024),  # the repeated pixels of the step up
        NOISE: 2 * (64 + masks),
        IMAGES: 2 * ((16 + 64) + (128 + 64) + 2 * (128 + 128) + 64),
        OPTIMISER: 4 * (7 + 2) * trained,
    }
    at_4, at_2 = 2 * 16 * 9, 2 * 4 * 9
    convolved = at_4 * (2 * 32 + 32 * 32 + 2 * 32 * 32 + 2 * (64 * 32 + 32 * 32))
    convolved += at_2 * (32 * 32 + 3 * 2 * 32 * 32 + 2 * (64 * 32 + 32 * 32))
    assert by_kind(found, "flops")[CONVOLUTIONS] == 2 * 4 * convolved


@pytest.mark.parametrize(("taps", "conv_height"), [([1.0, 3.0, 3.0, 1.0], 5), ([], 4)])
def test_the_resampling_of_ncsnpp_by_hand(taps: list[float], conv_height: int) -> None:
    """Two levels of 4 channels: a block to 2x2 with a step of the pyramid beside it, and a block back to 4x4."""
    network = {**TINY["network"], "channel_mult": [1, 1], "fir_kernel": taps}
    found = operations(build_config({**TINY, "network": network}))
    shortcuts, padded = 4 * 4 * (2 * 2 + 4 * 4), 4 * conv_height**2
    filters = 2 * (64 + padded) + padded if taps else 0
    assert by_kind(found, "bytes")[RESAMPLING] == 2 * shortcuts + filters
    # Without a filter, the gradient of the pyramid's input is a sum like those of the four skips.
    assert by_kind(found, "bytes")[SUMS] == 256 + 256 + 64 + 64 + (0 if taps else padded)
    (conv,) = (o for o in found if o.name == "teacher: down.0.pyramid.conv")
    assert conv.bytes == padded + 2 * 64 + 4 * (9 * 4 + 4)


def test_blocks_of_adm_that_resample_write_nothing_more() -> None:
    """Their other branch has no convolution: what ends the block resamples it as it adds it."""
    found = operations(build_config({**TINY_ADM, "network": {**TINY_ADM["network"], "resblock_updown": True}}))
    moved = {o.name: o.bytes for o in found}
    weights = 4 * (9 * 32 * 32 + 32)
    assert RESAMPLING not in by_kind(found, "bytes")
    assert moved["student: up.0.up.conv_1"] == 2 * (1024 + 1024 + 256) + weights
    assert moved["student: down.0.down.conv_1"] == 2 * (256 + 256 + 1024) + weights
    assert moved["student: up.0.up.norm_0"] == 2 * (256 + 1024) + 4 * 2 * 32
    # The gradients of both branches at 4x4 and the input at 2x2, whose gradient is written.
    assert moved["gradient: up.0.up.norm_0, input"] == 2 * (1024 + 256 + 1024 + 256) + 4 * 2 * 32


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(configs)
def test_the_arithmetic_is_that_of_the_model(config: Config) -> None:
    assert sum(o.flops for o in operations(config)) == model_flops(config)


@pytest.mark.parametrize("name", preset_names())
def test_the_arithmetic_of_the_presets_is_that_of_the_model(name: str) -> None:
    config = load_preset(name)
    assert sum(o.flops for o in operations(config)) == model_flops(config)
    assert {o.kind for o in operations(config)} >= {CONVOLUTIONS, PRODUCTS, NORMS, ATTENTION, SUMS, IMAGES, OPTIMISER}


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(configs)
def test_weights_are_moved_once_a_pass_and_activations_with_the_batch(config: Config) -> None:
    """Every trained array is read by both forward passes and by the gradient, which writes its own; a label's row is
    an image's. RAdam and the average are 36 bytes a weight."""
    one, two, three = (all_bytes(config, batch_size=b, micro_batch=0) for b in (1, 2, 3))
    trained = count(trained_shapes(config))
    table = getattr(config.network, "labels_at", "embedding") == "embedding"  # else a dense layer, like any other
    labels = math.prod(parameter_shapes(config).get("embedding.labels.weight", (0,))) if table else 0
    assert three - two == two - one
    assert 2 * one - two == 4 * (4 * (trained - labels) + labels) + 36 * trained


@pytest.mark.parametrize("name", ["cifar10-small", "imagenet64"])
def test_less_precision_moves_fewer_bytes_but_not_of_weights(name: str) -> None:
    config = load_preset(name)
    found = {p: operations(replace(config, train={"precision": p})) for p in ("float32", "tf32", "bf16", "fp16")}
    assert found["bf16"] == found["fp16"]
    assert found["tf32"] == found["float32"]  # arrays of which are float32
    wide, narrow = (by_kind(found[p], "bytes") for p in ("float32", "bf16"))
    assert wide[ATTENTION] == 2 * narrow[ATTENTION]
    assert narrow[CONVOLUTIONS] < wide[CONVOLUTIONS] < 2 * narrow[CONVOLUTIONS]
    assert narrow[OPTIMISER] == wide[OPTIMISER]
    assert narrow[NOISE] == wide[NOISE]


@pytest.mark.parametrize("name", ["cifar10-small", "imagenet64"])
def test_micro_batches_move_the_weights_once_each(name: str) -> None:
    config = replace(load_preset(name), train={"batch_size": 12})
    whole, parts = operations(config), operations(replace(config, train={"micro_batch": 4}))
    assert sum(o.flops for o in parts) == sum(o.flops for o in whole)
    trained, shapes = count(trained_shapes(config)), parameter_shapes(config)
    labels = math.prod(shapes.get("embedding.labels.weight", (0,)))
    # Two parts more: three readings of the weights, and a sum of gradients read and written.
    more = 2 * 4 * (3 * (trained - labels) + 2 * trained)
    assert sum(o.bytes for o in parts) - sum(o.bytes for o in whole) == more


@pytest.mark.parametrize("name", ["cifar10", "imagenet64"])
def test_checkpointing_adds_the_forward_of_blocks_and_attention(name: str) -> None:
    config = load_preset(name)
    plain, found = (operations(replace(config, network={"checkpoint": c})) for c in (False, True))
    again = [o for o in found if o.name.startswith("again: ")]
    assert sorted(set(found) - set(plain)) == sorted(again)
    forward = {o.name.partition(": ")[2]: o for o in plain if o.name.startswith("student: ")}
    assert all(o[1:] == forward[o.name.partition(": ")[2]][1:] for o in again)
    assert not any(o.name.endswith(("conv_1", "shortcut", ".out", "conv_in", "conv_out", "dense_0")) for o in again)
    flops = sum(o.flops for o in found)
    assert model_flops(config) + sum(o.flops for o in again) == flops
    assert model_flops(config) < flops < step_flops(replace(config, network={"checkpoint": True}))


def test_devices_share_the_batch_and_perhaps_the_weights() -> None:
    config = load_preset("cifar10")
    one, four = operations(config), operations(config, 4)
    sharded = operations(replace(config, train={"shard_weights": True}), 4)
    assert sum(o.flops for o in one) == 4 * sum(o.flops for o in four)
    assert all(b.bytes <= a.bytes <= 4 * b.bytes for a, b in zip(one, four, strict=True))
    kinds = [by_kind(found, "bytes")[OPTIMISER] for found in (one, four, sharded)]
    assert kinds[0] == kinds[1] == 4 * kinds[2]


def test_a_teacher_of_its_own_has_an_average_and_perhaps_masks_more() -> None:
    config = replace(small_config(), network={"dropout": 0.5})
    other = replace(config, teacher={"decay": 0.9, "share_dropout": False})
    before, after = (by_kind(operations(c), "bytes") for c in (config, other))
    assert after.pop(OPTIMISER) - before.pop(OPTIMISER) == 4 * 2 * count(trained_shapes(config))
    masks = config.train.batch_size * sum(map(math.prod, mask_shapes(config)))
    assert after.pop(NOISE) - before.pop(NOISE) == masks
    assert after == before


@pytest.mark.parametrize(
    ("name", "train"), [("Adam", {"optimizer": "adam"}), ("AdamW", {"optimizer": "adamw", "weight_decay": 0.01})]
)
def test_every_optimiser_moves_as_much_under_its_own_name(name: str, train: dict[str, Any]) -> None:
    config = load_preset("digits")
    found = {op.name: op for op in operations(replace(config, train=train))}
    assert found[name].bytes == {op.name: op for op in operations(config)}["RAdam"].bytes


def test_each_operation_takes_the_larger_of_two_times() -> None:
    found = [Operation("a", "x", 100, 1), Operation("b", "x", 1, 100), Operation("c", "y", 0, 50)]
    assert least_seconds(found, 10.0, 5.0) == 10 + 20 + 10
    assert shares(found, 10.0, 5.0) == [("x", 30.0, 20.0), ("y", 10.0, 10.0)]
    assert least_seconds(found, 20.0, 5.0) == 5 + 20 + 10
