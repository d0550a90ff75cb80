"""The runs in a folder and how each of them stands, from its small files: no checkpoint is read."""

from __future__ import annotations

import contextlib
import math
import os
import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from ict_backends.errors import CheckpointError
from ict_backends.files import folder_usage
from ict_backends.runs.checkpoint import check_whole
from ict_backends.runs.folder import RunDir, read_history
from ict_backends.runs.lines import is_evaluation, is_log, whole_lines
from ict_backends.runs.lock import is_in_use

# Studies keep their runs in a folder of their own; deeper ones are not looked for.
_DEPTH = 3


class Evaluation(NamedTuple):
    """What the evaluations during training have shown.

    Attributes:
        metric: the name of the metric, of which less is better.
        last: the newest value.
        best: the smallest one of the same metric and the same number of samples.
    """

    metric: str
    last: float
    best: float


class Standing(NamedTuple):
    """How a run stands.

    Attributes:
        path: its folder.
        size: the bytes of its files.
        changed: when the newest of them was written, in UTC.
        in_use: True if a process is training it.
        preset: the preset that its command named, or else None.
        source: the source of its data, as in `data.source`; None if its settings cannot be read.
        backend: the backend that trained it last; None if the run does not say so.
        step: the number of steps done; None as for `source`.
        total: the number of steps that it is to have; None as for `source`.
        loss: the newest logged loss, or None.
        evaluation: the evaluations, or None.
        damaged: why it cannot be used; "" if it can, as far as its small files tell.
    """

    path: Path
    size: int
    changed: datetime
    in_use: bool
    preset: str | None = None
    source: str | None = None
    backend: str | None = None
    step: int | None = None
    total: int | None = None
    loss: float | None = None
    evaluation: Evaluation | None = None
    damaged: str = ""

    def record(self) -> dict[str, Any]:
        """The fields by name, for JSON, in which a number that is not finite is null."""
        plain = {"path": str(self.path), "changed": self.changed.isoformat(sep=" ", timespec="seconds")}
        figures = {} if self.evaluation is None else self.evaluation._asdict()
        evaluation = {name: _finite(value) for name, value in figures.items()} or None
        return self._asdict() | plain | {"loss": _finite(self.loss), "evaluation": evaluation}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def list_runs(folder: Path) -> list[Standing]:
    """How the runs in a folder, and in its folders, stand; those that changed last come first.

    The folder may itself be a run. Hidden folders and symbolic links to folders without a run are passed over.
    """
    return sorted(map(standing, find_runs(folder)), key=lambda run: (-run.changed.timestamp(), str(run.path)))


def find_runs(folder: Path, depth: int = _DEPTH) -> Iterator[Path]:
    """Yield the folders of runs, sorted by name; those within a run are not its runs."""
    if _is_run(folder):
        yield folder
        return
    inner: list[Path] = []
    with contextlib.suppress(OSError):
        inner = sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != ".")
    for path in inner:
        if _is_run(path) or (depth > 1 and not path.is_symlink()):
            yield from find_runs(path, depth - 1)


def _is_run(folder: Path) -> bool:
    """True for a run, and for what is left of one that has lost its settings."""
    run = RunDir(folder)
    try:
        return run.config_file.is_file() or run.metrics_file.is_file() or bool(run.checkpoints())
    except OSError:
        return False


def standing(folder: Path) -> Standing:
    """How a run stands. Of a damaged one, `damaged` says why, and what can be read is there."""
    usage, run = folder_usage(folder), RunDir(folder)
    found = Standing(folder, usage.size, datetime.fromtimestamp(usage.changed, UTC), is_in_use(folder))
    with contextlib.suppress(CheckpointError, OSError):
        preset, backend = _commands(run)
        found = found._replace(preset=preset, backend=backend)
    try:
        config = run.load_config()
        found = found._replace(source=config.data.source, total=config.train.total_steps, step=run.steps_done())
        logged = whole_lines(run.metrics_file, is_log)
        steps = [run.steps_done(), *(record["step"] for record in logged[-1:])]
        losses = [float(record["loss"]) for record in logged[-1:] if "loss" in record]
        found = found._replace(step=max(steps), loss=losses[0] if losses else None)
        found = found._replace(evaluation=_evaluation(whole_lines(run.evals_file, is_evaluation)))
        for checkpoint in run.checkpoints()[-1:]:
            check_whole(checkpoint)
    except CheckpointError as error:
        found = found._replace(damaged=str(error))
    except OSError as error:
        found = found._replace(damaged=f"{error.filename} cannot be read: {error.strerror}")
    return found


def _evaluation(records: Sequence[dict[str, Any]]) -> Evaluation | None:
    if not records:
        return None
    last = records[-1]
    alike = [r["value"] for r in records if (r["metric"], r["num"]) == (last["metric"], last["num"])]
    sound = [value for value in alike if value == value]  # no NaN
    return Evaluation(last["metric"], float(last["value"]), float(min(sound, default=last["value"])))


def _commands(run: RunDir) -> tuple[str | None, str | None]:
    """The preset and the backend that the commands of a run name."""
    commands = [words for record in read_history(run) if (words := _words(record.get("command", "")))]
    presets = [preset for words in commands if (preset := _value(words, "--preset"))]
    backend = _value(commands[-1], "--backend") or "torch" if commands else None
    return presets[0] if presets else None, backend


def _words(command: str) -> list[str]:
    """The words of a command line; none of one that is no such line."""
    try:
        return shlex.split(command)
    except ValueError:
        return []


def _value(words: Sequence[str], option: str) -> str | None:
    """The value of an option of a command line that `command_line` of the commands wrote."""
    return next((value for word, value in pairwise(words) if word == option), None)
