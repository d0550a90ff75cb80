"""Dispatching training steps to XLA: several at once, or one in parts, with donated and placed buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from ict_backends.jax.batch import Draw, make_batch
from ict_backends.jax.device import on_cpu, replicated
from ict_backends.jax.state import TrainState, state_shardings
from ict_backends.jax.step import StepResult, apply_gradient, loss_gradient, train_step
from ict_backends.training.step_plan import late_step
from ict_core import Batch, Config

# More steps in one dispatch would delay the log and gain nothing measurable. On the CPU, where a dispatch costs a
# thousandth of a step, XLA runs the convolutions inside a loop about nine times slower than outside of one.
_MOST_STEPS, _MOST_STEPS_ON_CPU = 8, 1

# A function from a state, draws [steps, parts, ...], images [n, h, w, c] uint8 and labels [n] or None to the state
# after these steps and their results.
Steps = Callable[[TrainState, Config, Draw, Array, Array | None, Mesh], tuple[TrainState, StepResult]]


def steps_per_dispatch(config: Config, mesh: Mesh, first: int = 0) -> int:
    """The number of steps of one dispatch: at most 8, and 1 on the CPU.

    It is the largest number that divides all intervals between logs, checkpoints, samples and evaluations, the total
    number of steps, `first`, the step that training starts from, and the first step in `train.late_precision`.
    """
    train = config.train
    most = _MOST_STEPS_ON_CPU if on_cpu(mesh) else _MOST_STEPS
    common = math.gcd(
        first,
        train.total_steps,
        train.log_every,
        train.checkpoint_every,
        train.sample_every,
        config.eval.every,
        late_step(config),
    )
    return max(n for n in range(1, most + 1) if common % n == 0)


def steps_for(mesh: Mesh, parts: int) -> Steps:
    """The faster function for steps of `parts` micro-batches: `train_steps`, or `train_step_in_parts` on the CPU."""
    return train_step_in_parts if on_cpu(mesh) and parts > 1 else train_steps


@partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="state")
def train_steps(
    state: TrainState, config: Config, draws: Draw, images: Array, labels: Array | None, mesh: Mesh
) -> tuple[TrainState, StepResult]:
    """Advance by all steps of `draws` in one dispatch, each step over its parts, without waiting for the result.

    Args:
        state: cannot be used afterwards: its buffers become the new state's.
        draws: [steps, parts, b / parts, ...].
        images: [n, h, w, c] uint8.
        labels: [n] integers, or None.
        mesh: the devices of the state and the draws.

    Returns:
        The new state, and the results: losses [steps, b] and norms of the gradient [steps], on every device.
    """

    def one(state: TrainState, draw: Draw) -> tuple[TrainState, StepResult]:
        parts = len(draw.indices)

        def add(total: nnx.State, part: Draw) -> tuple[nnx.State, Array]:
            return _add_gradient(total, state, config, make_batch(config, part, images, labels), parts)

        if parts == 1:
            only = _first(draw)
            batch = make_batch(config, only, images, labels)
            return train_step(state, config, batch, *_rates(only))
        gradient, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state.params), draw)
        return apply_gradient(state, config, gradient, losses.reshape(-1), *_rates(_first(draw)))

    if len(draws.indices) > 1:
        state, results = jax.lax.scan(one, state, draws)
    else:
        state, result = one(state, _first(draws))
        results = jax.tree.map(lambda array: array[None], result)
    return _constrain(state, results, config, mesh)


def train_step_in_parts(
    state: TrainState, config: Config, draws: Draw, images: Array, labels: Array | None, mesh: Mesh
) -> tuple[TrainState, StepResult]:
    """Advance by the one step of `draws`, with a dispatch for each of its parts.

    This is for the CPU, where XLA runs convolutions inside a loop about nine times slower than outside of one.
    Arguments and results are those of `train_steps`, with draws [1, parts, b / parts, ...]; the buffers of `state` are
    given up.
    """
    total, losses, parts = jax.tree.map(jnp.zeros_like, state.params), [], draws.indices.shape[1]
    for i in range(parts):
        draw = jax.tree.map(lambda array, part=i: array[0, part], draws)
        total, part_losses = _add_part(total, state, config, draw, images, labels, parts)
        losses.append(part_losses)
    return _finish_step(state, config, total, losses, *_rates(_first(_first(draws))), mesh)


@partial(jax.jit, static_argnames=("config", "parts"), donate_argnames="total")
def _add_part(
    total: nnx.State, state: TrainState, config: Config, draw: Draw, images: Array, labels: Array | None, parts: int
) -> tuple[nnx.State, Array]:
    return _add_gradient(total, state, config, make_batch(config, draw, images, labels), parts)


@partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="state")
def _finish_step(
    state: TrainState,
    config: Config,
    gradient: nnx.State,
    losses: Sequence[Array],
    teacher_rate: Array,
    learning_rate: Array,
    average_rates: dict[str, Array],
    mesh: Mesh,
) -> tuple[TrainState, StepResult]:
    gathered = jnp.concatenate(losses)
    state, result = apply_gradient(state, config, gradient, gathered, teacher_rate, learning_rate, average_rates)
    return _constrain(state, jax.tree.map(lambda array: array[None], result), config, mesh)


def _add_gradient(
    total: nnx.State, state: TrainState, config: Config, batch: Batch, parts: int
) -> tuple[nnx.State, Array]:
    """A sum of gradients plus that of one more of `parts` equally large batches, and the losses of this batch, [b]."""
    gradient, losses = loss_gradient(state, config, batch, parts)
    return jax.tree.map(jnp.add, total, gradient), losses


def _rates(draw: Draw) -> tuple[Array, Array, dict[str, Array]]:
    return draw.teacher_rate, draw.learning_rate, draw.average_rates


def _first(draws: Draw) -> Draw:
    return jax.tree.map(lambda array: array[0], draws)


def _constrain(state: TrainState, results: StepResult, config: Config, mesh: Mesh) -> tuple[TrainState, StepResult]:
    """The same arrays, each with its sharding: that of `state_shardings`, and results whole on every device."""
    state = jax.lax.with_sharding_constraint(state, state_shardings(config, state, mesh))
    return state, jax.lax.with_sharding_constraint(results, replicated(mesh))
