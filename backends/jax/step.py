"""One training step, in JAX."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from ict_backends.jax.device import float32_as, put, replicated, sharded, split
from ict_backends.jax.networks import Network, make_network
from ict_backends.networks.families import dropped_numbers, mask_shapes
from ict_backends.training.step_plan import StepPlan
from ict_core import (
    Config,
    ConsistencyLoss,
    LossScale,
    consistency_loss,
    consistency_output,
    dropout_bytes,
    huber_constant,
    key_words,
    next_loss_scale,
    normal_noise,
)
from ict_core.loss import ConsistencyFunction
from ict_core.loss_scale import FIRST_FACTOR

# train.precision -> what the network computes in; None for the dtype of its weights.
PRECISIONS = {"float32": None, "tf32": None, "bf16": jnp.bfloat16, "fp16": jnp.float16}


class TrainState(NamedTuple):
    """Everything that training changes, and the constants of the network.

    Attributes:
        step: [] int32 steps done; the next one to do, counted from 0.
        params: the weights in training.
        ema: their moving average, for sampling only.
        optimizer: RAdam's state.
        constants: what is stored with the weights and not trained.
        loss_scale: where the network computes in float16.
        teacher: the teacher's weights, where they are not the student's own.
    """

    step: Array
    params: nnx.State
    ema: nnx.State
    optimizer: optax.OptState
    constants: nnx.State
    loss_scale: LossScale | None = None
    teacher: nnx.State | None = None


@lru_cache(maxsize=8)
def abstract_network(config: Config) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The structure of a configuration's network, and the shapes and dtypes of its weights and its constants.

    `nnx.merge` of the structure with weights and constants is the network again.
    """
    network = nnx.eval_shape(lambda: make_network(config, nnx.Rngs(0)))
    return nnx.split(network, nnx.Param, ...)


def merge_network(config: Config, params: nnx.State, constants: nnx.State) -> Network:
    """A configuration's network with these weights."""
    return nnx.merge(abstract_network(config)[0], params, constants)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """RAdam without clipping or decay."""
    b1, b2 = config.train.betas

    def eps(count: Array) -> Array:
        # Torch adds its 1e-8 to the root of the second moment before the bias correction, optax after it.
        return 1e-8 / jnp.sqrt(1 - b2 ** (count + 1))

    return optax.inject_hyperparams(optax.radam, static_args=("b1", "b2", "learning_rate"))(
        learning_rate=config.train.learning_rate, b1=b1, b2=b2, eps=eps
    )


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """The state before the first step, on the devices: weights from the seed, EMA equal to them."""

    def init(seed: Array) -> TrainState:
        network = make_network(config, nnx.Rngs(params=jax.random.wrap_key_data(seed)))
        _, params, constants = nnx.split(network, nnx.Param, ...)
        optimizer = make_optimizer(config).init(params)
        ema, scale = jax.tree.map(jnp.copy, params), first_loss_scale(config)
        teacher = jax.tree.map(jnp.copy, params) if config.teacher.averaged else None
        return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer, constants, scale, teacher)

    seed = key_data(config.train.seed)
    return jax.jit(init, out_shardings=state_shardings(config, jax.eval_shape(init, seed), mesh))(seed)


def first_loss_scale(config: Config) -> LossScale | None:
    """What a run in float16 begins with."""
    if config.train.precision != "fp16":
        return None
    return LossScale(jnp.full((), FIRST_FACTOR, jnp.float32), jnp.zeros((), jnp.int32))


def state_shardings(config: Config, state: TrainState, mesh: Mesh) -> TrainState:
    """Where each array of a state lies: on every device, or (`train.shard_weights`) in parts on all of them."""
    if not config.train.shard_weights:
        return jax.tree.map(lambda array: replicated(mesh), state)
    return jax.tree.map(lambda array: sharded(mesh, array.shape), state)


def key_data(seed: int) -> np.ndarray:
    """[2] uint32 of a seed in [0, 2^64), for `jax.random.wrap_key_data`."""
    return np.array([seed >> 32, seed & 0xFFFF_FFFF], dtype=np.uint32)


def consistency_function(
    network: Network, config: Config, labels: Array | None = None, masks: Sequence[Array] | None = None
) -> ConsistencyFunction:
    """f(x, sigma) of a network, with labels and dropout masks given, the network in `train.precision`."""
    dtype = PRECISIONS[config.train.precision]

    def f(x: Array, sigma: Array) -> Array:
        with float32_as(config.train.precision):
            return consistency_output(
                lambda x_in, c_noise, y: network(x_in if dtype is None else x_in.astype(dtype), c_noise, y, masks),
                x,
                sigma,
                labels,
                sigma_data=config.noise.sigma_data,
                sigma_min=config.noise.sigma_min,
                xp=jnp,
            )

    return f


def draw_noise(config: Config, keys: Array) -> tuple[Array, list[Array] | None, list[Array] | None]:
    """The noise of one step, [b, h, w, c], and the dropout masks of student and teacher, each bool [b, h, w, c], or
    None without dropout.

    Each image has those of its key, [b, 2] int32, in both backends. The masks are drawn once and handed to both passes,
    so that student and teacher share them on every device, unless `teacher.share_dropout` is false.
    """
    rate, shapes = config.network.dropout, mask_shapes(config)
    drawn = shapes if config.teacher.share_dropout else shapes * 2
    channels, height, width = config.data.shape
    z = normal_noise(keys, config.data.dim, xp=jnp).reshape(-1, height, width, channels)
    if not rate:
        return z, None, None
    sizes = [c * h * w for c, h, w in drawn]
    words = dropout_bytes(keys, sum(sizes), dropped=dropped_numbers(rate), xp=jnp)
    kept = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(len(keys), -1)[:, : sum(sizes)]
    parts = jnp.split(kept.astype(bool), np.cumsum(sizes)[:-1].tolist(), axis=1)
    masks = [m.reshape(-1, h, w, c) for m, (c, h, w) in zip(parts, drawn, strict=True)]
    return z, masks[: len(shapes)], masks[-len(shapes) :]


class Draw(NamedTuple):
    """The plan of a batch as the device needs it; several steps' and their parts' have two axes more, in front.

    Attributes:
        indices: [b] int32.
        flips: [b] bool.
        sigma_lo, sigma_hi, weight: [b] float32.
        keys: [b, 2] int32.
        teacher_decay: [] float32, of the step.
    """

    indices: Array
    flips: Array
    sigma_lo: Array
    sigma_hi: Array
    weight: Array
    keys: Array
    teacher_decay: Array


def to_device(plans: Sequence[StepPlan], mesh: Mesh, parts: int = 1) -> Draw:
    """The plans of successive steps, [steps, parts, b / parts, ...] each, with each part split over the devices."""
    columns = [
        (
            plan.indices.astype(np.int32),
            plan.flips,
            *(a.astype(np.float32) for a in plan.levels),
            key_words(plan.row_seeds),
        )
        for plan in plans
    ]
    arrays = (np.stack(column) for column in zip(*columns, strict=True))
    drawn = (put(a.reshape(len(plans), parts, -1, *a.shape[2:]), split(mesh, axis=2)) for a in arrays)
    decays = np.array([[plan.teacher_decay] * parts for plan in plans], np.float32)
    return Draw(*drawn, put(decays, replicated(mesh)))


class Batch(NamedTuple):
    """What one step computes its loss from.

    Attributes:
        x: [b, h, w, c] float32 in [-1, 1].
        z: [b, h, w, c] standard normal noise, the same for student and teacher.
        sigma_lo, sigma_hi, weight: [b] float32.
        labels: [b] integers, or None.
        masks, teacher_masks: dropout masks, the same for student and teacher unless asked otherwise, or None.
    """

    x: Array
    z: Array
    sigma_lo: Array
    sigma_hi: Array
    weight: Array
    labels: Array | None
    masks: list[Array] | None
    teacher_masks: list[Array] | None


def make_batch(config: Config, draw: Draw, images: Array, labels: Array | None) -> Batch:
    """Turn the draw of a step and the data set, [n, h, w, c] uint8 and [n], into a batch."""
    chosen = images[draw.indices]
    flipped = jnp.where(draw.flips[:, None, None, None], chosen[:, :, ::-1], chosen)
    x = flipped.astype(jnp.float32) / 127.5 - 1.0
    z, *masks = draw_noise(config, draw.keys)
    return Batch(
        x, z, draw.sigma_lo, draw.sigma_hi, draw.weight, None if labels is None else labels[draw.indices], *masks
    )


def batch_loss(network: Network, config: Config, batch: Batch, teacher: Network | None = None) -> ConsistencyLoss:
    """The objective: the teacher is the student itself, with the same masks and without gradient.

    Args:
        teacher: the network of a teacher with other weights (`teacher.decay` > 0).
    """
    student = consistency_function(network, config, batch.labels, batch.masks)
    target = consistency_function(network if teacher is None else teacher, config, batch.labels, batch.teacher_masks)
    c, distance = huber_constant(config.data.dim, factor=config.loss.huber_factor), config.loss.distance

    def fixed(x: Array, sigma: Array) -> Array:
        return jax.lax.stop_gradient(target(x, sigma))

    return consistency_loss(student, fixed, *batch[:5], c=c, distance=distance, xp=jnp)


class StepResult(NamedTuple):
    """What a step leaves for the log; several steps' have an axis more, in front.

    Attributes:
        losses: [b] weighted losses.
        grad_norm: [] norm of the gradient.
    """

    losses: Array
    grad_norm: Array


def train_step(
    state: TrainState, config: Config, batch: Batch, teacher_decay: float | Array = 0.0
) -> tuple[TrainState, StepResult]:
    """The state after one more step over a batch.

    The teacher's weights, where it has its own, follow the student's by `teacher_decay`.
    """
    return _apply(state, config, *_gradient(state, config, batch), teacher_decay)


def _gradient(state: TrainState, config: Config, batch: Batch, parts: int = 1) -> tuple[nnx.State, Array]:
    """The gradient of the mean loss of one of `parts` equal batches, whose gradients add up, and its [b] losses."""
    scale = state.loss_scale
    teacher = None if state.teacher is None else merge_network(config, state.teacher, state.constants)

    def loss(params: nnx.State) -> tuple[Array, Array]:
        found = batch_loss(merge_network(config, params, state.constants), config, batch, teacher)
        return found.mean * ((1.0 if scale is None else scale.factor) / parts), found.per_sample

    gradient, losses = jax.grad(loss, has_aux=True)(state.params)
    return (gradient if scale is None else jax.tree.map(lambda g: g / scale.factor, gradient)), losses


def _add_gradient(
    total: nnx.State, state: TrainState, config: Config, batch: Batch, parts: int
) -> tuple[nnx.State, Array]:
    """A sum of gradients with that of one more of `parts` equally large batches, and its [b] losses."""
    gradient, losses = _gradient(state, config, batch, parts)
    return jax.tree.map(jnp.add, total, gradient), losses


def _apply(
    state: TrainState, config: Config, gradient: nnx.State, losses: Array, teacher_decay: float | Array
) -> tuple[TrainState, StepResult]:
    """The state after a step of this gradient. With `train.on_nonfinite` = "skip", and where the loss is scaled, the
    weights stay where it is not finite."""
    norm, scale = optax.tree_utils.tree_norm(gradient), state.loss_scale
    updates, optimizer = make_optimizer(config).update(gradient, state.optimizer)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, params, config.train.ema_decay)
    teacher = None if state.teacher is None else update_ema(state.teacher, params, teacher_decay)
    after = TrainState(state.step + 1, params, ema, optimizer, state.constants, scale, teacher)
    finite = jnp.isfinite(norm)
    if config.train.on_nonfinite == "skip" or scale is not None:
        after = jax.tree.map(lambda new, old: _kept(finite, new, old), after, state)
    if scale is not None:
        after = after._replace(loss_scale=next_loss_scale(scale, finite, xp=jnp))
    return after, StepResult(losses, norm)


def _kept(finite: Array, new: Array, old: Array) -> Array:
    """The new value where all is finite. Counts of steps, which are integers, go on all the same."""
    return jnp.where(finite, new, old) if jnp.issubdtype(new.dtype, jnp.floating) else new


def update_ema(ema: nnx.State, params: nnx.State, decay: float | Array) -> nnx.State:
    """decay ema + (1 - decay) params."""
    return jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema, params)


@partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="state")
def train_steps(
    state: TrainState, config: Config, draws: Draw, images: Array, labels: Array | None, mesh: Mesh
) -> tuple[TrainState, StepResult]:
    """Advance by all the [steps] of `draws` in one dispatch, each over its parts; nothing waits for it.

    Args:
        state: given up: its buffers become the new state's.
        images: [n, h, w, c] uint8.
        labels: [n] integers, or None.
        mesh: what the state and the draws are on.

    Returns:
        The new state, and the results, [steps, b] and [steps], on every device.
    """

    def one(state: TrainState, draw: Draw) -> tuple[TrainState, StepResult]:
        parts = len(draw.indices)

        def add(total: nnx.State, part: Draw) -> tuple[nnx.State, Array]:
            return _add_gradient(total, state, config, make_batch(config, part, images, labels), parts)

        if parts == 1:
            only = _first(draw)
            return train_step(state, config, make_batch(config, only, images, labels), only.teacher_decay)
        gradient, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, state.params), draw)
        return _apply(state, config, gradient, losses.reshape(-1), draw.teacher_decay[0])

    if len(draws.indices) > 1:
        state, results = jax.lax.scan(one, state, draws)
    else:
        state, result = one(state, _first(draws))
        results = jax.tree.map(lambda array: array[None], result)
    return _placed(state, results, config, mesh)


def _first(draws: Draw) -> Draw:
    return jax.tree.map(lambda array: array[0], draws)


def _placed(state: TrainState, results: StepResult, config: Config, mesh: Mesh) -> tuple[TrainState, StepResult]:
    """The same arrays, each where it belongs."""
    state = jax.lax.with_sharding_constraint(state, state_shardings(config, state, mesh))
    return state, jax.lax.with_sharding_constraint(results, replicated(mesh))


def train_step_in_parts(
    state: TrainState, config: Config, draws: Draw, images: Array, labels: Array | None, mesh: Mesh
) -> tuple[TrainState, StepResult]:
    """`train_steps` of one step, with a dispatch for each of its parts.

    For the CPU, where XLA runs convolutions inside a loop about nine times slower than outside of one.
    """
    total, losses, parts = jax.tree.map(jnp.zeros_like, state.params), [], draws.indices.shape[1]
    for i in range(parts):
        draw = jax.tree.map(lambda array, part=i: array[0, part], draws)
        total, found = _add_part(total, state, config, draw, images, labels, parts)
        losses.append(found)
    return _finish_step(state, config, total, losses, draws.teacher_decay[0, 0], mesh)


@partial(jax.jit, static_argnames=("config", "parts"), donate_argnames="total")
def _add_part(
    total: nnx.State, state: TrainState, config: Config, draw: Draw, images: Array, labels: Array | None, parts: int
) -> tuple[nnx.State, Array]:
    return _add_gradient(total, state, config, make_batch(config, draw, images, labels), parts)


@partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="state")
def _finish_step(
    state: TrainState, config: Config, gradient: nnx.State, losses: Sequence[Array], decay: Array, mesh: Mesh
) -> tuple[TrainState, StepResult]:
    state, result = _apply(state, config, gradient, jnp.concatenate(losses), decay)
    return _placed(state, jax.tree.map(lambda array: array[None], result), config, mesh)
