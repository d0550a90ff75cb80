"""What torch compiles on a GPU computes what is computed elsewhere: tried on the CPU, traced and run as it is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from ict_backends.torch import device, layers
from ict_backends.torch.step import Batch, batch_loss
from twins import numpy_batch, small_adm_config, small_config, torch_batch, torch_network

from ict_core import Config
from ict_core.config import replace

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
    "adm": small_adm_config(),
    "adm, scale and shift": replace(small_adm_config(), network={"scale_shift": True, "channel_mult": (1, 2)}),
}


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The layers take the way that they take on a GPU; the names of the functions that are compiled, in order."""
    seen: list[str] = []

    def compiled(function):
        seen.append(function.__name__)
        return torch.compile(function, dynamic=False, backend="aot_eager")

    whether = lambda tensor: not torch.compiler.is_compiling()  # noqa: E731
    monkeypatch.setattr(device, "compiles_for", whether)
    monkeypatch.setattr(layers, "compiles_for", whether)
    monkeypatch.setattr(device, "_compiled", compiled)
    with torch._dynamo.config.patch(recompile_limit=128):
        yield seen
    torch._dynamo.reset()


def evaluate(config: Config, dtype: str, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """[b] losses, and the gradient of their mean as a vector."""
    network = torch_network(config, dtype)
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
def test_compiled_layers_give_the_same_loss_and_gradient(name: str, request: pytest.FixtureRequest) -> None:
    config = CONFIGS[name]
    batch = drawn_batch(config, "float64")
    expected = evaluate(config, "float64", batch)
    seen = request.getfixturevalue("as_on_a_gpu")
    for found, wanted in zip(evaluate(config, "float64", batch), expected, strict=True):
        assert np.linalg.norm(found - wanted) < 1e-9 * np.linalg.norm(wanted)
    assert {"_normalized", "_joined"} <= set(seen)
    assert (("_filter_both_axes" in seen) and ("_double_both_axes" in seen)) == (name == "ncsnpp")


def test_in_bf16_they_are_as_near_as_the_others(request: pytest.FixtureRequest) -> None:
    config = replace(CONFIGS["ncsnpp"], train={"precision": "bf16"})
    batch = drawn_batch(config, "float32")
    exact = evaluate(CONFIGS["ncsnpp"], "float32", batch)
    plain = evaluate(config, "float32", batch)
    request.getfixturevalue("as_on_a_gpu")
    compiled = evaluate(config, "float32", batch)
    for found, usual, wanted in zip(compiled, plain, exact, strict=True):
        assert np.linalg.norm(found - wanted) < 1.5 * np.linalg.norm(usual - wanted)
