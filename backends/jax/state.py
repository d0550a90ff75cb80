"""The state that training changes, in JAX: the weights, their averages, and the optimiser's moments."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from ict_backends.jax.device import replicated, sharded
from ict_backends.jax.networks import UNet, make_network
from ict_core import Config, LossScale
from ict_core.loss_scale import FIRST_FACTOR


class TrainState(NamedTuple):
    """Everything that training changes, and the constants of the network.

    Attributes:
        step: [] int32 number of steps done, which is also the number of the next step, counted from 0.
        params: the weights in training.
        ema: the moving average of the weights, used only for sampling.
        optimizer: the state of RAdam over `params`.
        constants: the arrays that are stored with the weights and not trained.
        loss_scale: the scale of the loss if the network computes in float16, else None.
        teacher: the teacher's weights; None if they are the student's own.
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
    """The structure of a configuration's network, then the shapes and dtypes of its weights and of its constants.

    `nnx.merge` of the structure with arrays for both is a network.
    """
    network = nnx.eval_shape(lambda: make_network(config, nnx.Rngs(0)))
    return split_network(network)


def split_network(network: UNet) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The structure of a network, its weights and its constants; `nnx.merge` of these is the network again."""
    parts: Any = nnx.split(network, nnx.Param, ...)  # flax's stubs do not count them
    structure, params, constants = parts
    return structure, params, constants


def merge_network(config: Config, params: nnx.State, constants: nnx.State) -> UNet:
    """The network of a configuration with these weights and constants."""
    return nnx.merge(abstract_network(config)[0], params, constants)


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """RAdam with the configuration's learning rate and betas, without clipping or weight decay."""
    b1, b2 = config.train.betas

    def eps(count: Array) -> Array:
        # Torch adds its 1e-8 to the root of the second moment before the bias correction, optax after it.
        return 1e-8 / jnp.sqrt(1 - b2 ** (count + 1))

    return optax.inject_hyperparams(optax.radam, static_args=("b1", "b2", "learning_rate"))(
        learning_rate=config.train.learning_rate, b1=b1, b2=b2, eps=eps
    )


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """The state before the first step, on the devices: weights drawn by `train.seed`, and averages equal to them."""

    def init(seed: Array) -> TrainState:
        network = make_network(config, nnx.Rngs(params=jax.random.wrap_key_data(seed, impl="threefry2x32")))
        _, params, constants = split_network(network)
        optimizer = make_optimizer(config).init(params)
        ema, scale = jax.tree.map(jnp.copy, params), first_loss_scale(config)
        teacher = jax.tree.map(jnp.copy, params) if config.teacher.averaged else None
        return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer, constants, scale, teacher)

    seed = key_data(config.train.seed)
    return jax.jit(init, out_shardings=state_shardings(config, jax.eval_shape(init, seed), mesh))(seed)


def first_loss_scale(config: Config) -> LossScale | None:
    """The scale of the loss that a run in float16 begins with; None in every other precision."""
    if config.train.precision != "fp16":
        return None
    return LossScale(jnp.full((), FIRST_FACTOR, jnp.float32), jnp.zeros((), jnp.int32))


def state_shardings(config: Config, state: TrainState, mesh: Mesh) -> TrainState:
    """The sharding of each array of a state: whole on every device, or (`train.shard_weights`) split over them."""
    if not config.train.shard_weights:
        return jax.tree.map(lambda array: replicated(mesh), state)
    return jax.tree.map(lambda array: sharded(mesh, array.shape), state)


def key_data(seed: int) -> np.ndarray:
    """The words, [2] uint32, of a seed in [0, 2^64), for `jax.random.wrap_key_data`."""
    return np.array([seed >> 32, seed & 0xFFFF_FFFF], dtype=np.uint32)
