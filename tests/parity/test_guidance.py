"""Images without a class, and guidance, are the same in both backends and both networks."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import assert_close, jax_weights, nchw, nhwc, small_adm_config, small_config, torch_network

from ict_backends.jax import batch as jax_batch
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.jax.sample import LoadedModel as JaxModel
from ict_backends.jax.state import merge_network
from ict_backends.torch import batch as torch_batch
from ict_backends.torch.networks import UNet, make_network
from ict_backends.torch.sample import LoadedModel as TorchModel
from ict_backends.training.step_plan import plan_step
from ict_core import NO_CLASS, Config
from ict_core.settings import replace

# ADM with two channels a group: a group of one forgets what the embedding adds to it.
CONFIGS = {"ncsnpp": small_config(), "adm": replace(small_adm_config(), network={"channels": 64})}
TABLE = "embedding.labels.weight"


def without_classes(config: Config, network: UNet) -> tuple[Config, UNet]:
    """The same network without its table of classes."""
    unconditional = replace(config, network={"num_classes": 0})
    other = make_network(unconditional).double()
    other.load_state_dict({name: value for name, value in network.state_dict().items() if name != TABLE})
    return unconditional, other


def evaluate(backend: str, config: Config, network: UNet, labels: np.ndarray | None) -> np.ndarray:
    """F of four images of random numbers, float64."""
    rng = np.random.default_rng(0)
    x, c_noise = rng.standard_normal((4, *config.data.shape)), rng.uniform(-1, 1, 4)
    if backend == "torch":
        with torch.no_grad():
            given = None if labels is None else torch.from_numpy(labels)
            return network(torch.from_numpy(x), torch.from_numpy(c_noise), given).numpy()
    weights = jax_weights(config, network, "float64")
    forward = jax.jit(lambda *w: merge_network(config, *w[:2])(*w[2:]))
    return nchw(forward(*weights, nhwc(x), jnp.asarray(c_noise), None if labels is None else jnp.asarray(labels)))


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("family", CONFIGS)
def test_the_row_of_no_class_is_zero(family: str, backend: str) -> None:
    """An image without a class gets what a network without the table of classes gives; its neighbour does not."""
    config = CONFIGS[family]
    with jax.enable_x64(True):
        network = torch_network(config, "float64")
        expected = evaluate(backend, *without_classes(config, network), None)
        found = evaluate(backend, config, network, np.array([NO_CLASS, 0, NO_CLASS, 2]))
        classes = evaluate(backend, config, network, np.array([1, 0, 0, 2]))
    assert_close(found[::2], expected[::2], 1e-12)
    assert_close(found[1::2], classes[1::2], 1e-12)
    assert not np.allclose(classes, expected, rtol=0, atol=1e-3)


def test_both_drop_the_labels_of_the_plan() -> None:
    config = small_config(train={"label_dropout": 0.5, "batch_size": 8})
    plan = plan_step(config, 3, 10)
    labels, images = np.arange(10) % 3, np.zeros((10, 3, 4, 4), np.uint8)
    expected = np.where(plan.unlabelled, NO_CLASS, labels[plan.indices])
    assert set(plan.unlabelled) == {False, True}
    draw = torch_batch.to_device(plan, torch.device("cpu"))
    for part, rows in zip(draw.parts(2), np.split(expected, 2), strict=True):
        found = torch_batch.make_batch(config, part, torch.from_numpy(images), torch.from_numpy(labels)).labels
        assert (found.dtype, found.tolist()) == (torch.int64, rows.tolist())
    draws = jax_batch.to_device([plan], jax_devices("cpu"), parts=2)
    for part, rows in enumerate(np.split(expected, 2)):
        draw = jax.tree.map(lambda a, part=part: a[0, part], draws)
        found = jax_batch.make_batch(config, draw, jnp.zeros((10, 4, 4, 3), jnp.uint8), jnp.asarray(labels)).labels
        assert found.tolist() == rows.tolist()


def models(config: Config) -> dict[str, Any]:
    network = torch_network(config, "float32")
    weights = jax_weights(config, network, "float32")
    return {"torch": TorchModel(config, network), "jax": JaxModel(config, *weights, jax_devices("cpu"))}


def test_guided_samples_are_the_same_in_both() -> None:
    config, rng = small_config(), np.random.default_rng(0)
    both, labels = models(config), np.arange(4) % 3
    noises = rng.standard_normal((2, 4, *config.data.shape)).astype(np.float32)
    draw = {name: partial(model.sample, noises, [80.0, 1.0], labels) for name, model in both.items()}
    ours, theirs = (draw[name](guidance=2.5) for name in ("torch", "jax"))
    assert_close(theirs, ours, 1e-5)
    assert not np.allclose(ours, draw["torch"](), rtol=0, atol=0.01)
    for name, model in both.items():
        np.testing.assert_array_equal(draw[name](guidance=1), draw[name]())
        none = np.full(4, NO_CLASS)
        np.testing.assert_array_equal(draw[name](guidance=0), model.sample(noises, [80.0, 1.0], none))


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_guidance_moves_away_from_what_is_without_a_class(backend: str) -> None:
    config = small_config()
    model, rng, labels = models(config)[backend], np.random.default_rng(0), np.array([2, 0])
    x, sigma = rng.standard_normal((2, *config.data.shape)), np.array([1.0, 80.0])
    f, f_null = model.consistency(x, sigma, labels), model.consistency(x, sigma, np.full(2, NO_CLASS))
    assert_close(model.consistency(x, sigma, labels, guidance=3.0), f_null + 3 * (f - f_null), 1e-5)
