"""The network of a configuration, in JAX."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array

from ict_backends.jax.adm import ADM
from ict_backends.jax.device import float32_as
from ict_backends.jax.ncsnpp import NCSNpp
from ict_core import ADMConfig, Config, MaskedNetwork

UNet = NCSNpp | ADM
# train.precision -> the dtype that the network computes in; None for the dtype of its weights.
PRECISIONS = {"float32": None, "tf32": None, "bf16": jnp.bfloat16, "fp16": jnp.float16}


def make_network(config: Config, rngs: nnx.Rngs) -> UNet:
    """A new network of the configuration, initialised as its authors do, from `rngs`."""
    if isinstance(config.network, ADMConfig):
        return ADM(config.network, config.data.shape, rngs=rngs)
    return NCSNpp(config.network, config.data.shape, rngs=rngs)


def in_precision(network: UNet, config: Config) -> MaskedNetwork:
    """The network as a function F(x_in, c_noise, labels, masks) that computes in `train.precision`.

    Its arguments are x_in [b, h, w, c], c_noise [b], labels [b] or None, and masks bool [b, h, w, c] for each of
    `mask_shapes` or None; its result is [b, h, w, c] in the dtype of the weights.
    """
    dtype = PRECISIONS[config.train.precision]

    def call(x_in: Array, c_noise: Array, labels: Array | None, masks: Sequence[Array] | None, /) -> Array:
        with float32_as(config.train.precision):
            return network(x_in if dtype is None else x_in.astype(dtype), c_noise, labels, masks)

    return call
