"""Conversion between JAX's training state and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, serialization
from jax.sharding import Mesh

from ict_backends.errors import CheckpointError
from ict_backends.files import check_no_pointer
from ict_backends.jax.device import put, replicated
from ict_backends.jax.parallel import Processes
from ict_backends.jax.state import (
    TrainState,
    abstract_network,
    first_loss_scale,
    state_shardings,
)
from ict_backends.networks.families import parameter_shapes
from ict_backends.protocols import Arrays
from ict_backends.runs.checkpoint import Checkpoint, average_group, check_arrays
from ict_core import Config, LossScale

# The name of a layer's array in flax -> its name in checkpoints.
_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def _name(path: Sequence[Any]) -> str:
    """The name in checkpoints of the array at this path of a state."""
    return ".".join(map(str, (*path[:-1], _NAMES.get(path[-1], path[-1]))))


def _to_layout(path: Sequence[Any], array: np.ndarray) -> np.ndarray:
    """The array in the layout of checkpoints: kernels from HWIO to OIHW or [in, out] to [out, in], others unchanged."""
    if path[-1] != "kernel":
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _from_layout(path: Sequence[Any], array: np.ndarray) -> np.ndarray:
    """The array in flax's layout: the inverse of `_to_layout`."""
    if path[-1] != "kernel":
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def to_arrays(*states: nnx.State) -> Arrays:
    """Every array of the states, by its name and in its layout in checkpoints (OIHW), as a copy on the host."""
    return {
        _name(path): np.array(_to_layout(path, np.asarray(variable.get_value())), order="C")
        for state in states
        for path, variable in nnx.to_flat_state(state)
    }


def load_arrays(states: Sequence[nnx.State], arrays: Arrays, mesh: Mesh, what: str) -> list[nnx.State]:
    """New states on every device: those of `states`, in shapes and dtypes, filled with arrays.

    Args:
        states: give names, shapes and dtypes; their values do not matter.
        arrays: by name and in the layout of checkpoints.
        mesh: the devices.
        what: names the arrays in messages.

    Raises:
        CheckpointError: names or shapes differ.
    """
    flat = [list(nnx.to_flat_state(state)) for state in states]
    expected = {
        _name(path): _to_layout(path, np.empty(variable.get_value().shape, bool)).shape
        for state in flat
        for path, variable in state
    }
    check_arrays(what, expected, arrays)

    def filled(path: Sequence[Any], variable: nnx.Variable) -> nnx.Variable:
        like, array = variable.get_value(), _from_layout(path, arrays[_name(path)])
        return variable.replace(put(array.astype(like.dtype), replicated(mesh)))

    return [nnx.from_flat_state([(path, filled(path, variable)) for path, variable in state]) for state in flat]


def read_arrays(path: Path) -> dict[str, Any]:
    """Read the tree of a Flax msgpack checkpoint. The format holds only data: there is no code to execute.

    Raises:
        CheckpointError: the file cannot be read, or holds anything else than a tree.
    """
    check_no_pointer(path)
    try:
        tree = serialization.msgpack_restore(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # msgpack and Flax raise many kinds for bytes in another format
        raise CheckpointError(
            f"{path} is no whole Flax checkpoint: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} is no Flax checkpoint: it holds no tree")
    return tree


def to_checkpoint(config: Config, state: TrainState, mesh: Mesh) -> Checkpoint:
    """A copy of the whole training state on the host, as a checkpoint.

    Must be called by every process if each holds only a part of the arrays.
    """
    state = _whole(state, mesh) if config.train.shard_weights else state
    scale = {} if state.loss_scale is None else {k: np.array(v) for k, v in state.loss_scale._asdict().items()}
    return Checkpoint(
        int(state.step),
        to_arrays(state.params, state.constants),
        to_arrays(state.ema, state.constants),
        to_arrays(optax.tree_utils.tree_get(state.optimizer, "mu")),
        to_arrays(optax.tree_utils.tree_get(state.optimizer, "nu")),
        scale,
        {} if state.teacher is None else to_arrays(state.teacher, state.constants),
        {name: to_arrays(average, state.constants) for name, average in state.averages.items()},
    )


def averaged_network(config: Config, state: TrainState, processes: Processes) -> tuple[nnx.State, nnx.State]:
    """The averaged weights and the constants, whole, on this process's own devices; must be called by every process."""
    weights = (state.ema, state.constants)
    if config.train.shard_weights:
        weights = _whole(weights, processes.mesh)
    if processes.world == 1:
        return weights
    return jax.tree.map(lambda array: put(np.asarray(array), replicated(processes.local_mesh)), weights)


@partial(jax.jit, static_argnames="mesh")
def _whole(tree: Any, mesh: Mesh) -> Any:
    """The same arrays, whole on every device."""
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def from_checkpoint(config: Config, checkpoint: Checkpoint, mesh: Mesh, what: str) -> TrainState:
    """The training state that a checkpoint holds.

    Raises CheckpointError, naming `what`, if the checkpoint does not fit the configuration.
    """
    check_arrays(f"{what}: params", parameter_shapes(config), checkpoint.params)  # before a network of any size
    weights = abstract_network(config)[1:]
    params, constants = load_arrays(weights, checkpoint.params, mesh, f"{what}: params")
    ema, _ = load_arrays(weights, checkpoint.ema, mesh, f"{what}: ema")
    (mu,) = load_arrays(weights[:1], checkpoint.first_moment, mesh, f"{what}: first_moment")
    (nu,) = load_arrays(weights[:1], checkpoint.second_moment, mesh, f"{what}: second_moment")
    teacher = None
    if config.teacher.averaged:
        teacher, _ = load_arrays(weights, checkpoint.teacher_or_student(), mesh, f"{what}: teacher")
    averages: dict[str, nnx.State] = {}
    for name in config.train.average_exponents:
        arrays = checkpoint.average_or_student(name, what)
        averages[name], _ = load_arrays(weights, arrays, mesh, f"{what}: {average_group(name)}")
    step = put(np.int32(checkpoint.step), replicated(mesh))
    optimizer = optax.ScaleByAdamState(jnp.copy(step), mu, nu)  # all buffers are donated: each needs its own
    scale = first_loss_scale(config)
    if scale is not None and checkpoint.loss_scale:
        scale = LossScale(*(checkpoint.loss_scale[name] for name in LossScale._fields))
    scale = jax.tree.map(lambda a: put(a, replicated(mesh)), scale)
    state = TrainState(step, params, ema, optimizer, constants, scale, teacher, averages)
    if not config.train.shard_weights:
        return state
    return jax.jit(lambda s: s, out_shardings=state_shardings(config, state, mesh))(state)
