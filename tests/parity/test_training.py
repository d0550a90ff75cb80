"""A training step is the same step in both backends: loss, gradient, RAdam, EMA, over several stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity_profile import COMPILED
from twins import (
    Arrays,
    Twins,
    assert_all_close,
    assert_close,
    compiled_gradient,
    jax_batch,
    jax_gradient,
    numpy_batch,
    small_adm_config,
    small_config,
    torch_batch,
    torch_gradient,
    twins,
)

from ict_backends.jax import step as jax_step
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.jax.state import init_state
from ict_backends.jax.weights import from_checkpoint as jax_from_checkpoint
from ict_backends.jax.weights import to_arrays as jax_to_arrays
from ict_backends.jax.weights import to_checkpoint as jax_to_checkpoint
from ict_backends.networks.families import mask_shapes
from ict_backends.torch import step as torch_step
from ict_backends.torch.parallel import Processes
from ict_backends.torch.state import init_state as torch_init_state
from ict_backends.torch.weights import from_checkpoint as torch_from_checkpoint
from ict_backends.torch.weights import to_arrays as torch_to_arrays
from ict_backends.torch.weights import to_checkpoint as torch_to_checkpoint
from ict_backends.training.step_plan import plan_step
from ict_core import Config, huber_constant, objective, pseudo_huber_elementwise

DROPOUT = 0.4
# Of what three steps change in float32, which is a thousandth of the weights.
CHANGE_TOLERANCE = 3e-3
GRADIENT_TOLERANCES = {"float64": 1e-10, "float32": 1e-4}
advance = jax.jit(jax_step.train_step, static_argnums=1)


def test_the_initial_weights_do_not_depend_on_jaxs_default_generator() -> None:
    """JAX_DEFAULT_PRNG_IMPL may name another one, whose keys have another size."""
    config, mesh = small_config(), jax_devices("cpu")
    first = jax_to_checkpoint(config, init_state(config, mesh), mesh).params
    with jax.default_prng_impl("rbg"):
        again = jax_to_checkpoint(config, init_state(config, mesh), mesh).params
    assert all(np.array_equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_initial_weights_and_large_seeds(backend: str) -> None:
    """Torch draws them by the lower 32 bits of a seed, as `train.seed` says; JAX by all."""
    mesh, cpu, found = jax_devices("cpu"), Processes(torch.device("cpu")), []
    for seed in (5, 5 + 2**32):
        config = small_config(train={"seed": seed})
        if backend == "jax":
            found.append(jax_to_checkpoint(config, init_state(config, mesh), mesh).params)
        else:
            found.append(torch_to_checkpoint(torch_init_state(config, cpu)).params)
    same = all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
    assert same == (backend == "torch")


def change(after: Arrays, before: Arrays) -> dict[str, np.ndarray]:
    """What some steps did to each array."""
    return {name: value - before[name] for name, value in after.items()}


def draw_masks(config: Config, seed: int) -> list[np.ndarray] | None:
    """[b, c, h, w] masks for both backends."""
    if not config.network.dropout:
        return None
    rng = np.random.default_rng(seed)
    return [rng.random((config.train.batch_size, *s)) >= config.network.dropout for s in mask_shapes(config)]


def assert_gradients_agree(both: Twins, config: Config, dtype: str, seed: int) -> None:
    """Loss and gradient of one batch, with the same dropout masks."""
    arrays, masks = numpy_batch(config, seed % config.train.total_steps, dtype), draw_masks(config, seed)
    losses, gradient = torch_gradient(both.torch, config, torch_batch(arrays, masks))
    found_losses, found = jax_gradient(both.jax, config, jax_batch(arrays, masks))
    assert_close(found_losses, losses, GRADIENT_TOLERANCES[dtype])
    assert_all_close(found, gradient, GRADIENT_TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", GRADIENT_TOLERANCES)
@settings(max_examples=COMPILED.max_examples)
@given(seed=st.integers(0, 2**20))
def test_a_step_has_the_same_loss_and_gradient_with_the_same_masks(dtype: str, seed: int) -> None:
    """For drawn weights, images, noise, levels of any stage and masks."""
    config = small_config(network={"dropout": DROPOUT})
    with jax.enable_x64(dtype == "float64"):
        assert_gradients_agree(twins(config, dtype, seed), config, dtype, seed)


def test_a_step_of_adm_agrees_too() -> None:
    config = small_adm_config()
    with jax.enable_x64(True):
        assert_gradients_agree(twins(config, "float64", 1), config, "float64", 23)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_twenty_steps_of_radam_across_two_stage_changes_agree(dtype: str, tolerance: float) -> None:
    """Losses, weights and EMA; the rectification sets in at the sixth step."""
    config, stages = small_config(), set()
    with jax.enable_x64(dtype == "float64"):
        ours, theirs = twins(config, dtype)
        for step in range(20):
            arrays = numpy_batch(config, step, dtype)
            stages.add(plan_step(config, step, 10).n)
            losses = torch_step.train_step(ours, config, [torch_batch(arrays)]).losses
            theirs, found = advance(theirs, config, jax_batch(arrays))
            assert_close(np.asarray(found.losses), losses.numpy(), 100 * tolerance)
        assert len(stages) >= 3
        assert int(theirs.step) == ours.step == 20
        for state, network in ((theirs.params, ours.params.network), (theirs.ema, ours.ema.network)):
            assert_all_close(jax_to_arrays(state, theirs.constants), torch_to_arrays(network), tolerance)


@pytest.mark.parametrize("first", ["torch", "jax"])
def test_a_checkpoint_carries_the_optimiser_to_the_other_backend(first: str) -> None:
    """Seven steps, a checkpoint, and three more in both on the same batches: moments and step count are the same."""
    config, mesh, cpu = small_config(), jax_devices("cpu"), Processes(torch.device("cpu"))
    ours, theirs = twins(config, "float32")

    def run(ours: Any, theirs: Any, steps: range) -> Twins:
        for step in steps:
            arrays = numpy_batch(config, step, "float32")
            torch_step.train_step(ours, config, [torch_batch(arrays)])
            theirs, _ = advance(theirs, config, jax_batch(arrays))
        return Twins(ours, theirs)

    ours, theirs = run(ours, theirs, range(7))
    if first == "torch":
        theirs = jax_from_checkpoint(config, torch_to_checkpoint(ours), mesh, "it")
    else:
        ours = torch_from_checkpoint(config, jax_to_checkpoint(config, theirs, mesh), cpu, "it")
    assert int(theirs.step) == ours.step == 7
    before = torch_to_arrays(ours.params.network)
    ours, theirs = run(ours, theirs, range(7, 10))
    expected, found = torch_to_checkpoint(ours), jax_to_checkpoint(config, theirs, mesh)
    assert found.step == expected.step == 10
    assert_all_close(change(found.params, before), change(expected.params, before), CHANGE_TOLERANCE)
    for group in ("ema", "first_moment", "second_moment"):
        assert_all_close(getattr(found, group), getattr(expected, group), CHANGE_TOLERANCE)


@pytest.mark.parametrize("lost", ["first_moment", "second_moment", "step"])
def test_an_optimiser_without_its_state_would_be_noticed(lost: str) -> None:
    """What the test above rests on: moments or a step count left behind lead to other weights."""
    config, mesh = small_config(), jax_devices("cpu")
    _, theirs = twins(config, "float32")
    for step in range(7):
        theirs, _ = advance(theirs, config, jax_batch(numpy_batch(config, step, "float32")))
    whole, ends = jax_to_checkpoint(config, theirs, mesh), []
    zeros = 0 if lost == "step" else {name: np.zeros_like(a) for name, a in whole.first_moment.items()}
    for checkpoint in (whole, whole._replace(**{lost: zeros})):
        state = jax_from_checkpoint(config, checkpoint, mesh, "it")
        for step in range(7, 10):
            state, _ = advance(state, config, jax_batch(numpy_batch(config, step, "float32")))
        ends.append(jax_to_arrays(state.params))
    with pytest.raises(AssertionError, match="relative difference"):
        assert_all_close(*(change(end, whole.params) for end in ends), 10 * CHANGE_TOLERANCE)


def elementwise_huber_loss(student: Any, teacher: Any, **settings: Any) -> Any:
    """The fault of the open implementations: the distance of each element, summed."""
    c = huber_constant(settings["x"][0].size)
    return core_loss(student, teacher, **settings | {"distance": partial(pseudo_huber_elementwise, c=c)})


def unshared_dropout_loss(student: Any, teacher: Any, **settings: Any) -> Any:
    """Another fault of theirs: the teacher draws masks of its own. Here, its samples have each other's."""

    def rolled(x: Any, sigma: Any) -> Any:
        return jnp.roll(teacher(jnp.roll(x, 1, 0), jnp.roll(sigma, 1, 0)), -1, 0)

    return core_loss(student, rolled, **settings)


def value_loss(*networks: Any, **settings: Any) -> Any:
    loss = core_loss(*networks, **settings)
    return loss._replace(per_sample=loss.per_sample.at[0].multiply(1.001))


def dtype_loss(*networks: Any, **settings: Any) -> Any:
    loss = core_loss(*networks, **settings)
    return loss._replace(per_sample=loss.per_sample.astype(jnp.float16))


def shape_loss(*networks: Any, **settings: Any) -> Any:
    loss = core_loss(*networks, **settings)
    return loss._replace(per_sample=loss.per_sample[:, None])


def swapped_levels_loss(*networks: Any, sigma_lo: Any, sigma_hi: Any, **settings: Any) -> Any:
    return core_loss(*networks, sigma_lo=sigma_hi, sigma_hi=sigma_lo, **settings)


def transposed_loss(*networks: Any, x: Any, **settings: Any) -> Any:
    return core_loss(*networks, x=x.swapaxes(1, 2), **settings)


def leaking_loss(student: Any, teacher: Any, **settings: Any) -> Any:
    """The gradient passes through the teacher too: the values stay the same."""
    return core_loss(student, student, **settings)


core_loss = objective.consistency_loss


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (elementwise_huber_loss, "relative difference:"),
        (unshared_dropout_loss, "relative difference:"),
        (value_loss, "relative difference:"),
        (dtype_loss, "dtype"),
        (shape_loss, "shape"),
        (swapped_levels_loss, "relative difference"),
        (transposed_loss, "relative difference:"),
        (leaking_loss, "relative difference of"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_comparison_of_steps_can_fail(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[..., Any], message: str
) -> None:
    config = small_config(network={"dropout": DROPOUT, "attention_resolutions": []})
    both = twins(config, "float32")
    # The backends share the objective: the fault is in JAX's only.
    faulty = {jnp: fault}
    monkeypatch.setattr(objective, "consistency_loss", lambda *n, **s: faulty.get(s["xp"], core_loss)(*n, **s))
    compiled_gradient.clear_cache()
    with pytest.raises(AssertionError, match=message):
        # A step of the last stage: with few levels the teacher is nearly always at sigma_min, where f is no network.
        assert_gradients_agree(both, config, "float32", seed=23)
    monkeypatch.undo()
    compiled_gradient.clear_cache()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_step_that_is_not_finite_is_skipped_on_request(backend: str) -> None:
    """Weights, average and moments stay as they were; the count of steps goes on, as the next step shows."""
    config, mesh = small_config(train={"on_nonfinite": "skip"}), jax_devices("cpu")
    batches = [numpy_batch(config, step, "float32") for step in range(9)]
    batches[7]["x"][1, 0, 0, 0] = np.nan
    ours, theirs = twins(config, "float32")
    kept = {}
    for step, arrays in enumerate(batches):
        if backend == "torch":
            result = torch_step.train_step(ours, config, [torch_batch(arrays)])
            checkpoint = torch_to_checkpoint(ours)
        else:
            theirs, result = advance(theirs, config, jax_batch(arrays))
            checkpoint = jax_to_checkpoint(config, theirs, mesh)
        assert np.isfinite(float(result.grad_norm)) == (step != 7)
        kept[step] = checkpoint
    assert [checkpoint.step for checkpoint in kept.values()] == list(range(1, 10))
    for group in kept[7]._fields[1:]:
        assert_all_close(getattr(kept[7], group), getattr(kept[6], group), 1e-30)
    # As if the optimiser had resumed from a checkpoint of that step, of which it counts its own by the run's.
    if backend == "torch":
        state = torch_from_checkpoint(config, kept[7], Processes(torch.device("cpu")), "it")
        torch_step.train_step(state, config, [torch_batch(batches[8])])
        expected = torch_to_checkpoint(state)
    else:
        state, _ = advance(jax_from_checkpoint(config, kept[7], mesh, "it"), config, jax_batch(batches[8]))
        expected = jax_to_checkpoint(config, state, mesh)
    assert_all_close(kept[8].params, expected.params, 1e-6)
    with pytest.raises(AssertionError, match="relative difference"):
        assert_all_close(kept[8].params, kept[7].params, 1e-6)
