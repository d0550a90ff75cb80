"""JAX on several devices, which the CPU can pretend to have if it is told so before JAX starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from twins import assert_all_close, small_config

from ict_backends import load_backend
from ict_backends.errors import UsageError
from ict_backends.jax.batch import to_device
from ict_backends.jax.device import check_device, worthwhile
from ict_backends.jax.dispatch import steps_per_dispatch, train_steps
from ict_backends.jax.sample import LoadedModel
from ict_backends.jax.state import init_state
from ict_backends.jax.weights import to_arrays
from ict_backends.sampling.batches import sample_images
from ict_backends.training.split import check_split
from ict_backends.training.step_plan import plan_step
from ict_core import load_preset
from ict_core.settings import replace

TESTS = Path(__file__).resolve().parents[1]
# What is asked -> how many of four devices of the CPU training takes, and the settings.
WORTHWHILE = {
    "2.5 GFLOP a step": (1, "digits", {}),
    "9.9 GFLOP": (2, "digits", {"batch_size": 256}),
    "15 GFLOP": (2, "cifar10-tiny", {"batch_size": 16}),
    "60 GFLOP": (4, "cifar10-tiny", {}),
    "a prime number of images": (1, "cifar10-tiny", {"batch_size": 61}),
    "63 images": (3, "cifar10-tiny", {"batch_size": 63}),
    "two micro-batches": (2, "cifar10-tiny", {"micro_batch": 32}),
}
# Prints the number of devices that JAX has after the backend was imported, on some cores, JAX being in use or not.
OFFERED = """
import os, sys
if sys.argv[1]:
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[1])]))
import jax
if sys.argv[2]:
    jax.devices()
from ict_backends.jax import tune_process
tune_process("auto")
print(jax.device_count("cpu"))
"""


@pytest.fixture(scope="module")
def on_four_devices() -> dict:
    """What this file printed, run by itself with four devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(TESTS), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def report() -> dict:
    """Train for six steps on one device and on all, and sample."""
    config = small_config(network={"dropout": 0.3}, train={"batch_size": 8})
    rng, found = np.random.default_rng(0), {}
    images, labels = rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8), np.arange(10) % 3
    for name in ("cpu:0", "cpu"):
        mesh = check_device(name)
        state = init_state(config, mesh)
        for step in range(6):
            draws = to_device([plan_step(config, step, 10)], mesh)
            state, _ = train_steps(state, config, draws, images, labels, mesh)
        model = LoadedModel(config, state.ema, state.constants, mesh)
        samples = sample_images(model, 5, sigmas=[80.0, 1.0], seed=0, labels=np.arange(5) % 3)
        found[name] = {
            "devices": mesh.size,
            "parts": len({str(s.index) for s in draws.indices.addressable_shards}),
            "weights": {n: a.ravel().tolist() for n, a in to_arrays(state.params).items()},
            "samples": samples.ravel().tolist(),
        }
    found["worthwhile"] = {
        name: worthwhile(check_device("cpu"), replace(load_preset(preset), train=train)).size
        for name, (_, preset, train) in WORTHWHILE.items()
    }
    try:
        check_split(6, 0, check_device("cpu").size, "devices")
    except UsageError as error:
        found["refused"] = str(error)
    return found


def test_the_weights_do_not_depend_on_the_number_of_devices(on_four_devices: dict) -> None:
    """Noise and dropout are those of the image's place in the batch, wherever it is computed."""
    one, four = on_four_devices["cpu:0"], on_four_devices["cpu"]
    assert (one["devices"], four["devices"]) == (1, 4)
    assert (one["parts"], four["parts"]) == (1, 4)
    weights = [{n: np.array(a, np.float32) for n, a in found["weights"].items()} for found in (four, one)]
    assert_all_close(*weights, 1e-5)
    np.testing.assert_allclose(four["samples"], one["samples"], atol=1e-4)


@pytest.mark.parametrize("name", WORTHWHILE)
def test_a_step_takes_the_devices_that_pay(on_four_devices: dict, name: str) -> None:
    count, _, _ = WORTHWHILE[name]
    assert on_four_devices["worthwhile"][name] == count


def offered(*arguments: str, **variables: str) -> int:
    """The devices that JAX has in a process of its own, once the backend has tuned it."""
    names = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "WORLD_SIZE")
    environment = {k: v for k, v in os.environ.items() if k not in names} | {"JAX_PLATFORMS": "cpu"} | variables
    command = [sys.executable, "-c", OFFERED, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no way to keep a process on some cores")
def test_every_core_is_a_device_unless_told_otherwise() -> None:
    cores = min(8, len(os.sched_getaffinity(0)))
    assert offered("", "") == cores
    assert offered("1", "") == 1
    assert offered("", "", JAX_NUM_CPU_DEVICES="3") == 3
    assert offered("", "", XLA_FLAGS="--xla_force_host_platform_device_count=5") == 5
    assert offered("", "", WORLD_SIZE="2") == 1
    assert offered("", "jax is in use") == 1


def test_a_batch_that_the_devices_cannot_share_is_refused(on_four_devices: dict) -> None:
    assert on_four_devices["refused"].startswith("train.batch_size = 6 must be divisible by the number of devices, 4")


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize(
    "name",
    ["warp", "tpu", "gpu:99", "cpu:99", "cpu:x", "cuda:99", "cuda:-1", "mps", "hpu", "meta", "CPU", "auto:0", ""],
)
def test_devices_that_are_not_there_are_refused(backend: str, name: str) -> None:
    """In the same words, which say what is there; a library's own name of a device is not enough."""
    sees = {"torch": "torch", "jax": "JAX"}[backend]
    says = f'^--device {name} is not available: {sees} sees no such device \\(allowed: "auto", "cpu"[^\n]*\\)$'
    with pytest.raises(UsageError, match=says):
        load_backend(backend).check_device(name)


def test_several_steps_in_one_dispatch_are_the_same_steps() -> None:
    """What accelerators do: a loop on the device; the CPU does one step at a time."""
    config, mesh = small_config(network={"dropout": 0.3}), check_device("cpu")
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8), np.arange(10) % 3
    plans = [plan_step(config, step, 10) for step in range(4)]
    together, results = train_steps(init_state(config, mesh), config, to_device(plans, mesh), images, labels, mesh)
    assert results.losses.shape == (4, 4)
    apart = init_state(config, mesh)
    for plan, row in zip(plans, results.losses, strict=True):
        apart, found = train_steps(apart, config, to_device([plan], mesh), images, labels, mesh)
        np.testing.assert_allclose(found.losses[0], row, rtol=1e-4)
    assert int(together.step) == int(apart.step) == 4
    assert_all_close(to_arrays(apart.params), to_arrays(together.params), 1e-5)
    assert jax.tree.structure(apart) == jax.tree.structure(together)


def test_a_dispatch_ends_where_something_is_due() -> None:
    """On accelerators; the CPU takes one step at a time."""
    gpus = SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")]))
    every = {"total_steps": 48, "log_every": 12, "checkpoint_every": 24, "sample_every": 0}
    assert steps_per_dispatch(small_config(train=every), gpus) == 6
    assert steps_per_dispatch(small_config(train=every), gpus, first=4) == 4
    assert steps_per_dispatch(small_config(train={**every, "log_every": 7}), gpus) == 1
    assert steps_per_dispatch(small_config(train=every), check_device("cpu")) == 1


if __name__ == "__main__":
    print(json.dumps(report()))
