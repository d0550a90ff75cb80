"""Between torch's training state and checkpoints."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import torch
from ict_backends.checkpoint import Arrays, Checkpoint, check_arrays
from ict_backends.errors import CheckpointError
from ict_backends.torch.networks import Network
from ict_backends.torch.step import TrainState, init_state

from ict_core import Config


def to_arrays(network: Network) -> Arrays:
    """Every stored array of a network, as a copy on the host."""
    return {name: value.detach().cpu().contiguous().numpy().copy() for name, value in network.state_dict().items()}


def load_arrays(network: Network, arrays: Arrays, what: str) -> None:
    """Fill a network. Raises CheckpointError, naming `what`, where names or shapes differ."""
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    check_arrays(what, expected, arrays)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})


def read_state_dict(path: Path) -> Arrays:
    """The arrays of a file that torch has written, whatever module they are of. Code in the file is never executed.

    Raises:
        CheckpointError: in one line, that it cannot be read, or holds anything else than named arrays.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of what it then refuses
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} is refused: it holds more than arrays, or is no file of torch's") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no whole file of torch's: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{path} is no state dict: it must hold arrays by name and nothing else")
    return {name: value.float().numpy() for name, value in found.items()}


def to_checkpoint(state: TrainState) -> Checkpoint:
    """The whole training state, on the host."""
    moments: dict[str, Arrays] = {"exp_avg": {}, "exp_avg_sq": {}}
    for name, parameter in state.params.named_parameters():
        for key, arrays in moments.items():
            value = state.optimizer.state[parameter].get(key, torch.zeros_like(parameter))
            arrays[name] = value.cpu().contiguous().numpy().copy()
    return Checkpoint(
        state.step, to_arrays(state.params), to_arrays(state.ema), moments["exp_avg"], moments["exp_avg_sq"]
    )


def from_checkpoint(config: Config, checkpoint: Checkpoint, device: torch.device, what: str) -> TrainState:
    """The training state that a checkpoint holds. Raises CheckpointError, naming `what`, where it does not fit."""
    state = init_state(config, device)
    load_arrays(state.params, checkpoint.params, f"{what}: params")
    load_arrays(state.ema, checkpoint.ema, f"{what}: ema")
    shapes = {name: tuple(p.shape) for name, p in state.params.named_parameters()}
    check_arrays(f"{what}: first_moment", shapes, checkpoint.first_moment)
    check_arrays(f"{what}: second_moment", shapes, checkpoint.second_moment)
    for name, parameter in state.params.named_parameters():
        state.optimizer.state[parameter] = {
            "step": torch.tensor(float(checkpoint.step)),
            "exp_avg": torch.empty_like(parameter).copy_(torch.from_numpy(checkpoint.first_moment[name])),
            "exp_avg_sq": torch.empty_like(parameter).copy_(torch.from_numpy(checkpoint.second_moment[name])),
        }
    state.step = checkpoint.step
    return state
