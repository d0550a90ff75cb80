"""The families of networks, before any framework: which there are, and what each is made of."""

from __future__ import annotations

import math
from functools import lru_cache

from ict_backends.networks.adm import adm_parameters, adm_spec
from ict_backends.networks.ncsnpp import Shapes, ncsnpp_parameters, ncsnpp_spec
from ict_core import Config


@lru_cache(maxsize=8)
def mask_shapes(config: Config) -> tuple[tuple[int, int, int], ...]:
    """[channels, height, width] of each dropout mask of a configuration's network, in the order of use."""
    spec = {"ncsnpp": ncsnpp_spec, "adm": adm_spec}[config.network.family]
    return tuple(spec(config.network, config.data.shape).mask_shapes())


def dropped_numbers(rate: float) -> int:
    """How many of 2^16 equally likely numbers drop an element of a mask: the rate's nearest number, but never all."""
    return min(round(rate * 2**16), 2**16 - 1)


def parameter_shapes(config: Config) -> Shapes:
    """Every stored array of a configuration's network by name, in the layout of checkpoints.

    Raises:
        ConfigError: the network cannot be built.
    """
    parameters = {"ncsnpp": ncsnpp_parameters, "adm": adm_parameters}[config.network.family]
    return parameters(config.network, config.data.shape)


def count_parameters(config: Config) -> int:
    """The number of stored values of a configuration's network. Raises ConfigError where it cannot be built."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def trained_shapes(config: Config) -> Shapes:
    """Of `parameter_shapes`, those that have a gradient: all but the Fourier frequencies."""
    return {name: shape for name, shape in parameter_shapes(config).items() if name != "embedding.frequencies"}
