"""What the recipe is compared with is the same in both backends, from distances and teachers to the optimiser."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from twins import Twins, assert_all_close, assert_close, jax_batch, numpy_batch, small_config, torch_batch, twins

from ict_backends.jax import step as jax_step
from ict_backends.jax.batch import draw_noise as jax_draw_noise
from ict_backends.jax.device import check_device as jax_devices
from ict_backends.jax.weights import from_checkpoint as jax_from_checkpoint
from ict_backends.jax.weights import to_checkpoint as jax_to_checkpoint
from ict_backends.runs.checkpoint import Checkpoint
from ict_backends.torch import step as torch_step
from ict_backends.torch.batch import draw_noise as torch_draw_noise
from ict_backends.torch.parallel import Processes
from ict_backends.torch.weights import from_checkpoint as torch_from_checkpoint
from ict_backends.torch.weights import to_checkpoint as torch_to_checkpoint
from ict_backends.training.step_plan import plan_step
from ict_core import Config, key_words

STEPS = 8
advance = jax.jit(jax_step.train_step, static_argnums=1)

OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "recipe": {},
    "l2": {"loss": {"distance": "l2"}},
    "l1": {"loss": {"distance": "l1"}},
    "pseudo_huber_elementwise": {"loss": {"distance": "pseudo_huber_elementwise"}},
    "one": {"loss": {"weighting": "one"}},
    "snr": {"loss": {"weighting": "snr"}},
    "snr_plus_one": {"loss": {"weighting": "snr_plus_one"}},
    "truncated_snr": {"loss": {"weighting": "truncated_snr"}},
    "edm": {"loss": {"weighting": "edm"}},
    "uniform": {"noise": {"law": "uniform"}},
    "fixed": {"curriculum": {"schedule": "fixed"}},
    "cm": {"curriculum": {"schedule": "cm"}},
    "gap": {"curriculum": {"schedule": "gap"}},
    "gap, q": {"curriculum": {"schedule": "gap", "gap_q": 3.0}},
    "gap, k": {"curriculum": {"schedule": "gap", "gap_k": 2.0}},
    "gap, b": {"curriculum": {"schedule": "gap", "gap_b": 3.0}},
    "gap, stages": {"curriculum": {"schedule": "gap", "gap_stages": 3}},
    "gap, limit": {"curriculum": {"schedule": "gap", "gap_limit": 0.6}},
    "diffusion": {"curriculum": {"schedule": "diffusion"}, "loss": {"distance": "l2", "weighting": "edm"}},
    "label dropout": {"train": {"label_dropout": 0.5}},
    "constant teacher": {"teacher": {"decay": 0.5}},
    "adaptive teacher": {"teacher": {"decay": 0.5, "schedule": "adaptive"}},
    "original method": {
        "loss": {"distance": "l2", "weighting": "one"},
        "noise": {"law": "uniform"},
        "curriculum": {"schedule": "cm", "s1": 6},
        "teacher": {"decay": 0.9, "schedule": "adaptive"},
        "network": {"embedding_scale": 16.0},
    },
    "warm-up": {"train": {"warmup_steps": 16}},
    "linear": {"train": {"rate_decay": "linear"}},
    "cosine": {"train": {"rate_decay": "cosine", "rate_decay_from": 10}},
    "inverse_sqrt": {"train": {"rate_decay": "inverse_sqrt", "rate_decay_from": 8}},
    "adam": {"train": {"optimizer": "adam"}},
    "adamw": {"train": {"optimizer": "adamw", "weight_decay": 0.5}},
    "weight decay": {"train": {"weight_decay": 0.5}},
    "clipping": {"train": {"clip_norm": 0.1}},
    "another optimiser": {
        "train": {
            "optimizer": "adamw",
            "weight_decay": 0.1,
            "clip_norm": 1.0,
            "warmup_steps": 14,
            "rate_decay": "cosine",
            "betas": [0.9, 0.99],
        }
    },
}


def compiled_for(config: Config) -> Config:
    """The settings that JAX compiles a step for; those that only the plan of a step reads are the recipe's."""
    recipe = small_config()
    return dataclasses.replace(
        config,
        noise=dataclasses.replace(config.noise, law=recipe.noise.law),
        loss=dataclasses.replace(config.loss, weighting=recipe.loss.weighting),
        curriculum=recipe.curriculum if config.curriculum.has_teacher else config.curriculum,
        teacher=dataclasses.replace(config.teacher, schedule=recipe.teacher.schedule),
        train=dataclasses.replace(
            config.train, warmup_steps=0, rate_decay="none", rate_decay_from=0, label_dropout=0.0
        ),
    )


def do_steps(both: Twins, config: Config, steps: range) -> tuple[Twins, list[tuple[np.ndarray, np.ndarray]]]:
    """The same steps in both, and the losses and norm of each."""
    ours, theirs = both
    results = []
    for step in steps:
        arrays, plan = numpy_batch(config, step, "float64"), plan_step(config, step, 10)
        decay, rate = plan.teacher_decay, plan.learning_rate
        result = torch_step.train_step(ours, config, [torch_batch(arrays)], teacher_decay=decay, learning_rate=rate)
        theirs, theirs_result = advance(theirs, compiled_for(config), jax_batch(arrays), 1.0 - decay, rate)
        results.append((numbers(theirs_result), numbers(result)))
    return Twins(ours, theirs), results


def numbers(result: Any) -> np.ndarray:
    """The losses and the norm of a step's gradient, [b + 1]."""
    return np.append(np.asarray(result.losses), np.asarray(result.grad_norm))


class End(NamedTuple):
    """What the steps of an option led to in each backend, and the losses and norms on the way."""

    torch: Checkpoint
    jax: Checkpoint
    results: list[tuple[np.ndarray, np.ndarray]]


@lru_cache
def end_of(name: str) -> End:
    config = small_config(**OPTIONS[name])
    with jax.enable_x64(True):
        both, results = do_steps(twins(config, "float64"), config, range(12, 12 + STEPS))
        return End(torch_to_checkpoint(both.torch), jax_to_checkpoint(config, both.jax, jax_devices("cpu")), results)


# The last ones first: a stage with a few levels has a network for a teacher.
@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_steps_lead_to_the_same_weights(name: str) -> None:
    end = end_of(name)
    for theirs, ours in end.results:
        assert_close(theirs, ours, 1e-8)
    for group in ("params", "ema", "teacher"):
        assert_all_close(getattr(end.jax, group), getattr(end.torch, group), 1e-9)
    assert bool(end.torch.teacher) == small_config(**OPTIONS[name]).teacher.averaged


def test_each_option_changes_what_is_learnt() -> None:
    """No two of them lead to the same weights."""
    flat = {name: np.concatenate([a.ravel() for a in end_of(name).torch.params.values()]) for name in OPTIONS}
    names = list(flat)
    same = [(a, b) for i, a in enumerate(names) for b in names[:i] if np.allclose(flat[a], flat[b], rtol=0, atol=1e-9)]
    assert same == []


def test_the_norm_that_is_logged_is_that_before_clipping() -> None:
    first = [end_of(name).results[0][1] for name in ("recipe", "clipping")]
    np.testing.assert_array_equal(*first)
    assert first[0][-1] > small_config(**OPTIONS["clipping"]).train.clip_norm


@pytest.mark.parametrize("first", ["torch", "jax"])
def test_a_checkpoint_carries_the_teacher_to_the_other_backend(first: str) -> None:
    """Four steps, a checkpoint, and two more in both: the teacher's weights go along, and matter."""
    config, mesh, cpu = small_config(teacher={"decay": 0.9}), jax_devices("cpu"), Processes(torch.device("cpu"))

    def run(both: Twins, steps: range) -> Twins:
        ours, theirs = both
        for step in steps:
            arrays = numpy_batch(config, step, "float32")
            torch_step.train_step(ours, config, [torch_batch(arrays)], teacher_decay=0.9)
            theirs, _ = advance(theirs, config, jax_batch(arrays), 0.1)
        return Twins(ours, theirs)

    def go_on(checkpoint: Checkpoint) -> list[Checkpoint]:
        states = (
            torch_from_checkpoint(config, checkpoint, cpu, "it"),
            jax_from_checkpoint(config, checkpoint, mesh, "it"),
        )
        ours, theirs = run(Twins(*states), range(16, 18))
        return [torch_to_checkpoint(ours), jax_to_checkpoint(config, theirs, mesh)]

    ours, theirs = run(twins(config, "float32"), range(12, 16))
    whole = torch_to_checkpoint(ours) if first == "torch" else jax_to_checkpoint(config, theirs, mesh)
    expected, found = go_on(whole)
    for group in ("params", "teacher"):
        assert_all_close(getattr(found, group), getattr(expected, group), 1e-5)
    other, _ = go_on(whole._replace(teacher=whole.params))
    with pytest.raises(AssertionError, match="relative difference"):
        assert_all_close(other.params, expected.params, 1e-5)


def test_a_teacher_follows_by_its_decay() -> None:
    """teacher <- mu teacher + (1 - mu) student after the student's step; what it gives has no gradient."""
    config = small_config(teacher={"decay": 0.75})
    both = twins(config, "float64")
    before = torch_to_checkpoint(both.torch)
    with jax.enable_x64(True):
        both, _ = do_steps(both, config, range(12, 13))
    after = torch_to_checkpoint(both.torch)
    expected = {n: 0.75 * before.teacher[n] + 0.25 * after.params[n] for n in before.params}
    assert_all_close(after.teacher, expected, 1e-12)
    assert all(p.grad is None for p in both.torch.teacher.network.parameters())


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_masks_are_shared_unless_asked_otherwise(backend: str) -> None:
    draw = {"torch": torch_masks, "jax": jax_masks}[backend]
    for shared in (True, False):
        config = small_config(network={"dropout": 0.4}, teacher={"share_dropout": shared})
        student, teacher = draw(config)
        assert len(student) == len(teacher) > 0
        assert [m.shape for m in student] == [m.shape for m in teacher]
        assert all(np.array_equal(a, b) == shared for a, b in zip(student, teacher, strict=True))
    assert draw(small_config(teacher={"share_dropout": False})) == (None, None)


def torch_masks(config: Config) -> tuple[Any, Any]:
    _, *masks = torch_draw_noise(config, torch.from_numpy(key_words(plan_step(config, 0, 10).row_seeds)))
    return tuple(None if m is None else [a.numpy() for a in m] for m in masks)


def jax_masks(config: Config) -> tuple[Any, Any]:
    _, *masks = jax_draw_noise(config, jnp.asarray(key_words(plan_step(config, 0, 10).row_seeds)))
    return tuple(None if m is None else [np.asarray(a) for a in m] for m in masks)
