"""One training step, in JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

from ict_backends.jax.networks import UNet, in_precision
from ict_backends.jax.state import TrainState, make_optimizer, merge_network
from ict_core import Batch, Config, ConsistencyLoss, next_loss_scale, objective
from ict_core.loss import ConsistencyFunction

# Added to a gradient's norm before it divides, as torch's `clip_grad_norm_` does.
_CLIP_EPS = 1e-6


class StepResult(NamedTuple):
    """The results of a step for the log; those of several steps have one axis more, [steps, ...], in front.

    Attributes:
        losses: [b] float32 weighted losses.
        grad_norm: [] norm of the gradient.
    """

    losses: Array
    grad_norm: Array


def consistency_function(
    network: UNet, config: Config, labels: Array | None = None, masks: Sequence[Array] | None = None
) -> ConsistencyFunction:
    """The consistency function f(x, sigma) of a network that computes in `train.precision`.

    Args:
        network: the free network F.
        labels: [b] integers; None for an unconditional network.
        masks: dropout masks, as the network takes them; None for no dropout.
    """
    return objective.consistency_function(in_precision(network, config), config.noise, labels, masks, xp=jnp)


def batch_loss(network: UNet, config: Config, batch: Batch, teacher: UNet | None = None) -> ConsistencyLoss:
    """The objective of a batch of b images: its mean, and [b] weighted losses.

    Args:
        network: the student's network, and the teacher's unless there is a `teacher`.
        batch: the images, noise, levels, weights, labels and masks.
        teacher: the network of a teacher that has weights of its own.
    """
    return objective.batch_loss(
        in_precision(network, config),
        config,
        batch,
        without_gradient=_without_gradient,
        teacher=None if teacher is None else in_precision(teacher, config),
        xp=jnp,
    )


def _without_gradient(f: ConsistencyFunction) -> ConsistencyFunction:
    return lambda x, sigma: jax.lax.stop_gradient(f(x, sigma))


def train_step(
    state: TrainState,
    config: Config,
    batch: Batch,
    teacher_rate: float | Array = 1.0,
    learning_rate: float | Array | None = None,
    average_rates: Mapping[str, float | Array] | None = None,
) -> tuple[TrainState, StepResult]:
    """The state after one more step over a batch, and the step's results.

    Args:
        batch: images [b, h, w, c] and what belongs to them.
        teacher_rate: 1 - the decay of the teacher's weights as an average of the student's, if it has its own weights.
        learning_rate: the learning rate of this step; None for `train.learning_rate`.
        average_rates: 1 - the decays of the averages of `train.ema_sigma_rel`, by their names; None if there are none.
    """
    gradient, losses = loss_gradient(state, config, batch)
    return apply_gradient(state, config, gradient, losses, teacher_rate, learning_rate, average_rates)


def loss_gradient(state: TrainState, config: Config, batch: Batch, parts: int = 1) -> tuple[nnx.State, Array]:
    """The gradient of a batch's mean loss, divided by `parts`, and its losses, [b].

    The gradients of `parts` batches of equal size add up to that of the whole.
    """
    scale = state.loss_scale
    teacher = None if state.teacher is None else merge_network(config, state.teacher, state.constants)

    def loss(params: nnx.State) -> tuple[Array, Array]:
        result = batch_loss(merge_network(config, params, state.constants), config, batch, teacher)
        return result.mean * ((1.0 if scale is None else scale.factor) / parts), result.per_sample

    gradient, losses = jax.grad(loss, has_aux=True)(state.params)
    return (gradient if scale is None else jax.tree.map(lambda g: g / scale.factor, gradient)), losses


def apply_gradient(
    state: TrainState,
    config: Config,
    gradient: nnx.State,
    losses: Array,
    teacher_rate: float | Array,
    learning_rate: float | Array | None = None,
    average_rates: Mapping[str, float | Array] | None = None,
) -> tuple[TrainState, StepResult]:
    """The state after a step with this gradient, and the step's results.

    If the gradient is not finite, the weights stay as they are, provided that `train.on_nonfinite` is "skip" or the
    loss is scaled; the averages of `train.ema_sigma_rel`, which are of the weights after every step, count them once
    more. A gradient whose norm is larger than `train.clip_norm`, unless that is 0, is scaled down to it; the
    norm of the results is that before.

    Args:
        gradient: in the shapes of the weights.
        losses: [b], passed through to the results.
        teacher_rate, learning_rate, average_rates: as for `train_step`.
    """
    norm, scale = optax.tree_utils.tree_norm(gradient), state.loss_scale
    if config.train.clip_norm:
        share = jnp.minimum(config.train.clip_norm / (norm + _CLIP_EPS), 1.0)
        gradient = jax.tree.map(lambda g: share * g, gradient)
    rate = config.train.learning_rate if learning_rate is None else learning_rate
    updates, optimizer = make_optimizer(config).update(gradient, state.optimizer, state.params, learning_rate=rate)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, params, 1.0 - config.train.ema_decay)
    teacher = None if state.teacher is None else update_ema(state.teacher, params, teacher_rate)
    after = TrainState(state.step + 1, params, ema, optimizer, state.constants, scale, teacher, state.averages)
    finite = jnp.isfinite(norm)
    if config.train.on_nonfinite == "skip" or scale is not None:
        after = jax.tree.map(lambda new, old: _where_finite(finite, new, old), after, state)
    if scale is not None:
        after = after._replace(loss_scale=next_loss_scale(scale, finite, xp=jnp))
    rates = average_rates or {}
    after = after._replace(averages={k: _update_average(state.averages[k], after.params, rates[k]) for k in rates})
    return after, StepResult(losses, norm)


def _where_finite(finite: Array, new: Array, old: Array) -> Array:
    """The new value if `finite`, [] bool, else the old one. Integers count steps, and are always the new ones."""
    return jnp.where(finite, new, old) if jnp.issubdtype(new.dtype, jnp.floating) else new


def _update_average(average: nnx.State, params: nnx.State, rate: float | Array) -> nnx.State:
    """As `update_ema`, but exactly the params where rate = 1: the first step leaves nothing of the initial weights."""
    return jax.tree.map(
        lambda e, p: jnp.where(jnp.asarray(rate) < 0.5, e + rate * (p - e), p - (1.0 - rate) * (p - e)), average, params
    )


def update_ema(ema: nnx.State, params: nnx.State, rate: float | Array) -> nnx.State:
    """The updated average, (1 - rate) ema + rate params."""
    return jax.tree.map(lambda e, p: e + rate * (p - e), ema, params)
