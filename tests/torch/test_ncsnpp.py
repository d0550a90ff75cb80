"""NCSN++ in torch: what it is made of; tests/networks/test_ncsnpp_fixtures.py compares it with the authors' network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ict_backends.networks.families import count_parameters
from ict_backends.networks.layers import array_shapes
from ict_backends.networks.ncsnpp import ncsnpp_layers, ncsnpp_spec
from ict_backends.torch.layers import NoiseEmbedding
from ict_backends.torch.ncsnpp import NCSNpp
from ict_core import Config, ConfigError, NCSNppConfig
from ict_core.settings import replace


@st.composite
def networks(draw: st.DrawFn) -> tuple[NCSNppConfig, tuple[int, int, int]]:
    """Small networks with the image shape that they are for."""
    levels = draw(st.integers(1, 3))
    size = 2 ** (levels - 1) * draw(st.integers(1, 3))
    config = NCSNppConfig(
        channels=4 * draw(st.integers(1, 3)),
        channel_mult=tuple(draw(st.lists(st.integers(1, 2), min_size=levels, max_size=levels))),
        blocks=draw(st.integers(1, 2)),
        attention_resolutions=tuple(size >> i for i in draw(st.sets(st.integers(0, 2), max_size=2)) if size >> i),
        dropout=draw(st.sampled_from([0.0, 0.5])),
        embedding=draw(st.sampled_from(["fourier", "positional"])),
        fir_kernel=draw(st.sampled_from([(), (1.0, 3.0, 3.0, 1.0), (1.0, 1.0), (1.0, 2.0, 4.0, 1.0)])),
        input_pyramid=draw(st.booleans()),
        skip_rescale=draw(st.booleans()),
        num_classes=draw(st.sampled_from([0, 3])),
    )
    return config, (draw(st.sampled_from([1, 3])), size, size)


def randomized(config: NCSNppConfig, shape: tuple[int, int, int], seed: int = 0) -> NCSNpp:
    """A float64 network with a value in every weight, those too that start at zero."""
    network = NCSNpp(config, shape).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 16
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return network


def inputs(
    config: NCSNppConfig, shape: tuple[int, int, int], batch: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    labels = torch.arange(batch) % config.num_classes if config.num_classes else None
    return x, torch.linspace(-1.5, 1.0, batch, dtype=torch.float64), labels


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_it_has_the_parameters_that_the_specification_lists(drawn: tuple[NCSNppConfig, tuple[int, int, int]]) -> None:
    config, shape = drawn
    found = {name: tuple(value.shape) for name, value in NCSNpp(config, shape).state_dict().items()}
    assert found == array_shapes(ncsnpp_layers(config, shape))


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_the_output_has_the_shape_of_the_input_and_each_sample_its_own(
    drawn: tuple[NCSNppConfig, tuple[int, int, int]],
) -> None:
    config, shape = drawn
    network = randomized(config, shape)
    x, c_noise, labels = inputs(config, shape)
    with torch.no_grad():
        together = network(x, c_noise, labels)
        alone = network(x[1:], c_noise[1:], None if labels is None else labels[1:])
    assert together.shape == x.shape
    torch.testing.assert_close(together[1:], alone, rtol=1e-9, atol=1e-9)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_every_parameter_has_a_gradient_and_every_mask_a_use(drawn: tuple[NCSNppConfig, tuple[int, int, int]]) -> None:
    config, shape = drawn
    network = randomized(config, shape)
    x, c_noise, labels = inputs(config, shape)
    masks = [torch.ones(2, *mask, dtype=torch.bool) for mask in network.mask_shapes]
    output = network(x, c_noise, labels, masks)
    output.square().sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    for i, mask in enumerate(masks):
        changed = list(masks)
        changed[i] = torch.zeros_like(mask)
        with torch.no_grad():
            assert not torch.equal(network(x, c_noise, labels, changed), output)


def test_a_new_network_predicts_zero(tiny_config: Callable[..., Config]) -> None:
    """The last convolution starts at (nearly) zero, as the authors' does, so that f(x, s) starts as c_skip x."""
    config = tiny_config()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        output = NCSNpp(config.network, config.data.shape)(x, torch.zeros(2))
    assert 0 < output.abs().max() < 1e-3


def test_labels_and_noise_level_reach_the_output(tiny_config: Callable[..., Config]) -> None:
    config = tiny_config(network={"num_classes": 3}).network
    network = randomized(config, (3, 8, 8))
    x, c_noise, labels = inputs(config, (3, 8, 8))
    with torch.no_grad():
        outputs = [network(x, c_noise, labels), network(x, c_noise, 2 - labels), network(x, c_noise + 0.1, labels)]
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


def test_embeddings_are_sines_then_cosines() -> None:
    c_noise = torch.tensor([-1.5, 0.7], dtype=torch.float64)
    features = []
    for kind, scale in (("fourier", 0.02), ("positional", 1000.0)):
        embedding = NoiseEmbedding(8, kind=kind, scale=scale, num_classes=0).double()
        embedding.dense_0.register_forward_pre_hook(lambda _, args: features.append(args[0]))
        embedding(c_noise, None)
        assert (kind == "fourier") == ("frequencies" in embedding.state_dict())
        assert not any(name == "frequencies" for name, _ in embedding.named_parameters())
        turns = 2 * np.pi if kind == "fourier" else scale
        angles = turns * c_noise[:, None] * embedding.frequencies
        torch.testing.assert_close(features[-1], torch.cat([angles.sin(), angles.cos()], dim=1))
    # 250 log sigma at geometric frequencies from 1 down to 1e-4, to their float32 rounding at an angle of 1500
    expected = 1000 * c_noise[:, None] * 10_000.0 ** -(torch.arange(4, dtype=torch.float64) / 3)
    torch.testing.assert_close(features[1][:, :4], expected.sin(), rtol=0, atol=1e-4)


def test_fourier_frequencies_have_the_scale_of_the_recipe() -> None:
    torch.manual_seed(0)
    frequencies = NoiseEmbedding(1024, kind="fourier", scale=0.02, num_classes=0).frequencies
    assert frequencies.std().item() == pytest.approx(0.02, rel=0.07)
    assert frequencies.mean().item() == pytest.approx(0.0, abs=0.002)


def test_widths_that_do_not_divide_into_groups_are_refused() -> None:
    """80 + 80 channels meet on the way up: 160 = 5 * 32 is fine, 240 = 80 + 160 is not."""
    for channels, mult, fits in ((80, (1, 1), True), (80, (1, 2), False), (132, (1,), False), (128, (2, 2, 2), True)):
        config = NCSNppConfig(channels=channels, channel_mult=mult)
        if fits:
            ncsnpp_spec(config, (3, 32, 32))
        else:
            with pytest.raises(ConfigError, match=f"network.channels = {channels} .* multiples of 32"):
                ncsnpp_spec(config, (3, 32, 32))


def test_the_cifar10_network_keeps_its_size() -> None:
    """128 x (2, 2, 2) with 4 blocks a level, the stored frequencies included: another count breaks old checkpoints."""
    assert count_parameters(replace(Config(), data={"shape": (3, 32, 32)})) == 56_395_651
