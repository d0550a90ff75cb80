"""Checkpoints: named arrays in a safetensors file and a small JSON file beside it, the same for every backend.

params/NAME, ema/NAME               float32; convolutions [out, in, h, w], dense layers [out, in]
first_moment/NAME, second_moment/NAME   RAdam's moments
loss_scale/factor, loss_scale/good_steps   where the network computes in float16
teacher/NAME                        where the teacher has a moving average of its own
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ict_backends.errors import CheckpointError, NonFiniteError
from ict_backends.files import file_sha256, remove_folder, whole_folder
from ict_backends.protocols import Arrays
from ict_backends.runs.folder import RunDir, step_of

# Arrays in the layout above, by the names of the parameters.
FORMAT = "ict-checkpoint-1"
_TENSORS, _STATE = "state.safetensors", "state.json"


class Checkpoint(NamedTuple):
    """The state of a run after `step` steps; each dict has float32 arrays by the names of the parameters.

    Attributes:
        step: the number of steps done, >= 0.
        params: the student's weights, which are trained.
        ema: the moving average of `params`.
        first_moment, second_moment: the moments of the optimiser, whose own step count is `step`.
        loss_scale: the fields of `ict_core.LossScale`, or empty where the loss is not scaled.
        teacher: the teacher's weights, or empty where they are the student's (`teacher.decay` = 0).
    """

    step: int
    params: Arrays
    ema: Arrays
    first_moment: Arrays
    second_moment: Arrays
    loss_scale: Arrays = {}  # noqa: RUF012
    teacher: Arrays = {}  # noqa: RUF012

    def teacher_or_student(self) -> Arrays:
        """The teacher's weights, by name; before the first step, `params`, with which every teacher begins."""
        return self.teacher if self.step else self.params


def save_checkpoint(run: RunDir, checkpoint: Checkpoint, *, keep: int, keep_every: int = 0) -> Path:
    """Write a checkpoint, whole or not at all, then remove old ones.

    Args:
        run: the run's folder.
        checkpoint: the state to write.
        keep: the number of newest checkpoints to keep; 0 removes none.
        keep_every: also keep checkpoints whose step is a multiple of this; 0 for no others.

    Returns:
        The checkpoint's folder.

    Raises:
        NonFiniteError: a weight is NaN or infinite; nothing is written, and the older checkpoints stay.
        CheckpointError, OSError: the checkpoint cannot be written, as on a full disk; the older ones stay.
    """
    folder = run.checkpoint_folder(checkpoint.step)
    write_checkpoint(folder, checkpoint, last=run.describe_latest())
    remove_old_checkpoints(run, keep=keep, keep_every=keep_every)
    return folder


def remove_old_checkpoints(run: RunDir, *, keep: int, keep_every: int) -> None:
    """Remove all checkpoints but those that `save_checkpoint` keeps by the same arguments."""
    for old in run.checkpoints()[:-keep] if keep else []:
        if not keep_every or step_of(old) % keep_every:
            remove_folder(old)


def write_checkpoint(folder: Path, checkpoint: Checkpoint, *, last: object = "none") -> None:
    """Write a checkpoint into a folder of its own, whole or not at all, in place of one that is there.

    Args:
        folder: the checkpoint's folder.
        checkpoint: the state to write.
        last: the last good checkpoint, which the error names where a weight is not finite.

    Raises:
        NonFiniteError, CheckpointError, OSError: as for `save_checkpoint`.
    """
    # safetensors stores the memory of an array, whatever its strides.
    arrays = {
        f"{group}/{name}": np.asarray(a, order="C")
        for group in checkpoint._fields[1:]
        for name, a in getattr(checkpoint, group).items()
    }
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise NonFiniteError(f"{bad[0]} is not finite after step {checkpoint.step}; last good checkpoint: {last}")
    with whole_folder(folder) as temporary:
        try:
            save_file(arrays, temporary / _TENSORS)
        except SafetensorError as error:  # the library raises it in place of an OSError
            raise CheckpointError(f"checkpoint {folder} cannot be written: {error}") from error
        digest = file_sha256(temporary / _TENSORS)
        state = {"format": FORMAT, "step": checkpoint.step, "sha256": digest}
        (temporary / _STATE).write_text(json.dumps(state, indent=2) + "\n")


def load_newest(run: RunDir, *, warn: Callable[[str], object]) -> tuple[Path, Checkpoint]:
    """Read the newest checkpoint of a run that is not damaged, and return its folder and the checkpoint.

    Args:
        run: the run's folder.
        warn: called with a message for each newer checkpoint that is damaged.

    Raises:
        CheckpointError: there is no checkpoint, or all are damaged.
    """
    *newer, oldest = [*reversed(run.checkpoints())] or [run.latest_checkpoint()]
    for folder in newer:
        try:
            return folder, load_checkpoint(folder)
        except CheckpointError as error:
            warn(f"{error}; going on from the one before")
    return oldest, load_checkpoint(oldest)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's folder.

    Raises:
        CheckpointError: the checkpoint is truncated or changed, or this package did not write it.
    """
    step, digest = _read_state(folder)
    tensors = folder / _TENSORS
    try:
        read = file_sha256(tensors)
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error.strerror}") from error
    if read != digest:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: the contents of {_TENSORS} are not those that were written"
        )
    try:
        arrays = load_file(tensors)
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {error}") from error
    groups: dict[str, Arrays] = {group: {} for group in Checkpoint._fields[1:]}
    for name, array in arrays.items():
        group, _, parameter = name.partition("/")
        if group not in groups:
            raise CheckpointError(f"checkpoint {folder} is not one of ict's: it holds {name}")
        groups[group][parameter] = array
    return Checkpoint(step, **groups)


def check_finite(what: str, arrays: Arrays) -> None:
    """Raise NonFiniteError, which names `what` and the array, if one of the arrays has a NaN or an infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NonFiniteError(f"{what} is refused: {name} is not finite")


def _read_state(folder: Path) -> tuple[int, str]:
    try:
        state = json.loads((folder / _STATE).read_text())
        if state["format"] != FORMAT:
            raise CheckpointError(f"checkpoint {folder} has format {state['format']!r}; this version reads {FORMAT!r}")
        return int(state["step"]), str(state["sha256"])
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {folder} is not one of ict's: it has no {_STATE}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {_STATE} cannot be read ({error})") from error


def read_step(folder: Path) -> int:
    """The step after which a checkpoint was written. Raises CheckpointError as `load_checkpoint` does."""
    return _read_state(folder)[0]


def read_digest(folder: Path) -> str:
    """The sha256 of a checkpoint's arrays, unlike that of any other. Raises CheckpointError as `load_checkpoint`."""
    return _read_state(folder)[1]


def check_arrays(what: str, expected: dict[str, tuple[int, ...]], found: Arrays) -> None:
    """Raise CheckpointError, listing every difference, unless `found` has exactly the expected names and shapes."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    wrong = [
        f"{name} is {list(found[name].shape)} and not {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    problems = [f"missing: {', '.join(missing)}"] * bool(missing)
    problems += [f"unknown: {', '.join(extra)}"] * bool(extra) + wrong
    if problems:
        raise CheckpointError(f"{what} does not fit the network: {'; '.join(problems)}")
