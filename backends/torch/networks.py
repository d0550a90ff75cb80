"""The network of a configuration, in torch."""

from __future__ import annotations

from ict_backends.torch.adm import ADM
from ict_backends.torch.ncsnpp import NCSNpp
from ict_core import Config

Network = NCSNpp | ADM


def make_network(config: Config) -> Network:
    """A new network, initialised as its authors do, from torch's generator."""
    families = {"ncsnpp": NCSNpp, "adm": ADM}
    return families[config.network.family](config.network, config.data.shape)
