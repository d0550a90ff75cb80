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
from ict_backends.jax.device import replicated, split
from ict_backends.jax.networks import Network, make_network
from ict_backends.networks import mask_shapes
from ict_backends.plan import StepPlan
from jax import Array
from jax.sharding import Mesh

from ict_core import Config, ConsistencyLoss, consistency_loss, consistency_output, huber_constant
from ict_core.loss import ConsistencyFunction


class TrainState(NamedTuple):
    """Everything that training changes, and the constants of the network.

    Attributes:
        step: [] int32 steps done; the next one to do, counted from 0.
        params: the weights in training.
        ema: their moving average, for sampling only.
        optimizer: RAdam's state.
        constants: what is stored with the weights and not trained.
    """

    step: Array
    params: nnx.State
    ema: nnx.State
    optimizer: optax.OptState
    constants: nnx.State


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
    """The state before the first step, on every device: weights from the seed, EMA equal to them."""

    @partial(jax.jit, out_shardings=replicated(mesh))
    def init(seed: Array) -> TrainState:
        network = make_network(config, nnx.Rngs(params=jax.random.wrap_key_data(seed)))
        _, params, constants = nnx.split(network, nnx.Param, ...)
        optimizer = make_optimizer(config).init(params)
        return TrainState(jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), optimizer, constants)

    return init(key_data(config.train.seed))


def key_data(seed: int) -> np.ndarray:
    """[2] uint32 of a seed in [0, 2^64), for `jax.random.wrap_key_data`."""
    return np.array([seed >> 32, seed & 0xFFFF_FFFF], dtype=np.uint32)


def consistency_function(
    network: Network, config: Config, labels: Array | None = None, masks: Sequence[Array] | None = None
) -> ConsistencyFunction:
    """f(x, sigma) of a network, with labels and dropout masks given."""

    def f(x: Array, sigma: Array) -> Array:
        return consistency_output(
            lambda x_in, c_noise, y: network(x_in, c_noise, y, masks),
            x,
            sigma,
            labels,
            sigma_data=config.noise.sigma_data,
            sigma_min=config.noise.sigma_min,
            xp=jnp,
        )

    return f


def draw_masks(config: Config, batch: int, key: Array) -> list[Array] | None:
    """Dropout masks for one step, or None without dropout: bool [b, h, w, c].

    They are drawn once and handed to both passes, so that student and teacher share them on every device.
    """
    rate = config.network.dropout
    if rate == 0:
        return None
    shapes = mask_shapes(config)
    keys = jax.random.split(key, len(shapes))
    return [jax.random.bernoulli(k, 1.0 - rate, (batch, h, w, c)) for k, (c, h, w) in zip(keys, shapes, strict=True)]


class Draw(NamedTuple):
    """A step's plan as the device needs it; several steps' have a first axis more.

    Attributes:
        indices: [b] int32.
        flips: [b] bool.
        sigma_lo, sigma_hi, weight: [b] float32.
        key: [2] uint32.
    """

    indices: Array
    flips: Array
    sigma_lo: Array
    sigma_hi: Array
    weight: Array
    key: Array


def to_device(plans: Sequence[StepPlan], mesh: Mesh) -> Draw:
    """The plans of successive steps, [steps, ...] each, with the batch split over the devices."""
    columns = [
        (plan.indices.astype(np.int32), plan.flips, *(a.astype(np.float32) for a in plan.levels)) for plan in plans
    ]
    arrays = [np.stack(column) for column in zip(*columns, strict=True)]
    keys = np.stack([key_data(plan.device_seed) for plan in plans])
    return Draw(*jax.device_put(arrays, split(mesh, axis=1)), jax.device_put(keys, replicated(mesh)))


class Batch(NamedTuple):
    """What one step computes its loss from.

    Attributes:
        x: [b, h, w, c] float32 in [-1, 1].
        z: [b, h, w, c] standard normal noise, the same for student and teacher.
        sigma_lo, sigma_hi, weight: [b] float32.
        labels: [b] integers, or None.
        masks: dropout masks, the same for student and teacher, or None.
    """

    x: Array
    z: Array
    sigma_lo: Array
    sigma_hi: Array
    weight: Array
    labels: Array | None
    masks: list[Array] | None


def make_batch(config: Config, draw: Draw, images: Array, labels: Array | None) -> Batch:
    """Turn the draw of a step and the data set, [n, h, w, c] uint8 and [n], into a batch."""
    chosen = images[draw.indices]
    flipped = jnp.where(draw.flips[:, None, None, None], chosen[:, :, ::-1], chosen)
    x = flipped.astype(jnp.float32) / 127.5 - 1.0
    noise_key, mask_key = jax.random.split(jax.random.wrap_key_data(draw.key))
    z = jax.random.normal(noise_key, x.shape, x.dtype)
    masks = draw_masks(config, len(x), mask_key)
    return Batch(
        x, z, draw.sigma_lo, draw.sigma_hi, draw.weight, None if labels is None else labels[draw.indices], masks
    )


def batch_loss(network: Network, config: Config, batch: Batch) -> ConsistencyLoss:
    """The objective: the teacher is the student itself, with the same masks and without gradient."""
    f = consistency_function(network, config, batch.labels, batch.masks)
    c = huber_constant(config.data.dim, factor=config.loss.huber_factor)
    return consistency_loss(f, lambda x, sigma: jax.lax.stop_gradient(f(x, sigma)), *batch[:5], c=c, xp=jnp)


def train_step(state: TrainState, config: Config, batch: Batch) -> tuple[TrainState, Array]:
    """The state after one more step, and the [b] weighted losses."""

    def loss(params: nnx.State) -> tuple[Array, Array]:
        return batch_loss(merge_network(config, params, state.constants), config, batch)

    gradient, losses = jax.grad(loss, has_aux=True)(state.params)
    updates, optimizer = make_optimizer(config).update(gradient, state.optimizer)
    params = optax.apply_updates(state.params, updates)
    ema = update_ema(state.ema, params, config.train.ema_decay)
    return TrainState(state.step + 1, params, ema, optimizer, state.constants), losses


def update_ema(ema: nnx.State, params: nnx.State, decay: float) -> nnx.State:
    """decay ema + (1 - decay) params."""
    return jax.tree.map(lambda e, p: e + (1.0 - decay) * (p - e), ema, params)


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def train_steps(
    state: TrainState, config: Config, draws: Draw, images: Array, labels: Array | None
) -> tuple[TrainState, Array]:
    """Advance by all the [steps] of `draws` in one dispatch; nothing waits for it.

    Args:
        state: given up: its buffers become the new state's.
        images: [n, h, w, c] uint8.
        labels: [n] integers, or None.

    Returns:
        The new state, and the [steps, b] weighted losses.
    """

    def one(state: TrainState, draw: Draw) -> tuple[TrainState, Array]:
        return train_step(state, config, make_batch(config, draw, images, labels))

    if len(draws.indices) > 1:
        return jax.lax.scan(one, state, draws)
    # A scan over one step is a loop all the same, and those are slow on the CPU.
    state, losses = one(state, jax.tree.map(lambda array: array[0], draws))
    return state, losses[None]
