"""The state that training changes, in JAX: the weights, their averages, and the optimiser's moments."""

from __future__ import annotations

import math
from functools import lru_cache, partial
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

# Added to the root of the second moment: by RAdam before its bias is corrected and by Adam after, as torch does.
_EPS = 1e-8
# B_2k / (2k)! of Bernoulli's numbers, k = 1, 2, ...: the series of u / (exp(u) - 1). Up to u = 0.5, five are exact.
_BERNOULLI = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)


class TrainState(NamedTuple):
    """Everything that training changes, and the constants of the network.

    Attributes:
        step: [] int32 number of steps done, which is also the number of the next step, counted from 0.
        params: the weights in training.
        ema: the moving average of the weights, used only for sampling.
        optimizer: the state of the optimiser over `params`.
        constants: the arrays that are stored with the weights and not trained.
        loss_scale: the scale of the loss if the network computes in float16, else None.
        teacher: the teacher's weights; None if they are the student's own.
        averages: the averages of `train.ema_sigma_rel`, by their names.
    """

    step: Array
    params: nnx.State
    ema: nnx.State
    optimizer: optax.OptState
    constants: nnx.State
    loss_scale: LossScale | None = None
    teacher: nnx.State | None = None
    averages: dict[str, nnx.State] = {}  # noqa: RUF012


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


def make_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """The configuration's optimiser, as torch computes it. Its update takes the weights and the `learning_rate`.

    optax's own RAdam subtracts nearly equal numbers in float32, which makes its steps up to 0.6% too long or short, and
    adds epsilon after the bias correction instead of before it.
    """
    (b1, b2), decay = config.train.betas, config.train.weight_decay

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = partial(jax.tree.map, jnp.zeros_like)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros(params), zeros(params))

    def update(
        gradient: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        learning_rate: float | Array,
        **others: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, optax.ScaleByAdamState)
        mu = optax.tree_utils.tree_update_moment(gradient, state.mu, b1, 1)
        nu = optax.tree_utils.tree_update_moment_per_elem_norm(gradient, state.nu, b2, 2)
        steps = state.count + 1
        first, second, rectified = radam_factors(steps, b1, b2)
        scale = -learning_rate / first

        def radam(m: Array, v: Array) -> Array:
            return scale * m * jnp.where(rectified > 0, rectified * second / (jnp.sqrt(v) + _EPS), 1.0)

        def adam(m: Array, v: Array) -> Array:
            return scale * m / (jnp.sqrt(v) / second + _EPS)

        updates = jax.tree.map(radam if config.train.optimizer == "radam" else adam, mu, nu)
        if decay:
            updates = jax.tree.map(lambda u, p: u - learning_rate * decay * p, updates, params)
        return updates, optax.ScaleByAdamState(steps, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def radam_factors(steps: Array, b1: float, b2: float) -> tuple[Array, Array, Array]:
    """The factors of RAdam's step number t = 1, 2, ..., [] each, to the rounding of JAX's floats.

        1 - b1^t,  sqrt(1 - b2^t),  r_t = sqrt((rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t))
        rho_t = rho_inf - 2 t b2^t / (1 - b2^t),  rho_inf = 2 / (1 - b2) - 1            Liu et al. 2020, algorithm 2

    r_t is 0 where rho_t <= 5: torch does not rectify there. With e = -log b2 and u = t e, rho_t is also
    (rho_inf - 2 / e) + (2 / e) (1 - u / (exp(u) - 1)), where the last factor has a series for small u.

    Args:
        steps: [] integer, t >= 1.
        b1, b2: the decays of the moments, in [0, 1).
    """
    t = steps.astype(float)
    first, second = (1.0 - b**t if b == 0 else -jnp.expm1(t * math.log(b)) for b in (b1, b2))
    if b2 == 0:
        return first, jnp.sqrt(second), jnp.zeros_like(t)
    rate, limit = -math.log(b2), 2.0 / (1.0 - b2) - 1.0
    u = t * rate
    series = u / 2 - sum(c * u ** (2 * k) for k, c in enumerate(_BERNOULLI, start=1))
    rho = (limit - 2.0 / rate) + 2.0 / rate * jnp.where(u < 0.5, series, 1.0 - u / jnp.expm1(u))
    ratio = (rho - 4) / (limit - 4) * ((rho - 2) / (limit - 2)) * (limit / rho)
    return first, jnp.sqrt(second), jnp.where(rho > 5, jnp.sqrt(jnp.maximum(ratio, 0.0)), 0.0)


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """The state before the first step, on the devices: weights drawn by `train.seed`, and averages equal to them."""

    def init(seed: Array) -> TrainState:
        network = make_network(config, nnx.Rngs(params=jax.random.wrap_key_data(seed, impl="threefry2x32")))
        _, params, constants = split_network(network)
        optimizer = make_optimizer(config).init(params)
        ema, scale = jax.tree.map(jnp.copy, params), first_loss_scale(config)
        teacher = jax.tree.map(jnp.copy, params) if config.teacher.averaged else None
        averages = {name: jax.tree.map(jnp.copy, params) for name in config.train.average_exponents}
        return TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer, constants, scale, teacher, averages)

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
