"""A compiled network, whose norms are written out, computes what the network itself does; and so do compiled draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from array_api_compat import torch as xp
from twins import numpy_batch, small_adm_config, small_config, torch_batch, torch_network

from ict_backends.torch import layers
from ict_backends.torch.step import batch_loss
from ict_core import Batch, Config, dropout_bytes, key_words, normal_noise
from ict_core.settings import replace

# Torch's tracer asks every tensor for its gradient, and hides the warning where warnings are no errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
CONFIGS = {
    "ncsnpp": small_config(
        data={"shape": [3, 8, 8]}, network={"channel_mult": [1, 2], "dropout": 0.3, "attention_resolutions": [4]}
    ),
    "no filters": small_config(
        data={"shape": [3, 8, 8]},
        network={"channel_mult": [1, 1], "fir_kernel": [], "skip_rescale": False, "input_pyramid": False},
    ),
    "adm": replace(small_adm_config(), network={"scale_shift": True, "channel_mult": (1, 2)}),
}


def evaluate(config: Config, dtype: str, batch: Batch, *, compiled: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """[b] losses, and the gradient of their mean as a vector. What is compiled is traced, and run as it is."""
    network = torch_network(config, dtype)
    if compiled:
        torch._dynamo.reset()
        network.compile(dynamic=False, backend="aot_eager")
    loss = batch_loss(network, config, batch)
    loss.mean.backward()
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    return loss.per_sample.detach().numpy(), torch.cat([g.reshape(-1) for g in gradient]).numpy()


def drawn_batch(config: Config, dtype: str) -> Batch:
    rng, arrays = np.random.default_rng(1), numpy_batch(config, 0, dtype)
    shapes = torch_network(config, dtype).mask_shapes
    masks = (
        [rng.random((config.train.batch_size, *shape)) < 0.6 for shape in shapes] if config.network.dropout else None
    )
    return torch_batch(arrays, masks)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_compiled_network_has_the_same_loss_and_gradient(name: str) -> None:
    config = CONFIGS[name]
    batch = drawn_batch(config, "float64")
    expected = evaluate(config, "float64", batch)
    for found, wanted in zip(evaluate(config, "float64", batch, compiled=True), expected, strict=True):
        assert np.linalg.norm(found - wanted) < 1e-9 * np.linalg.norm(wanted)


def test_in_bf16_it_is_as_near_as_the_other() -> None:
    config = replace(CONFIGS["ncsnpp"], train={"precision": "bf16"})
    batch = drawn_batch(config, "float32")
    exact = evaluate(CONFIGS["ncsnpp"], "float32", batch)
    plain, compiled = (evaluate(config, "float32", batch, compiled=c) for c in (False, True))
    for found, usual, wanted in zip(compiled, plain, exact, strict=True):
        assert np.linalg.norm(found - wanted) < 1.5 * np.linalg.norm(usual - wanted)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_the_norm_written_out_is_torchs(groups: int) -> None:
    """Of numbers far from zero, too, where a difference of large sums would lose its digits."""
    generator = torch.Generator().manual_seed(0)
    x = 100 + torch.randn(3, 8, 5, 7, generator=generator)
    weight, bias = torch.randn(2, 8, generator=generator)
    found = layers.group_norm(x, weight, bias, groups=groups, eps=1e-6)
    exact = torch.nn.functional.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-6)
    assert (found - exact).norm() < 2e-5 * exact.norm()


DRAWS = {
    "noise": lambda keys: normal_noise(keys, 301, xp=xp),
    "masks": lambda keys: dropout_bytes(keys, 301, dropped=99, xp=xp),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws_compile_whole(name: str) -> None:
    """Into one graph, which a GPU does as one kernel: nothing in it asks for a value."""
    keys = torch.from_numpy(key_words(np.arange(5, dtype=np.uint64)))
    compiled = torch.compile(DRAWS[name], dynamic=False, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(keys), DRAWS[name](keys))
