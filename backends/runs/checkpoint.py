"""Checkpoints: named arrays in a safetensors file and a small JSON file beside it, the same for every backend.

params/NAME, ema/NAME               float32; convolutions [out, in, h, w], dense layers [out, in]
first_moment/NAME, second_moment/NAME   RAdam's moments
loss_scale/factor, loss_scale/good_steps   where the network computes in float16
teacher/NAME                        where the teacher has a moving average of its own
ema_0.05/NAME                       the average of this length, for each of `train.ema_sigma_rel`

state.py has the JSON file, whose checksum covers all: the step, the sha256 of the arrays, the settings of the run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ict_backends.arrays import read_safetensors, stream_safetensors, write_safetensors
from ict_backends.errors import CheckpointError, NonFiniteError, UsageError
from ict_backends.files import file_sha256, remove_folder, sync, whole_folder
from ict_backends.protocols import Arrays
from ict_backends.runs.folder import RunDir, is_step, step_of
from ict_backends.runs.state import STATE_FILE, State, read_state, state_text
from ict_core import Config
from ict_core.ema import LENGTHS, is_length

_TENSORS = "state.safetensors"


class Checkpoint(NamedTuple):
    """The state of a run after `step` steps; each dict has float32 arrays by the names of the parameters.

    Attributes:
        step: the number of steps done, >= 0.
        params: the student's weights, which are trained.
        ema: the moving average of `params`.
        first_moment, second_moment: the moments of the optimiser, whose own step count is `step`.
        loss_scale: the fields of `ict_core.LossScale`, or empty where the loss is not scaled.
        teacher: the teacher's weights, or empty where they are the student's (`teacher.decay` = 0).
        averages: the averages of `train.ema_sigma_rel` by their names, such as "0.05".
    """

    step: int
    params: Arrays
    ema: Arrays
    first_moment: Arrays
    second_moment: Arrays
    loss_scale: Arrays = {}  # noqa: RUF012
    teacher: Arrays = {}  # noqa: RUF012
    averages: dict[str, Arrays] = {}  # noqa: RUF012

    def teacher_or_student(self) -> Arrays:
        """The teacher's weights, by name; before the first step, `params`, with which every teacher begins."""
        return self.teacher if self.step else self.params

    def average_or_student(self, name: str, what: str) -> Arrays:
        """The arrays of an average; before the first step, `params`, with which every average begins.

        Raises CheckpointError, naming `what`, if there is no such average.
        """
        if self.step and name not in self.averages:
            raise CheckpointError(f"{what} has no average of the length {name}, which train.ema_sigma_rel asks for")
        return self.averages[name] if self.step else self.params

    def weights(self, name: str, what: str) -> Arrays:
        """The arrays of a kind of weights (`weights_name`): "ema", "raw", "best" or the length of an average.

        Raises CheckpointError, naming `what` and the averages that there are, if there is no such average.
        """
        if name in ("ema", "best"):
            return self.ema
        if name == "raw":
            return self.params
        if name not in self.averages:
            there = ", ".join(["ema", "raw", *self.averages])
            raise CheckpointError(f"--weights {name}: {what} has no average of this length; it has {there}")
        return self.averages[name]

    def groups(self) -> dict[str, Arrays]:
        """All arrays, by the names of their groups in the file."""
        own = {group: getattr(self, group) for group in _GROUPS}
        return own | {average_group(name): arrays for name, arrays in self.averages.items()}


_GROUPS = Checkpoint._fields[1:-1]
_AVERAGE = "ema_"


def average_group(name: str) -> str:
    """The name in the file of the group of an average: "ema_0.05"."""
    return f"{_AVERAGE}{name}"


def weights_name(text: str) -> str:
    """The name of a kind of weights: "ema", "raw" or "best", or a length in the shortest digits ("0.05" for "0.050").

    Raises UsageError for anything else.
    """
    if text in ("ema", "raw", "best"):
        return text
    try:
        length = float(text)
    except ValueError:
        length = 0.0
    if not is_length(length):
        raise UsageError(
            f"--weights {text} must be ema, raw or best, or the length of an average that train.ema_sigma_rel keeps, "
            f"such as 0.05, {LENGTHS}"
        )
    return str(length)


def save_checkpoint(
    run: RunDir, checkpoint: Checkpoint, *, keep: int, keep_every: int = 0, config: Config | None = None
) -> Path:
    """Write a checkpoint, whole or not at all, then remove old ones.

    Args:
        run: the run's folder.
        checkpoint: the state to write.
        keep: the number of newest checkpoints to keep, this one included; 0 removes none.
        keep_every: also keep checkpoints whose step is a multiple of this; 0 for no others.
        config: the run's settings, which the checkpoint then holds, too.

    Returns:
        The checkpoint's folder.

    Raises:
        NonFiniteError: a weight is NaN or infinite; nothing is written, and the older checkpoints stay.
        CheckpointError, OSError: the checkpoint cannot be written, as on a full disk; the older ones stay.
    """
    folder = run.checkpoint_folder(checkpoint.step)
    write_checkpoint(folder, checkpoint, last=run.describe_latest(), config=config)
    remove_old_checkpoints(run, checkpoint.step, keep=keep, keep_every=keep_every)
    return folder


def remove_old_checkpoints(run: RunDir, step: int, *, keep: int, keep_every: int) -> None:
    """Remove all checkpoints up to that of `step` but those that `save_checkpoint` keeps by the same arguments."""
    until_now = [each for each in run.checkpoints() if step_of(each) <= step]
    for old in until_now[:-keep] if keep else []:
        if not keep_every or step_of(old) % keep_every:
            remove_checkpoint(old)


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint's folder, unless it lies in a folder that is a symbolic link: what that points to stays."""
    if not folder.parent.is_symlink():
        remove_folder(folder)


def write_checkpoint(
    folder: Path, checkpoint: Checkpoint, *, last: object = "none", config: Config | None = None
) -> None:
    """Write a checkpoint into a folder of its own, whole or not at all, in place of one that is there.

    Args:
        folder: the checkpoint's folder.
        checkpoint: the state to write.
        last: the last good checkpoint, which the error names where a weight is not finite.
        config: the run's settings, which the checkpoint then holds, too.

    Raises:
        NonFiniteError, CheckpointError, OSError: as for `save_checkpoint`.
    """
    arrays = {f"{group}/{name}": array for group, named in checkpoint.groups().items() for name, array in named.items()}
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise NonFiniteError(f"{bad[0]} is not finite after step {checkpoint.step}; last good checkpoint: {last}")
    with whole_folder(folder) as temporary:
        write_safetensors(temporary / _TENSORS, arrays)
        text = state_text(checkpoint.step, file_sha256(temporary / _TENSORS), config)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")


def load_newest(run: RunDir, *, warn: Callable[[str], object], writes: bool = True) -> tuple[Path, Checkpoint]:
    """Read the newest checkpoint of a run that is not damaged, and return its folder and the checkpoint.

    Newer ones, which are damaged, are renamed to NAME.damaged, so that nothing takes them for checkpoints any more.

    Args:
        run: the run's folder.
        warn: called with a message for each newer checkpoint that is damaged.
        writes: rename damaged ones; False in all but one of several processes.

    Raises:
        CheckpointError: there is no checkpoint, or all are damaged; nothing is renamed then.
    """
    *newer, oldest = [*reversed(run.checkpoints())] or [run.latest_checkpoint()]
    damaged: list[Path] = []
    for folder in (*newer, oldest):
        try:
            checkpoint = load_checkpoint(folder)
        except CheckpointError as error:
            if folder is oldest:
                raise
            warn(f"{error}; going on from the one before")
            damaged.append(folder)
        else:
            for each in damaged if writes else ():
                _set_aside(each)
            return folder, checkpoint
    raise AssertionError  # the last one is returned or raised


def _set_aside(folder: Path) -> None:
    names = (f"{folder.name}.damaged{i or ''}" for i in range(10**6))
    os.replace(folder, next(p for name in names if not (p := folder.with_name(name)).exists()))
    sync(folder.parent)


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's folder.

    Raises:
        CheckpointError: the checkpoint is truncated or changed, or this package did not write it.
    """
    state, tensors = _read_checked(folder)
    groups: dict[str, Arrays] = {group: {} for group in _GROUPS}
    averages: dict[str, Arrays] = {}
    for name, array in read_safetensors(tensors).items():
        group, _, parameter = name.partition("/")
        if group not in groups and not _is_average(group):
            raise CheckpointError(f"checkpoint {folder} is not one of ict's: it holds {name}")
        if array.dtype != np.float32 and group != "loss_scale":
            raise CheckpointError(f"checkpoint {folder} is not one of ict's: {name} is {array.dtype}, not float32")
        if group in groups:
            groups[group][parameter] = array
        else:
            averages.setdefault(group.removeprefix(_AVERAGE), {})[parameter] = array
    return Checkpoint(state.step, **groups, averages=dict(sorted(averages.items(), key=lambda item: float(item[0]))))


def _is_average(group: str) -> bool:
    """True for the group of an average, whose name is a number as Python writes it."""
    length = group.removeprefix(_AVERAGE)
    try:
        return group.startswith(_AVERAGE) and str(float(length)) == length
    except ValueError:
        return False


def stream_averages(
    folder: Path, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, str, np.ndarray]]:
    """The arrays of some averages, one at a time in memory: the average's name, the parameter's, and the array.

    Args:
        folder: the checkpoint's folder.
        names: the names of the averages.
        shapes: the shape of each array, by the parameters' names.

    Raises:
        CheckpointError: the checkpoint is damaged, as for `load_checkpoint`; or lacks such an average of these shapes.
    """
    _, tensors = _read_checked(folder)
    for average in names:
        prefix, left = f"{average_group(average)}/", dict(shapes)
        for name, array in stream_safetensors(tensors, prefix):
            parameter = name.removeprefix(prefix)
            if left.pop(parameter, None) != array.shape or array.dtype != np.float32:
                raise CheckpointError(f"checkpoint {folder} does not fit the network: {name} is {[*array.shape]}")
            yield average, parameter, array
        if left:
            raise CheckpointError(f"checkpoint {folder} does not fit the network: it has no {prefix}{min(left)}")


def _read_checked(folder: Path) -> tuple[State, Path]:
    """The JSON file of a checkpoint, and the file of its arrays, whose contents have been checked by their sha256."""
    state = _read_state(folder)
    tensors = folder / _TENSORS
    if tensors.exists() and not tensors.is_file():  # a device or a pipe could be read for ever
        raise CheckpointError(f"checkpoint {folder} cannot be read: {_TENSORS} is no file")
    try:
        read = file_sha256(tensors)
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error.strerror}") from error
    if read != state.sha256:
        raise CheckpointError(
            f"checkpoint {folder} is damaged: the contents of {_TENSORS} are not those that were written"
        )
    return state, tensors


def check_finite(what: str, arrays: Arrays) -> None:
    """Raise NonFiniteError, which names `what` and the array, if one of the arrays has a NaN or an infinity."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise NonFiniteError(f"{what} is refused: {name} is not finite")


def _read_state(folder: Path) -> State:
    state = read_state(folder)
    if is_step(folder) and step_of(folder) != state.step:
        raise CheckpointError(f"checkpoint {folder} is damaged: {STATE_FILE} says that it is of step {state.step}")
    return state


def check_whole(folder: Path) -> None:
    """Raise CheckpointError if a checkpoint lacks its arrays, or its JSON file is damaged; the arrays are not read."""
    _read_state(folder)
    if not (folder / _TENSORS).is_file():
        raise CheckpointError(f"checkpoint {folder} is damaged: it has no {_TENSORS}")


def read_step(folder: Path) -> int:
    """The step after which a checkpoint was written. Raises CheckpointError as `load_checkpoint` does."""
    return _read_state(folder).step


def read_digest(folder: Path) -> str:
    """The sha256 of a checkpoint's arrays, unlike that of any other. Raises CheckpointError as `load_checkpoint`."""
    return _read_state(folder).sha256


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
