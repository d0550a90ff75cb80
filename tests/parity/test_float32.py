"""What float32 is, is set: in torch for the time of a call, in JAX in each operation."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from twins import small_adm_config, small_config

from ict_backends import load_backend
from ict_backends.data.dataset import Dataset
from ict_backends.exchange.importing import weights_run
from ict_backends.jax import batch as jax_batch
from ict_backends.jax import dispatch as jax_dispatch
from ict_backends.jax import sample as jax_sample
from ict_backends.jax import state as jax_state
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.reports.benchmark import random_arrays
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import create_run
from ict_backends.torch.device import float32_as
from ict_backends.torch.features import LoadedFeatures
from ict_backends.training.step_plan import plan_step
from ict_core import Config
from ict_core.settings import replace

# train.precision -> torch's settings of products and of convolutions (older names, newer names).
IN_FORCE = {
    "float32": ("highest", False, "ieee", "none"),
    "tf32": ("high", True, "tf32", "tf32"),
    "bf16": ("highest", False, "ieee", "none"),
    "fp16": ("highest", False, "ieee", "none"),
}
DEFAULT = {"float32": ["HIGHEST", "HIGHEST"], "tf32": ["HIGH", "HIGH"]}


def torch_settings() -> tuple[Any, ...]:
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    older = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    return *older, matmul.fp32_precision, conv.fp32_precision


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The settings at each convolution."""
    found: list[tuple[Any, ...]] = []
    original = torch.nn.functional.conv2d

    def conv2d(*given: Any, **named: Any) -> Any:
        found.append(torch_settings())
        return original(*given, **named)

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    monkeypatch.setattr(torch.nn.modules.conv.F, "conv2d", conv2d)
    return found


def data_of(config: Config) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (10, *config.data.shape), dtype=np.uint8), np.arange(10) % 3)


@pytest.mark.parametrize("precision", IN_FORCE)
def test_torch_trains_and_samples_in_the_precision_of_the_run(
    precision: str, seen: list[object], tmp_path: Path
) -> None:
    """And leaves the process as it was."""
    before = torch_settings()
    config = small_config(train={"precision": precision, "total_steps": 1})
    run = create_run(tmp_path / "run", config, data_of(config))
    load_backend("torch").train(config, data_of(config), run, device="cpu")
    trained = len(seen)
    model = load_backend("torch").load_model(run.path, device="cpu")
    model.sample(np.zeros((1, 2, 3, 4, 4), np.float32), [80.0], np.array([0, 1]))
    assert 0 < trained < len(seen)
    assert set(seen) == {IN_FORCE[precision]}
    assert torch_settings() == before


@pytest.mark.parametrize("before", [("highest", False), ("high", True), ("highest", True)])
def test_torchs_settings_come_back(before: tuple[str, bool]) -> None:
    """Whatever they were, and after an error, too."""
    older = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    newer = torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision
    try:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
        expected = torch_settings()
        for precision in IN_FORCE:
            with contextlib.suppress(KeyError), float32_as(precision):
                assert torch_settings() == IN_FORCE[precision]
                raise KeyError
            assert torch_settings() == expected
    finally:
        torch.set_float32_matmul_precision(older[0])
        torch.backends.cudnn.allow_tf32 = older[1]
        torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = newer


def test_settings_by_the_newer_names_alone_come_back() -> None:
    """Torch then refuses to tell the older ones."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        with pytest.raises(RuntimeError, match="mix of the legacy and new APIs"):
            torch.get_float32_matmul_precision()
        with float32_as("float32"):
            assert torch_settings() == IN_FORCE["float32"]
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


def test_torch_changes_with_the_stage(seen: list[tuple[Any, ...]], tmp_path: Path) -> None:
    """TF32 in the last stage, and float32 before it; the network has as many convolutions in every step."""
    late = {"total_steps": 6, "late_above": 5, "late_precision": "tf32"}
    config = small_config(train=late)
    run = create_run(tmp_path / "run", config, data_of(config))
    load_backend("torch").train(config, data_of(config), run, device="cpu")
    trained = [settings for settings in seen if settings == IN_FORCE["tf32"]]
    assert set(seen) == {IN_FORCE["float32"], IN_FORCE["tf32"]}
    steps_late = sum(plan_step(config, step, 10).n > 5 for step in range(6))
    assert 0 < steps_late < 6
    assert seen.index(IN_FORCE["tf32"]) == len(trained) // steps_late * (6 - steps_late)


def test_feature_networks_compute_in_float32() -> None:
    found: list[tuple[Any, ...]] = []

    def module(images: torch.Tensor) -> torch.Tensor:
        found.append(torch_settings())
        return images.float().mean(dim=[2, 3])

    network = LoadedFeatures("x.pt", "", False, module, torch.device("cpu"), False)
    with float32_as("tf32"):
        network.features(np.zeros((2, 3, 4, 4), np.uint8))
    assert found == [IN_FORCE["float32"]]


def precisions(program: str) -> list[list[str]]:
    """Those of each product and convolution of a program, by its text."""
    lines = [line for line in program.splitlines() if re.search(r"stablehlo\.(convolution|dot_general)", line)]
    return [re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", line) for line in lines]


@pytest.mark.parametrize("make", [small_config, small_adm_config])
@pytest.mark.parametrize("precision", DEFAULT)
def test_every_product_of_jaxs_sampling_says_its_precision(make: Callable[[], Config], precision: str) -> None:
    """Of the network alone, of the consistency function, and of samples in two steps."""
    config = replace(make(), train={"precision": precision})
    _, params, constants = jax_state.abstract_network(config)
    channels, height, width = config.data.shape
    x, numbers, labels = np.zeros((2, height, width, channels), np.float32), np.ones(2, np.float32), np.zeros(2, int)
    noises = np.zeros((2, 2, *x.shape[1:]), np.float32)
    for lowered in (
        jax_sample._network.lower(config, params, constants, x, numbers, labels),
        jax_sample._consistency.lower(config, params, constants, x, numbers, labels, guidance=1.0),
        jax_sample._sample.lower(
            config, params, constants, noises, labels, sigmas=(80.0, 1.0), clip_steps=False, guidance=1.0
        ),
    ):
        found = precisions(lowered.as_text())
        assert len(found) > 8
        assert all(each == DEFAULT[precision] for each in found)


@pytest.mark.parametrize("make", [small_config, small_adm_config])
@pytest.mark.parametrize("precision", DEFAULT)
def test_every_product_of_jaxs_step_says_its_precision(make: Callable[[], Config], precision: str) -> None:
    """In the program that XLA is given: there are no products without."""
    config, mesh = replace(make(), train={"precision": precision}), jax_devices("cpu:0")
    state = jax.eval_shape(lambda: jax_state.init_state(config, mesh))
    draws = jax_batch.to_device([plan_step(config, 0, 10)], mesh)
    channels, height, width = config.data.shape
    images, labels = jax.ShapeDtypeStruct((10, height, width, channels), np.uint8), np.arange(10, dtype=np.int32) % 3
    text = jax_dispatch.train_steps.lower(state, config, draws, images, labels, mesh).as_text()
    found = precisions(text)
    assert len(found) > 20
    assert all(each == DEFAULT[precision] for each in found)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_runs_of_both_backends_are_one_run(precision: str, tmp_path: Path) -> None:
    """From the same weights: the same images, flips, levels, noise and dropout masks lead to the same weights.

    Five steps: later ones divide by the root of the second moment, and gradients that are 0 but for rounding count.
    """
    train = {"total_steps": 5, "precision": precision, "log_every": 1}
    config = small_config(network={"dropout": 0.3}, train=train)
    arrays, found = random_arrays(config), {}
    for backend in ("torch", "jax"):
        run = weights_run(arrays, config, tmp_path / backend)
        load_backend(backend).train(config, data_of(config), run, device="cpu", resume=True)
        found[backend] = load_checkpoint(run.latest_checkpoint()).params
    moved, apart = (
        np.sqrt(sum(np.sum((a[name] - b[name]).astype(float) ** 2) for name in arrays))
        for a, b in ((found["torch"], arrays), (found["torch"], found["jax"]))
    )
    assert 0 < apart < {"float32": 2e-5, "bf16": 0.1}[precision] * moved
