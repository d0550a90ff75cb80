"""Conversion between torch's training state and checkpoints."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from ict_backends.errors import CheckpointError
from ict_backends.files import check_no_pointer
from ict_backends.networks.families import parameter_shapes
from ict_backends.protocols import Arrays
from ict_backends.runs.checkpoint import Checkpoint, average_group, check_arrays
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


def read_arrays(path: Path) -> dict[Any, Any]:
    """Read what torch has written to a file: nested dicts, their tensors as float32 arrays. Code is never executed.

    Raises:
        CheckpointError: the file cannot be read, or holds code, a tensor of another kind, or anything but a dict.
    """
    check_no_pointer(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of files that it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: it holds more than arrays, or is no file of torch's") from error
    except Exception as error:  # each kind of damage has an exception of its own
        raise CheckpointError(
            f"{path} is no whole file of torch's: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is no state dict: it must hold arrays by name, not a {type(content).__name__}")
    return _to_tree(content, str(path))


def _to_tree(content: dict[Any, Any], what: str) -> dict[Any, Any]:
    """The same dicts with arrays for tensors; anything else is left as it is."""
    tree = dict(content)
    for name, value in content.items():
        if isinstance(value, dict):
            tree[name] = _to_tree(value, what)
        elif isinstance(value, torch.Tensor):
            if not _is_plain(value):
                kind = str(value.layout if value.layout != torch.strided else value.dtype).removeprefix("torch.")
                raise CheckpointError(f"{what}: {name} is no plain tensor of real numbers, but {kind}")
            tree[name] = value.detach().float().numpy()
    return tree


def _is_plain(value: torch.Tensor) -> bool:
    """True for a dense tensor of real numbers that are all in memory: no small file may fill the machine."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_complex():
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


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
    averages = {name: to_arrays(average.network) for name, average in state.averages.items()}
    return Checkpoint(state.step, params, ema, first, second, scale, teacher, averages)


def from_checkpoint(config: Config, checkpoint: Checkpoint, processes: Processes, what: str) -> TrainState:
    """The training state that a checkpoint holds.

    Raises CheckpointError, naming `what`, if the checkpoint does not fit the configuration.
    """
    # Before there are networks, which may be of any size.
    check_arrays(f"{what}: params", parameter_shapes(config), checkpoint.params)
    params, ema = make_network(config), make_network(config)
    teacher = make_network(config) if config.teacher.averaged else None
    load_arrays(params, checkpoint.params, f"{what}: params")
    load_arrays(ema, checkpoint.ema, f"{what}: ema")
    if teacher is not None:
        load_arrays(teacher, checkpoint.teacher_or_student(), f"{what}: teacher")
    averages = {name: make_network(config) for name in config.train.average_exponents}
    for name, average in averages.items():
        load_arrays(average, checkpoint.average_or_student(name, what), f"{what}: {average_group(name)}")
    shapes = {name: tuple(p.shape) for name, p in params.named_parameters()}
    check_arrays(f"{what}: first_moment", shapes, checkpoint.first_moment)
    check_arrays(f"{what}: second_moment", shapes, checkpoint.second_moment)
    state = make_state(config, checkpoint.step, params, ema, processes, teacher, averages)
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
