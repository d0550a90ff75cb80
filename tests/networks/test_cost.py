"""The counts of `ict show`: parameters against the authors' networks, operations against torch's own counter."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from tiny import smallest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import FlopCounterMode
from twins import configs, small_config

from ict_backends.exchange.diffusers_names import unet_settings
from ict_backends.exchange.jcm import official_arrays
from ict_backends.networks.cost import (
    OFFICIAL_PARAMETERS,
    Convolution,
    forward_flops,
    heaviest_convolutions,
    mask_memory,
    model_flops,
    step_flops,
    training_memory,
    update_memory,
)
from ict_backends.networks.families import count_parameters, parameter_shapes
from ict_backends.networks.layers import ImageSize, array_shapes
from ict_backends.networks.ncsnpp import ncsnpp_layers
from ict_backends.networks.roofline import operations
from ict_backends.torch.batch import draw_noise
from ict_backends.torch.networks import make_network
from ict_backends.torch.parallel import Processes
from ict_backends.torch.state import init_state
from ict_backends.torch.step import take_gradient
from ict_core import Config, NCSNppConfig, load_preset, preset_names
from ict_core.settings import build_config, replace

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
Shape = tuple[int, ...]


def official_ncsnpp(nf: int, ch_mult: list[int], blocks: int, attention: list[int], size: int) -> dict[str, Shape]:
    """The authors' CIFAR-10 network, module by module as their code makes it: from path to shape."""
    shapes: dict[str, Shape] = {"GaussianFourierProjection_0/W": (nf,)}
    counts: dict[str, int] = {}

    def new(kind: str) -> str:
        counts[kind] = counts.get(kind, -1) + 1
        return f"{kind}_{counts[kind]}"

    def conv(name: str, size: int, a: int, b: int) -> None:
        shapes.update({f"{name}/kernel": (size, size, a, b), f"{name}/bias": (b,)})

    def dense(name: str, a: int, b: int) -> None:
        shapes.update({f"{name}/kernel": (a, b), f"{name}/bias": (b,)})

    def norm(name: str, c: int) -> None:
        shapes.update({f"{name}/scale": (c,), f"{name}/bias": (c,)})

    def block(a: int, b: int, *, resample: bool = False) -> None:
        name = new("ResnetBlockBigGANpp")
        norm(f"{name}/GroupNorm_0", a)
        conv(f"{name}/Conv_0", 3, a, b)
        dense(f"{name}/Dense_0", 4 * nf, b)
        norm(f"{name}/GroupNorm_1", b)
        conv(f"{name}/Conv_1", 3, b, b)
        if a != b or resample:
            conv(f"{name}/Conv_2", 1, a, b)

    def attend(c: int) -> None:
        name = new("AttnBlockpp")
        norm(f"{name}/GroupNorm_0", c)
        for i in range(4):
            shapes.update({f"{name}/NIN_{i}/W": (c, c), f"{name}/NIN_{i}/b": (c,)})

    dense("Dense_0", 2 * nf, 4 * nf)
    dense("Dense_1", 4 * nf, 4 * nf)
    conv("Conv_0", 3, 3, nf)
    h, pyramid, skips = nf, 3, [nf]
    for level, mult in enumerate(ch_mult):
        for _ in range(blocks):
            block(h, nf * mult)
            h = nf * mult
            if size >> level in attention:
                attend(h)
            skips.append(h)
        if level != len(ch_mult) - 1:
            block(h, h, resample=True)
            name = new("Downsample")
            shapes.update({f"{name}/Conv2d_0/weight": (3, 3, pyramid, h), f"{name}/Conv2d_0/bias": (h,)})
            pyramid = h
            skips.append(h)
    block(h, h)
    attend(h)
    block(h, h)
    for level, mult in reversed(list(enumerate(ch_mult))):
        for _ in range(blocks + 1):
            block(h + skips.pop(), nf * mult)
            h = nf * mult
        if size >> level in attention:
            attend(h)
        if level != 0:
            block(h, h, resample=True)
    norm("GroupNorm_0", h)
    conv("Conv_1", 3, h, 3)
    return shapes


def stored_shapes() -> Iterator[tuple[Mapping[str, object], dict[str, list[int]]]]:
    """The authors' settings with the shapes that their code made of them."""
    if not REFERENCE.is_dir():
        pytest.skip(f"reference fixtures are not here: {REFERENCE}")
    with np.load(REFERENCE / "ncsnpp_open.npz") as file:
        shapes = {k.removeprefix("params/"): list(file[k].shape) for k in file.files if k.startswith("params/")}
        yield json.loads(bytes(file["config_json"])), shapes
    with np.load(REFERENCE / "jcm_ckpt_plain_open" / "expected.npz") as file:
        shapes = dict(json.loads(bytes(file["params_ema/leaf_names_shapes_json"])))
        yield json.loads(bytes(file["config_json"])), shapes


def test_the_count_by_hand_has_the_shapes_that_their_code_made() -> None:
    for theirs, shapes in stored_shapes():
        model = theirs["model"]
        found = official_ncsnpp(
            model["nf"], model["ch_mult"], model["num_res_blocks"], model["attn_resolutions"], theirs["image_size"]
        )
        assert {name: list(shape) for name, shape in found.items()} == shapes


@pytest.mark.parametrize(("name", "blocks"), [("cifar10", 4), ("cifar10-deep", 8)])
def test_the_cifar10_presets_have_the_authors_number_of_parameters(name: str, blocks: int) -> None:
    theirs = sum(int(np.prod(shape)) for shape in official_ncsnpp(128, [2, 2, 2], blocks, [16], 32).values())
    assert count_parameters(load_preset(name)) == theirs == OFFICIAL_PARAMETERS[name]


@pytest.mark.parametrize("name", ["imagenet64", "imagenet64-deep"])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_the_imagenet_presets_have_the_authors_number_of_parameters(name: str, scale_shift: bool) -> None:
    """Counted by the diffusers library, whose network of these settings loads the authors' arrays."""
    from diffusers import UNet2DModel

    config = replace(load_preset(name), network={"scale_shift": scale_shift})
    with torch.device("meta"):
        theirs = UNet2DModel(**unet_settings(config))
    number = sum(p.numel() for p in theirs.parameters())
    assert count_parameters(config) == number
    if not scale_shift:
        assert number == OFFICIAL_PARAMETERS[name]


def counted_by_torch(config: Config) -> int:
    """Operations of one evaluation for one image."""
    network, counter = make_network(config), FlopCounterMode(display=False)
    labels = torch.zeros(1, dtype=torch.long) if config.network.num_classes else None
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
        network(torch.zeros(1, *config.data.shape), torch.zeros(1), labels)
    return counter.get_total_flops()


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(configs)
def test_operations_are_those_that_torch_counts(config: Config) -> None:
    """Without FIR filters, which are convolutions to torch's counter."""
    if config.network.family == "ncsnpp":
        config = replace(config, network={"fir_kernel": ()})
    assert forward_flops(config) == counted_by_torch(config)


def test_a_step_is_four_forwards_or_five() -> None:
    config = load_preset("digits")
    assert step_flops(config) == 4 * 64 * forward_flops(config)
    checkpointed = replace(config, network={"checkpoint": True})
    assert step_flops(checkpointed) == 5 * 64 * forward_flops(config)
    assert model_flops(checkpointed) == model_flops(config) == step_flops(config)


def test_the_heaviest_convolutions_of_a_known_network() -> None:
    """One level of 8x8 and one of 4x4, counted by hand: 8 and 16 wide, a block each way down, two each way up."""
    config = build_config(
        {
            "data": {"shape": [3, 8, 8]},
            "network": {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": []},
        }
    )
    # Down: 8 to 8 twice at 8x8; the step down 8 to 8 twice at 4x4; 8 to 16 and 16 to 16 at 4x4. Middle: 16 to 16 four
    # times at 4x4. Up: 32 to 16 and 24 to 16, each followed by 16 to 16, at 4x4; the step up 16 to 16 twice at 8x8;
    # 24 to 8 and 16 to 8, each followed by 8 to 8, at 8x8.
    at_4 = {(8, 8): 2, (8, 16): 1, (16, 16): 1 + 4 + 2, (32, 16): 1, (24, 16): 1}
    at_8 = {(8, 8): 2 + 2, (16, 16): 2, (24, 8): 1, (16, 8): 1, (3, 8): 1, (8, 3): 1}
    operations = {
        (a, b, height): count * 2 * a * b * 9 * height**2
        for height, found in ((4, at_4), (8, at_8))
        for (a, b), count in found.items()
    }
    found = heaviest_convolutions(config, 5)
    assert found[0] == Convolution(16, 16, 3, ImageSize(8, 8), 2)
    assert found[1] == Convolution(16, 16, 3, ImageSize(4, 4), 7)
    assert [c.number * c.flops for c in found] == sorted(operations.values(), reverse=True)[:5]
    for c in found:
        assert c.number * c.flops == operations[c.in_channels, c.out_channels, c.size.height]


@pytest.mark.parametrize("name", preset_names())
def test_all_convolutions_are_all_operations_but_those_of_dense_layers_and_attention(name: str) -> None:
    config = replace(load_preset(name), network={"attention_resolutions": ()})
    found = heaviest_convolutions(config, 10**6)
    shapes = parameter_shapes(config).items()
    dense = sum(2 * int(np.prod(s)) for n, s in shapes if len(s) == 2 and n != "embedding.labels.weight")
    height = config.data.shape[1] >> (len(config.network.channel_mult) - 1)
    middle = config.network.channel_mult[-1] * config.network.channels
    assert sum(c.number * c.flops for c in found) + dense + 4 * height**4 * middle == forward_flops(config)
    assert len({c[:4] for c in found}) == len(found)


@pytest.mark.parametrize(("preset", "lengths"), [("digits", []), ("digits-cm", []), ("digits", [0.05, 0.1])])
def test_memory_is_what_training_holds(preset: str, lengths: list[float]) -> None:
    config = replace(load_preset(preset), train={"ema_sigma_rel": lengths})
    state, memory = init_state(config, Processes(torch.device("cpu"))), training_memory(config)
    assert memory.weights == sum(a.nbytes for a in state.params.network.state_dict().values())
    averages = [state.ema.network] if state.teacher is None else [state.ema.network, state.teacher.network]
    assert len(averages) == (2 if preset == "digits-cm" else 1)
    averages += [average.network for average in state.averages.values()]
    assert memory.ema == sum(a.nbytes for network in averages for a in network.state_dict().values())
    assert memory.gradients == sum(p.nbytes for p in state.params.network.parameters())
    loss = sum(p.square().sum() for p in state.params.network.parameters())
    loss.backward()
    state.optimizer.step()
    moments = [a for s in state.optimizer.state.values() for key, a in s.items() if key != "step"]
    assert memory.optimizer == sum(a.nbytes for a in moments)


class Allocated(TorchDispatchMode):
    """The most bytes that results of torch's operations held at a time, counted by storage."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, torch.Tensor) and id(storage := tensor.untyped_storage()) not in self.held:
                self.held[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.held.pop, id(storage))
        self.peak = max(self.peak, sum(self.held.values()))
        return result


def test_an_update_in_torch_needs_no_more_than_is_said() -> None:
    """The gradient once more as a vector, while the network has its own; then RAdam's intermediate results."""
    config = build_config(smallest(network={"channels": 64}))
    state, told = init_state(config, Processes(torch.device("cpu"))), training_memory(config)
    for _ in range(6):  # the sixth step is the first that is rectified
        for p in state.params.network.parameters():
            p.grad = torch.ones_like(p)
        with Allocated() as allocated:
            take_gradient(state.params, 1.0)
            state.optimizer.step()
        assert all(p.grad is None for p in state.params.network.parameters())
        assert allocated.peak == pytest.approx(told.gradients + update_memory(config), rel=0.01)


@pytest.mark.parametrize("share", [True, False])
def test_masks_take_a_byte_an_element(share: bool) -> None:
    config = build_config(smallest(network={"dropout": 0.2}, teacher={"share_dropout": share}))
    _, masks, teachers = draw_noise(config, torch.arange(10, dtype=torch.int32).reshape(5, 2))
    drawn = [*masks, *([] if share else teachers)]
    assert mask_memory(config, 5) == sum(m.nbytes for m in drawn)
    assert mask_memory(build_config(smallest()), 5) == 0


def test_the_masks_of_the_papers_model_are_what_the_docs_say() -> None:
    assert mask_memory(load_preset("cifar10"), 1024) == pytest.approx(3.6e9, rel=0.02)


@pytest.mark.parametrize(
    ("nf", "mult", "blocks", "attention", "size"),
    [(128, [2, 2, 2], 4, [16], 32), (32, [1, 2, 4], 2, [32, 8], 32), (16, [1], 1, [], 8), (8, [1, 1, 2], 1, [4, 2], 8)],
)
def test_a_released_file_has_the_names_and_shapes_that_the_import_asks_for(
    nf: int, mult: tuple[int, ...], blocks: int, attention: tuple[int, ...], size: int
) -> None:
    """At the size of the released CIFAR-10 models, and at others, with attention at none and at several levels."""
    config = NCSNppConfig(channels=nf, channel_mult=tuple(mult), blocks=blocks, attention_resolutions=tuple(attention))
    theirs = official_arrays(config, (3, size, size))
    assert theirs.keys() == array_shapes(ncsnpp_layers(config, (3, size, size))).keys()
    asked = {array.name: array.shape for array in theirs.values()}
    assert asked == official_ncsnpp(nf, mult, blocks, attention, size)


def test_a_diffusion_model_saves_the_teachers_pass() -> None:
    plain, diffusion = (small_config(curriculum={"schedule": schedule}) for schedule in ("fixed", "diffusion"))
    assert step_flops(diffusion) == 3 * step_flops(plain) // 4
    teachers = [o for o in operations(plain) if o.name.startswith("teacher")]
    assert teachers
    assert [o.name for o in operations(diffusion)] == [o.name for o in operations(plain) if o not in teachers]
