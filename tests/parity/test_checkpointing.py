"""`network.checkpoint` changes no value and no gradient, and keeps less for the gradient, in both backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from twins import (
    assert_all_close,
    assert_close,
    jax_batch,
    jax_gradient,
    numpy_batch,
    small_adm_config,
    small_config,
    torch_batch,
    torch_gradient,
    twins,
)

from ict_backends.jax import state as jax_state
from ict_backends.jax import step as jax_step
from ict_backends.networks.families import mask_shapes
from ict_backends.torch import step as torch_step
from ict_core import Config
from ict_core.settings import replace

CONFIGS = {
    "ncsnpp": small_config(
        data={"shape": [3, 8, 8]}, network={"channel_mult": [1, 1], "attention_resolutions": [4], "dropout": 0.4}
    ),
    "adm": replace(small_adm_config(), data={"shape": (3, 8, 8)}, network={"channel_mult": (1, 1)}),
}


def both(config: Config) -> tuple[Config, Config]:
    """Without and with checkpointing."""
    return config, replace(config, network={"checkpoint": True})


def draw_masks(config: Config) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((config.train.batch_size, *s)) >= config.network.dropout for s in mask_shapes(config)]


@pytest.mark.parametrize("family", CONFIGS)
def test_gradients_do_not_change(family: str) -> None:
    """In torch not in a bit; in JAX, what XLA fuses differs."""
    results = {"torch": [], "jax": []}
    with jax.enable_x64(True):
        for config in both(CONFIGS[family]):
            states, arrays, masks = twins(config, "float64"), numpy_batch(config, 5, "float64"), draw_masks(config)
            results["torch"].append(torch_gradient(states.torch, config, torch_batch(arrays, masks)))
            results["jax"].append(jax_gradient(states.jax, config, jax_batch(arrays, masks)))
    (plain_losses, plain), (losses, gradient) = results["torch"]
    np.testing.assert_array_equal(losses, plain_losses)
    assert all(np.array_equal(gradient[name], plain[name]) for name in plain)
    for losses, gradient in results["jax"]:
        assert_close(losses, plain_losses, 1e-10)
        assert_all_close(gradient, plain, 1e-10)
    assert max(np.abs(g).max() for g in plain.values()) > 0


def kept_by_torch(config: Config) -> int:
    """Bytes that a training step's loss keeps for its gradient, weights and repeated ones left out."""
    state = twins(config, "float32").torch
    weights = {p.untyped_storage().data_ptr() for p in state.params.network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = torch_step.batch_loss(state.params.network, config, torch_batch(numpy_batch(config, 5, "float32")))
        assert torch.isfinite(loss.mean)
    return sum(kept.values())


def kept_by_jax(config: Config) -> int:
    """The same, by shape alone: nothing is computed."""
    state, batch = twins(config, "float32").jax, jax_batch(numpy_batch(config, 5, "float32"))

    def pullback(params: Any) -> Any:
        def loss(params: Any) -> Any:
            return jax_step.batch_loss(jax_state.merge_network(config, params, state.constants), config, batch).mean

        return jax.vjp(loss, params)[1]

    kept = jax.tree.leaves(jax.eval_shape(pullback, state.params))
    return sum(a.size * a.dtype.itemsize for a in kept) - sum(a.nbytes for a in jax.tree.leaves(state.params))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kept", [kept_by_torch, kept_by_jax])
def test_less_is_kept_for_the_gradient(kept: Callable[..., int], family: str) -> None:
    plain, checkpointed = map(kept, both(replace(CONFIGS[family], network={"dropout": 0.0}, train={"batch_size": 16})))
    assert checkpointed < 0.5 * plain
