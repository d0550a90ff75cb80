"""Noise and dropout masks are the same in both backends, and each image's are its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import nchw, small_adm_config, small_config

from ict_backends.jax import batch as jax_batch
from ict_backends.networks.families import mask_shapes
from ict_backends.torch import batch as torch_batch
from ict_core import Config, key_words
from ict_core.settings import replace


def torch_draw(config: Config, seeds: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """The noise and both lists of masks of some images, NCHW."""
    z, *masks = torch_batch.draw_noise(config, torch.from_numpy(key_words(seeds)))
    return z.numpy(), *([m.numpy() for m in each] for each in masks)


def jax_draw(config: Config, seeds: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """The noise and both lists of masks of some images, NCHW."""
    z, *masks = jax_batch.draw_noise(config, jnp.asarray(key_words(seeds)))
    return nchw(z), *([nchw(m) for m in each] for each in masks)


BACKENDS = pytest.mark.parametrize("draw", [torch_draw, jax_draw])
SEEDS = np.array([0, 1, 2**40, 2**63 + 5, 2**64 - 1], dtype=np.uint64)
CONFIGS = [
    small_config(network={"dropout": 0.3}),
    small_adm_config(),
    small_config(network={"dropout": 0.9}, data={"shape": [1, 4, 4]}, teacher={"share_dropout": False}),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["ncsnpp", "adm", "apart"])
def test_both_backends_draw_the_same(config: Config) -> None:
    """Masks bit by bit, noise to the rounding of log and cos."""
    (z, *masks), (jax_z, *jax_masks) = (draw(config, SEEDS) for draw in (torch_draw, jax_draw))
    assert z.dtype == jax_z.dtype == np.float32
    np.testing.assert_allclose(z, jax_z, rtol=0, atol=3e-6)
    for ours, theirs in zip(masks, jax_masks, strict=True):
        assert [m.shape[1:] for m in ours] == list(mask_shapes(config))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@BACKENDS
def test_an_image_draws_the_same_in_any_company(draw: Callable[..., Any]) -> None:
    config = CONFIGS[0]
    z, masks, _ = draw(config, SEEDS)
    for i in range(len(SEEDS)):
        alone_z, alone, _ = draw(config, SEEDS[i : i + 1])
        np.testing.assert_array_equal(alone_z[0], z[i])
        assert all(np.array_equal(a[0], b[i]) for a, b in zip(alone, masks, strict=True))
    assert len({z[i].tobytes() for i in range(len(SEEDS))}) == len(SEEDS)
    assert len({masks[0][i].tobytes() for i in range(len(SEEDS))}) == len(SEEDS)


def test_groups_of_images_on_the_cpu_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIGS[0], data={"shape": (3, 16, 16)})
    together = torch_draw(config, SEEDS)
    monkeypatch.setattr(torch_batch, "_MOST_WORDS", 1)
    for a, b in zip(together[1], torch_draw(config, SEEDS)[1], strict=True):
        np.testing.assert_array_equal(a, b)


@BACKENDS
@pytest.mark.parametrize("rate", [0.001, 0.3, 0.5, 0.9])
def test_masks_drop_at_their_rate(draw: Callable[..., Any], rate: float) -> None:
    config = replace(CONFIGS[0], network={"dropout": rate})
    _, masks, _ = draw(config, np.arange(500, dtype=np.uint64))
    dropped = ~np.concatenate([m.ravel() for m in masks])
    assert abs(dropped.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / dropped.size)
