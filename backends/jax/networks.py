"""The network of a configuration, in JAX."""

from __future__ import annotations

from flax import nnx

from ict_backends.jax.adm import ADM
from ict_backends.jax.ncsnpp import NCSNpp
from ict_core import Config

Network = NCSNpp | ADM


def make_network(config: Config, rngs: nnx.Rngs) -> Network:
    """A new network, initialised as its authors do."""
    families = {"ncsnpp": NCSNpp, "adm": ADM}
    return families[config.network.family](config.network, config.data.shape, rngs=rngs)
