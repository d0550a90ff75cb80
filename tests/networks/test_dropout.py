"""What dropout keeps is divided by the share that is kept, a multiple of 2^-16, and rounded once, in both backends."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ict_backends.jax import layers as jax_layers
from ict_backends.networks.layers import dropped_numbers, kept_share
from ict_backends.torch import adm as torch_adm
from ict_backends.torch import layers as torch_layers
from ict_backends.torch.ncsnpp import NCSNpp
from ict_core import ADMConfig, NCSNppConfig
from ict_core.threefry import _keep_halves


@given(rate=st.floats(0.0, 1.0, exclude_max=True))
def test_the_share_is_that_of_the_numbers_that_keep(rate: float) -> None:
    share = kept_share(rate)
    assert share == 1 - dropped_numbers(rate) / 2**16
    assert 0 < share <= 1
    assert abs(share - (1 - rate)) <= 2**-16


def test_the_mean_of_drawn_masks_is_the_share() -> None:
    """To the last digit, over all 2^16 numbers; a rate of 2^-17 or 0.99999 shows the difference to 1 - rate."""
    for rate in (2.0**-17, 0.3, 0.99999):
        numbers = np.arange(2**16, dtype=np.int32)
        kept = _keep_halves(numbers.copy(), 2**16 - dropped_numbers(rate)) & 1
        assert kept.mean() / kept_share(rate) == 1
    assert kept_share(2.0**-17) == 1
    assert kept_share(0.99999) == 2**-16


@pytest.mark.parametrize("rate", [0.13, 0.3, 0.1, 0.99999])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_both_divide_by_it_and_round_once(rate: float, dtype: str) -> None:
    x = np.random.default_rng(0).uniform(0.5, 1.0, (2, 4, 4, 32)).astype(np.float32) * kept_share(rate)
    mask = np.random.default_rng(1).random(x.shape) >= 0.5
    narrow = torch.tensor(x).to(getattr(torch, dtype))
    exact = narrow.double().numpy() * mask / kept_share(rate)
    ours = narrow.clone().mul_(torch.tensor(mask)).div_(kept_share(rate)).double().numpy()
    theirs = jax_layers.dropped(jnp.asarray(x).astype(dtype), jnp.asarray(mask), kept_share(rate))
    ulp = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    for found in (ours, np.asarray(theirs.astype(jnp.float32)).astype(float)):
        assert np.abs(found - exact).max() <= 1.01 * ulp * np.abs(exact).max()
        # A rounded factor would be off everywhere by as much; that of float32 is.
        assert abs((found - exact).mean()) < (1.0 if dtype == "float32" else 0.1) * ulp


def test_every_block_has_the_share_of_its_rate() -> None:
    ncsnpp = NCSNppConfig(channels=8, channel_mult=(1,), blocks=1, attention_resolutions=(), dropout=0.3)
    adm = ADMConfig(channels=32, channel_mult=(1,), blocks=1, attention_resolutions=(), head_channels=32, dropout=0.3)
    for network in (NCSNpp(ncsnpp, (1, 4, 4)), torch_adm.ADM(adm, (1, 4, 4))):
        blocks = [m for m in network.modules() if isinstance(m, torch_layers.ResidualBlock | torch_adm.ADMBlock)]
        assert len(blocks) > 2
        assert {block.kept for block in blocks} == {kept_share(0.3)}


@pytest.mark.parametrize("factor", [0.5**0.5, 12**-0.5])
def test_a_factor_is_not_rounded_to_the_dtype_of_what_it_multiplies(factor: float) -> None:
    """As JAX would by itself: bfloat16 has 8 bits."""
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.0, 10_000), jnp.bfloat16)
    found = np.asarray(jax_layers.times(x, factor).astype(jnp.float32)).astype(float)
    exact = np.asarray(x.astype(jnp.float32)).astype(float) * factor
    assert abs((found - exact).mean()) < 2.0**-8 * 0.02
