"""Conversion between torch's training state and checkpoints."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from ict_backends.errors import CheckpointError
from ict_backends.protocols import Arrays
from ict_backends.runs.checkpoint import Checkpoint, check_arrays
from ict_backends.torch.networks import UNet, make_network
from ict_backends.torch.parallel import Processes, fill, full
from ict_backends.torch.state import TrainState, make_state
from ict_core import Config, LossScale


def to_arrays(network: UNet) -> Arrays:
    """Every stored array of a network, by its name in checkpoints, as a copy on the host.

    Must be called by every process if each holds only a part of the arrays.
    """
    return {name: to_numpy(value) for name, value in network.state_dict().items()}


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A copy of a tensor, of any shape, as a NumPy array of the same dtype."""
    return full(tensor.detach()).cpu().contiguous().numpy().copy()


def load_arrays(network: UNet, arrays: Arrays, what: str) -> None:
    """Fill a network with arrays, by their names in checkpoints.

    Raises CheckpointError, naming `what`, if names or shapes differ.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    check_arrays(what, expected, arrays)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})


def read_arrays(path: Path) -> Arrays:
    """Read the arrays of a file that torch has written, by name, as float32. Code in the file is never executed.

    Raises:
        CheckpointError: the file cannot be read, or holds anything else than named arrays.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of files that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: it holds more than arrays, or is no file of torch's") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no whole file of torch's: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise CheckpointError(f"{path} is no state dict: it must hold arrays by name and nothing else")
    return {name: value.float().numpy() for name, value in content.items()}


def to_checkpoint(state: TrainState) -> Checkpoint:
    """A copy of the whole training state on the host, as a checkpoint.

    Must be called by every process if each holds only a part of the arrays.
    """
    first, second = (
        {name: to_numpy(moment) for name, moment in state.optimizer_moments(key).items()}
        for key in ("exp_avg", "exp_avg_sq")
    )
    scale = {} if state.loss_scale is None else {k: to_numpy(v) for k, v in state.loss_scale._asdict().items()}
    teacher = {} if state.teacher is None else to_arrays(state.teacher.network)
    params, ema = to_arrays(state.params.network), to_arrays(state.ema.network)
    return Checkpoint(state.step, params, ema, first, second, scale, teacher)


def from_checkpoint(config: Config, checkpoint: Checkpoint, processes: Processes, what: str) -> TrainState:
    """The training state that a checkpoint holds.

    Raises CheckpointError, naming `what`, if the checkpoint does not fit the configuration.
    """
    params, ema = make_network(config), make_network(config)
    teacher = make_network(config) if config.teacher.averaged else None
    load_arrays(params, checkpoint.params, f"{what}: params")
    load_arrays(ema, checkpoint.ema, f"{what}: ema")
    if teacher is not None:
        load_arrays(teacher, checkpoint.teacher_or_student(), f"{what}: teacher")
    shapes = {name: tuple(p.shape) for name, p in params.named_parameters()}
    check_arrays(f"{what}: first_moment", shapes, checkpoint.first_moment)
    check_arrays(f"{what}: second_moment", shapes, checkpoint.second_moment)
    state = make_state(config, checkpoint.step, params, ema, processes, teacher)
    for key, arrays in (("exp_avg", checkpoint.first_moment), ("exp_avg_sq", checkpoint.second_moment)):
        for name, moment in state.optimizer_moments(key).items():
            fill(moment, torch.from_numpy(arrays[name]))
    if state.loss_scale is not None and checkpoint.loss_scale:
        state.loss_scale = LossScale(*(torch.tensor(checkpoint.loss_scale[f]) for f in LossScale._fields))
    return state


def averaged_network(config: Config, state: TrainState) -> UNet:
    """The network with the averaged weights, whole.

    Must be called by every process if each holds only a part of the weights.
    """
    average = state.ema.network
    if not any(isinstance(value, DTensor) for value in average.parameters()):
        return average
    network = make_network(config)
    network.load_state_dict({name: full(value) for name, value in average.state_dict().items()})
    return network.to(next(average.parameters()).device)
