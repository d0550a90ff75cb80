"""How long a run will take and how much memory it needs, before its first step."""

from __future__ import annotations

from typing import Any, NamedTuple

from ict_backends.networks.cost import mask_memory, step_flops, training_memory, update_memory
from ict_backends.networks.roofline import activation_bytes, least_seconds, operations
from ict_backends.protocols import Backend, Repeat
from ict_backends.timing import timed, times_of_stretch
from ict_core import Config

# The parts of the roofline that measured runs have reached (docs/performance.md), from the worst to the best.
_REACHED_ON_CPU, _REACHED = (0.33, 0.81), (0.18, 0.81)
# A run of fewer operations is over in two minutes anywhere, which needs no measurement.
_SHORT = 5e11


class Estimate(NamedTuple):
    """What a run will need.

    Attributes:
        least, most: seconds that all its steps take, compilation and evaluations aside.
        memory: bytes on each device.
    """

    least: float
    most: float
    memory: int

    def __str__(self) -> str:
        """The estimate in words, such as "8 to 30 minutes, about 300 MiB of memory"."""
        return f"{_span(self.least, self.most)}, and about {_size(self.memory)} of memory on each device"


def estimate(engine: Backend[Any, Any], config: Config, device: str, steps: int, devices: int = 1) -> Estimate:
    """Estimate the time and the memory of a run from the rates of a product and a copy, which are measured here.

    Args:
        engine: the backend.
        config: the run's settings.
        device: the name of the device.
        steps: the number of steps that are left.
        devices: the number of devices that share a step.
    """
    images = config.train.micro_batch or -(-config.train.batch_size // devices)
    held = sum(training_memory(config))
    moment = max(update_memory(config), images * activation_bytes(config) + mask_memory(config, images))
    if steps * step_flops(config) < _SHORT:
        return Estimate(0.0, 0.0, held + moment)
    size, copied = engine.product_size(device), engine.copy_size(device)
    product_rate = 2.0 * size**3 / _seconds(engine.make_product(size, config.train.precision, device))
    memory_rate = 2.0 * copied / _seconds(engine.make_copy(copied, device))
    least = steps * least_seconds(operations(config, devices), product_rate, memory_rate)
    worst, best = _REACHED_ON_CPU if engine.device_name(device) == "cpu" else _REACHED
    return Estimate(least / best, least / worst, held + moment)


def _seconds(run: Repeat) -> float:
    """The seconds of one repetition of an operation."""
    times = times_of_stretch(run)
    return timed(lambda: run(times))[1] / times


def _span(least: float, most: float) -> str:
    """Two times in one unit, in two digits: "8 to 30 minutes"."""
    for unit, seconds in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if most >= 2 * seconds:
            return f"{_round(least / seconds)} to {_round(most / seconds)} {unit}"
    return "up to two minutes"


def _round(value: float) -> str:
    return f"{float(f'{value:.2g}'):g}" if value < 10 else f"{float(f'{value:.2g}'):.0f}"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(1, round(size / 2**20))} MiB"
