"""The estimate of time and memory before a run, with a device whose rates are known."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ict_backends import load_backend
from ict_backends.networks.roofline import least_seconds, operations
from ict_backends.training.estimate import Estimate, estimate
from ict_core import Config, load_preset
from ict_core.settings import replace

# Seconds of one product of [100, 100] matrices, and of one copy of a million bytes.
PRODUCT, COPY = 0.02, 0.05


def device(name: str) -> Any:
    def taking(seconds: float) -> Callable[[int], None]:
        return lambda times: time.sleep(times * seconds)

    return SimpleNamespace(
        product_size=lambda device: 100,
        copy_size=lambda device: 10**6,
        make_product=lambda size, precision, device: taking(PRODUCT),
        make_copy=lambda size, device: taking(COPY),
        device_name=lambda device: name,
    )


@pytest.mark.parametrize(("name", "worst"), [("cpu", 0.33), ("NVIDIA H100", 0.18)])
def test_the_time_is_the_rooflines_by_what_runs_reach_of_it(name: str, worst: float) -> None:
    config = load_preset("images16-cpu")
    found = estimate(device(name), config, "auto", 1000)
    least = 1000 * least_seconds(operations(config), 2e6 / PRODUCT, 2e6 / COPY)
    assert found.least == pytest.approx(least / 0.81, rel=0.3)
    assert found.most / found.least == pytest.approx(0.81 / worst)


def test_a_run_that_is_short_anywhere_is_not_measured() -> None:
    assert str(estimate(SimpleNamespace(), load_preset("digits"), "auto", 10)).startswith(
        "up to two minutes, and about"
    )


def test_more_images_at_a_time_need_more_memory() -> None:
    def memory(**train: Any) -> int:
        config: Config = replace(load_preset("images64-cpu"), train={"total_steps": 1, **train})
        return estimate(device("cpu"), config, "auto", 1).memory

    assert memory(micro_batch=16) < memory(micro_batch=32) < memory() == memory(micro_batch=64)
    assert memory(batch_size=32) == memory(micro_batch=32)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((1, 119), "up to two minutes"),
        ((60, 130), "1 to 2.2 minutes"),
        ((1000, 7000), "17 to 120 minutes"),
        ((5000, 20_000), "1.4 to 5.6 hours"),
        ((50_000, 300_000), "0.58 to 3.5 days"),
    ],
)
def test_spans_in_words(seconds: tuple[float, float], words: str) -> None:
    assert str(Estimate(*seconds, memory=3 * 2**20)) == f"{words}, and about 3 MiB of memory on each device"


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_real_device_is_measured(backend: str) -> None:
    config = load_preset("digits")
    found = estimate(load_backend(backend), config, "cpu", config.train.total_steps)
    assert 1 < found.least < found.most < 1e5
