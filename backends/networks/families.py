"""The families of networks without any framework: the layers and arrays of a configuration's network."""

from __future__ import annotations

import math
from functools import lru_cache

from ict_backends.environment import memory_bytes
from ict_backends.errors import OutOfMemoryError
from ict_backends.networks.adm import adm_layers, adm_spec
from ict_backends.networks.layers import Layer, Shapes, array_shapes
from ict_backends.networks.ncsnpp import ncsnpp_layers, ncsnpp_spec
from ict_core import ADMConfig, Config


def network_layers(config: Config) -> list[Layer]:
    """The layers of a configuration's network, in the order of its arrays in checkpoints.

    Raises:
        ConfigError: the network cannot be built.
    """
    if isinstance(config.network, ADMConfig):
        return list(adm_layers(config.network, config.data.shape))
    return list(ncsnpp_layers(config.network, config.data.shape))


@lru_cache(maxsize=8)
def mask_shapes(config: Config) -> tuple[tuple[int, int, int], ...]:
    """The shape [channels, height, width] of each dropout mask of a configuration's network, in the order of use."""
    if isinstance(config.network, ADMConfig):
        return tuple(adm_spec(config.network, config.data.shape).mask_shapes())
    return tuple(ncsnpp_spec(config.network, config.data.shape).mask_shapes())


def parameter_shapes(config: Config) -> Shapes:
    """The shape of every stored array of a configuration's network, by the array's name in checkpoints.

    Raises:
        ConfigError: the network cannot be built.
    """
    return array_shapes(network_layers(config))


def trained_shapes(config: Config) -> Shapes:
    """The part of `parameter_shapes` for arrays that have a gradient. Raises ConfigError as that function does."""
    return array_shapes(layer for layer in network_layers(config) if layer.trained)


def count_parameters(config: Config) -> int:
    """The number of stored values of a configuration's network. Raises ConfigError where the network is invalid."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def check_memory(config: Config) -> None:
    """Raise OutOfMemoryError if the weights alone, in float32, are more than this machine's memory."""
    needed, there = 4 * count_parameters(config), memory_bytes()
    if there is not None and needed > there:
        raise OutOfMemoryError(
            f"the network has {needed // 4:,} parameters, which need {needed / 2**30:,.0f} GiB, and this machine has "
            f"{there / 2**30:,.0f} GiB of memory; network.channels, channel_mult and blocks decide the size"
        )
