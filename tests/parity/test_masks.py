"""Dropout masks, several of whose elements come from one random number."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np
import pytest
import torch
from ict_backends.jax.step import _draw_mask
from ict_backends.torch.step import _fill_mask


def torch_mask(seed: int, rate: float, count: int) -> np.ndarray:
    kept = torch.empty(count, dtype=torch.bool)
    _fill_mask(kept, rate, torch.Generator().manual_seed(seed))
    return kept.numpy()


def jax_mask(seed: int, rate: float, count: int) -> np.ndarray:
    return np.asarray(_draw_mask(jax.random.key(seed), rate, count))


BACKENDS = pytest.mark.parametrize("mask", [torch_mask, jax_mask])


@BACKENDS
@pytest.mark.parametrize("rate", [0.001, 0.3, 0.5, 0.9])
def test_elements_are_dropped_at_their_rate(mask: Callable[..., np.ndarray], rate: float) -> None:
    """All, and those in each place of a random number."""
    dropped = ~mask(1, rate, 400_003)
    for part in (dropped, *(dropped[i::4] for i in range(4)), *np.array_split(dropped, 2)):
        assert abs(part.mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / len(part))


@BACKENDS
@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_elements_know_nothing_of_each_other(mask: Callable[..., np.ndarray], rate: float) -> None:
    """Neighbours, and those that share a random number."""
    kept = mask(1, rate, 400_000) - (1 - rate)
    for distance in (1, 2, 3, 4, len(kept) // 2):
        products = kept[distance:] * kept[:-distance]
        assert abs(products.mean()) < 5 * rate * (1 - rate) / math.sqrt(len(products))


@BACKENDS
@pytest.mark.parametrize("count", [1, 2, 3, 6, 1001])
def test_masks_are_those_of_their_seed(mask: Callable[..., np.ndarray], count: int) -> None:
    first = mask(1, 0.5, count)
    assert first.shape == (count,)
    np.testing.assert_array_equal(mask(1, 0.5, count), first)
    assert count < 1001 or (mask(2, 0.5, count) != first).any()


@BACKENDS
def test_a_rate_next_to_one_drops_not_all(mask: Callable[..., np.ndarray]) -> None:
    assert 0 < mask(0, 1 - 1e-9, 2**20).sum() < 100
