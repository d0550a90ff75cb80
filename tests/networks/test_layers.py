"""The records of layers are true: every array is in them, and so are the sizes of what each layer really gives."""

from __future__ import annotations

import pytest
import torch
from helpers import to_numpy
from hypothesis import given, settings
from twins import adm_configs, ncsnpp_configs, small_adm_config, small_config

from ict_backends.networks.families import network_layers, parameter_shapes, trained_shapes
from ict_backends.networks.layers import ImageSize, Kind, Layer
from ict_backends.torch.networks import make_network
from ict_core import Config

SHAPED = [
    small_config(data={"shape": [3, 8, 12]}, network={"channel_mult": [1, 2], "attention_resolutions": [8, 4]}),
    small_config(data={"shape": [1, 16, 8]}, network={"channel_mult": [2, 2, 1], "fir_kernel": [], "num_classes": 0}),
    small_adm_config(),
]


@pytest.mark.parametrize("configs", [ncsnpp_configs(), adm_configs()], ids=["ncsnpp", "adm"])
def test_every_array_of_a_network_is_in_the_records(configs: object) -> None:
    @settings(max_examples=20)
    @given(config=configs)  # type: ignore[arg-type]
    def check(config: Config) -> None:
        network = make_network(config)
        assert parameter_shapes(config) == {name: tuple(a.shape) for name, a in network.state_dict().items()}
        assert trained_shapes(config) == {name: tuple(p.shape) for name, p in network.named_parameters()}

    check()


def given_sizes(config: Config, layers: list[Layer]) -> dict[str, tuple[int, ImageSize]]:
    """The channels and the size of what each layer gives in an evaluation, by name; 1x1 of vectors."""
    network, sizes = make_network(config), {}
    for layer in layers:
        if layer.kind in (Kind.FREQUENCIES, Kind.ATTENTION):
            continue

        def record(module: object, given: object, result: torch.Tensor, name: str = layer.name) -> None:
            sizes[name] = (result.shape[1], ImageSize(*(result.shape[2:] or (1, 1))))

        module = network.get_submodule(layer.name)
        module.register_forward_hook(record)
        if hasattr(module, "with_bias"):  # which blocks call instead
            with_bias = module.with_bias
            module.with_bias = lambda *g, f=with_bias, r=record: (y := f(*g), r(None, None, y))[0]
        for name in ("activated", "rounded"):
            if hasattr(module, name):
                inner = getattr(module, name)
                setattr(module, name, lambda *g, f=inner, r=record, **k: (y := f(*g, **k), r(None, None, y))[0])
    classes = config.network.num_classes
    labels = torch.zeros(2, dtype=torch.int64) if classes else None
    output = network(torch.randn(2, *config.data.shape), torch.zeros(2), labels)
    assert to_numpy(output).shape == (2, *config.data.shape)
    return sizes


@pytest.mark.parametrize("config", SHAPED, ids=["ncsnpp", "ncsnpp-plain", "adm"])
def test_channels_and_sizes_are_those_of_the_activations(config: Config) -> None:
    layers = network_layers(config)
    sizes = given_sizes(config, layers)
    assert sizes == {layer.name: (layer.out_size, layer.size) for layer in layers if layer.name in sizes}
    assert len(sizes) >= len([layer for layer in layers if layer.kind in (Kind.CONVOLUTION, Kind.DENSE, Kind.NORM)])


def test_the_check_of_sizes_can_fail() -> None:
    config = SHAPED[0]
    layers = network_layers(config)
    wrong = [layer._replace(size=layer.size.doubled()) for layer in layers]
    sizes = given_sizes(config, layers)
    assert sizes != {layer.name: (layer.out_size, layer.size) for layer in wrong if layer.name in sizes}
