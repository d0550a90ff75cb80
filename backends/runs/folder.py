"""A run's folder and the files in it.

RUN/.lock                           host and process, while the run is training (runs/lock.py)
RUN/config.toml                     the resolved configuration
RUN/data.json                       count and sha256 of the images; the names of the classes and the images of each
RUN/images.npz                      the images and labels, where training was given arrays in Python
RUN/metrics.jsonl                   one JSON object a logged step
RUN/tensorboard/                    the same for TensorBoard, on request
RUN/wandb-id.txt                    the id of the run of Weights & Biases, on request; RUN/wandb/ has its files
RUN/changes.jsonl                   one JSON object for each time that resuming changed settings
RUN/history.jsonl                   one JSON object for each start (date, command, versions), and for the end
RUN/evals.jsonl                     one JSON object an evaluation, where training evaluates
RUN/best/step_00000100/             the checkpoint whose evaluation was best
RUN/sigmas.json                     levels for sampling in several steps, where they were searched for
RUN/samples/step_00000100.png       one-step samples from the EMA weights, always from the same noise
RUN/checkpoints/step_00000100/      state.safetensors and state.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ict_backends.data.dataset import Dataset
from ict_backends.errors import CheckpointError, DataError, UsageError
from ict_backends.files import discard, write_atomically
from ict_backends.runs.lines import append_line, read_lines
from ict_backends.runs.lock import LOCK_FILE
from ict_backends.runs.state import read_json, read_state
from ict_core import Config, ConfigError
from ict_core.settings import Tree, build_config, current_name, read_toml

# The settings that may change when a run is resumed. Most decide what is written or held in memory, not what is
# computed. A run that has met NaN, or is finished, goes on with another rate, clipped gradients, a seed for what
# follows, or more steps.
FREE_ON_RESUME = {
    "data.hold",
    "data.source",
    "eval.every",
    "eval.metric",
    "eval.num",
    "network.checkpoint",
    "train.checkpoint_every",
    "train.clip_norm",
    "train.compile",
    "train.keep_checkpoints",
    "train.keep_every",
    "train.learning_rate",
    "train.log_every",
    "train.micro_batch",
    "train.on_nonfinite",
    "train.rate_decay",
    "train.rate_decay_from",
    "train.sample_every",
    "train.seed",
    "train.shard_weights",
    "train.tensorboard",
    "train.total_steps",
    "train.wandb",
    "train.warmup_steps",
}
# The settings that a run's file may have otherwise than its checkpoints.
_FREE = FREE_ON_RESUME | {"curriculum.steps"}
# The name of the folder of checkpoints in a run's.
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class RunDir:
    """The paths of the files in a run's folder.

    Attributes:
        path: the folder.
        chosen: the checkpoint's folder that weights are taken from; None for the newest, or the best on request.
    """

    path: Path
    chosen: Path | None = None

    @property
    def config_file(self) -> Path:
        """RUN/config.toml."""
        return self.path / "config.toml"

    @property
    def metrics_file(self) -> Path:
        """RUN/metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def data_file(self) -> Path:
        """RUN/data.json."""
        return self.path / "data.json"

    @property
    def images_file(self) -> Path:
        """RUN/images.npz."""
        return self.path / "images.npz"

    @property
    def changes_file(self) -> Path:
        """RUN/changes.jsonl."""
        return self.path / "changes.jsonl"

    @property
    def history_file(self) -> Path:
        """RUN/history.jsonl."""
        return self.path / "history.jsonl"

    @property
    def evals_file(self) -> Path:
        """RUN/evals.jsonl."""
        return self.path / "evals.jsonl"

    def best_folder(self, step: int) -> Path:
        """RUN/best/step_N."""
        return self.path / "best" / f"step_{step:08d}"

    def best_checkpoints(self) -> list[Path]:
        """The folders of the best checkpoints, oldest first: one, or two while one replaces the other."""
        return _step_folders(self.path / "best")

    @property
    def tensorboard_folder(self) -> Path:
        """RUN/tensorboard."""
        return self.path / "tensorboard"

    @property
    def wandb_file(self) -> Path:
        """RUN/wandb-id.txt."""
        return self.path / "wandb-id.txt"

    @property
    def sigmas_file(self) -> Path:
        """RUN/sigmas.json."""
        return self.path / "sigmas.json"

    def samples_file(self, step: int) -> Path:
        """RUN/samples/step_N.png."""
        return self.path / "samples" / f"step_{step:08d}.png"

    def checkpoint_folder(self, step: int) -> Path:
        """RUN/checkpoints/step_N."""
        return self.path / _CHECKPOINTS / f"step_{step:08d}"

    def checkpoints(self) -> list[Path]:
        """The folders of the checkpoints, oldest first."""
        return _step_folders(self.path / _CHECKPOINTS)

    def latest_checkpoint(self) -> Path:
        """The newest checkpoint's folder. Raises CheckpointError where there is none."""
        folders = self.checkpoints()
        if not folders:
            raise CheckpointError(f"run {self.path} has no checkpoints in {self.path / 'checkpoints'}")
        return folders[-1]

    def steps_done(self) -> int:
        """The step of the newest checkpoint; 0 where there is none yet."""
        return max((step_of(folder) for folder in self.checkpoints()), default=0)

    def describe_latest(self) -> str:
        """The newest checkpoint's folder, or "none"."""
        folders = self.checkpoints()
        return str(folders[-1]) if folders else "none"

    def checkpoint_of(self, weights: str) -> Path:
        """The folder of the checkpoint with the weights "best", or any others (the newest checkpoint).

        Raises CheckpointError where there is none, or another checkpoint is chosen than the best.
        """
        if self.chosen is not None:
            if weights == "best" and self.chosen not in self.best_checkpoints():
                raise CheckpointError(
                    f"--weights best: {self.chosen} is another checkpoint; take its other weights, such as ema"
                )
            return self.chosen
        if weights != "best":
            return self.latest_checkpoint()
        folders = self.best_checkpoints()
        if not folders:
            raise CheckpointError(
                f"run {self.path} has no best checkpoint: no evaluation (eval.every) has come to an end"
            )
        return folders[-1]

    def load_config(self) -> Config:
        """Read the run's configuration.

        Raises CheckpointError where the folder is no run, or the file is not what the checkpoints were written with.
        """
        if not self.path.is_dir():
            raise CheckpointError(f"run {self.path} does not exist")
        if not self.config_file.is_file():
            raise CheckpointError(f"{self.path} is not a run: it has no {self.config_file.name}")
        try:
            tree = read_toml(self.config_file)
            config = build_config(tree)
        except ConfigError as error:
            raise CheckpointError(f"run {self.path}: {error}") from error
        self._check_settings(tree, config)
        return config

    def _check_settings(self, tree: Tree, config: Config) -> None:
        """Raise CheckpointError unless the file has all settings of the checkpoint, and the fixed ones as they were.

        A file without its end would be read with defaults for what is missing.
        """
        folder, settings = self._written_settings()
        given = {f"{section}.{key}" for section, values in tree.items() for key in values}
        found: dict[str, Any] = json.loads(json.dumps(config.flat()))  # with lists for tuples
        written = {current_name(name): value for name, value in settings.items()}
        lost = ", ".join(name for name in written if name not in given)
        problems = [f"without {lost}"] * bool(lost)
        fixed = written.keys() & given - _FREE
        problems += [
            f"{name} is {found[name]} and was {written[name]}" for name in sorted(fixed) if found[name] != written[name]
        ]
        if problems:
            raise CheckpointError(
                f"run {self.path}: {self.config_file.name} has other settings than {folder} was written with: "
                f"{'; '.join(problems)}"
            )

    def _written_settings(self) -> tuple[str, dict[str, Any]]:
        """The name and the settings of the newest checkpoint, or the chosen one; none of an earlier version.

        Those that are damaged are passed over here: whoever reads them says so.
        """
        for folder in [self.chosen] if self.chosen else reversed(self.checkpoints()):
            try:
                return folder.name, read_state(folder).settings
            except CheckpointError:
                continue
        return "", {}


def open_run(path: str | Path) -> RunDir:
    """The run that a path names: its folder, RUN@STEP for one of its checkpoints, or a file or folder within it.

    RUN/config.toml names the run; RUN/checkpoints/step_N, RUN/best/step_N and their files name that checkpoint.

    Raises:
        CheckpointError: the run has no checkpoint of that step.
    """
    path = Path(path)
    if path.name == "config.toml" and path.is_file():
        return RunDir(path.parent)
    folder = path.parent if path.is_file() else path
    if is_step(folder) and folder.parent.name in (_CHECKPOINTS, "best") and folder.is_dir():
        return RunDir(folder.parent.parent, folder)
    match = re.fullmatch(r"(.+)@(\d{1,18})", path.name)
    if match is None or path.exists():
        return RunDir(path)
    run, step = RunDir(path.parent / match[1]), int(match[2])  # .@STEP is one of the working folder
    known = {step_of(each): each for each in [*run.best_checkpoints(), *run.checkpoints()]}
    if run.config_file.is_file() and step not in known:
        steps = ", ".join(map(str, sorted(known))) or "none"
        raise CheckpointError(f"run {run.path} has no checkpoint of step {step}; its steps are: {steps}")
    return RunDir(run.path, known.get(step))


def _step_folders(parent: Path) -> list[Path]:
    return sorted((p for p in parent.glob("step_*") if is_step(p) and p.is_dir()), key=step_of)


def is_step(folder: Path) -> bool:
    """True if a folder has the name of a checkpoint's."""
    return re.fullmatch(r"step_\d{8,}", folder.name) is not None


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step_"))


def remove_leftovers(run: RunDir) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    for leftover in run.path.rglob(".*.tmp"):
        discard(leftover)


def create_run(
    path: Path,
    config: Config,
    dataset: Dataset | None,
    *,
    prepare: Callable[[RunDir], object] = lambda run: None,
) -> RunDir:
    """Make the folder of a new run.

    Args:
        path: the folder, which must be empty or not exist.
        config: the resolved configuration.
        dataset: the data set of the run; None for a run that has not seen one yet.
        prepare: called with the run before its settings are written, which make the folder a run that can be resumed.
            Where it fails or is interrupted, the checkpoint that it wrote is removed again.

    Raises:
        UsageError: the folder holds another run, or other files.
    """
    check_new_run(path)
    run, fresh = RunDir(path), not path.exists()
    remove_leftovers(run)
    discard(path / _CHECKPOINTS)
    try:
        remember_data(run, config, dataset)
        prepare(run)
        write_atomically(run.config_file, config.to_toml().encode())
    except BaseException:
        _remove_half_run(run, all_of_it=fresh)
        raise
    return run


def _remove_half_run(run: RunDir, *, all_of_it: bool) -> None:
    """Remove what a run has that was not made to the end; what others gave its folder stays."""
    if run.config_file.exists():  # it is whole, and only the wait for the disk has failed
        return
    discard(run.path / _CHECKPOINTS)
    if all_of_it:
        run.data_file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is something else in it
            run.path.rmdir()


def check_new_run(path: Path) -> None:
    """Raise UsageError if the folder of a new run holds another run, or other files.

    What a process leaves that is killed before the run's settings are written is no other file.
    """
    if RunDir(path).config_file.exists():
        raise UsageError(f"--out {path} holds another run; continue it with --resume or choose another folder")
    if path.exists() and (not path.is_dir() or any(not _is_leftover(file) for file in path.iterdir())):
        raise UsageError(f"--out {path} is not an empty folder; choose another one")


def _is_leftover(file: Path) -> bool:
    if file.name == _CHECKPOINTS:
        return not file.is_symlink() and file.is_dir() and all(map(_is_first, file.iterdir()))
    return file.name in (LOCK_FILE, "data.json", "images.npz") or file.match(".*.tmp")


def _is_first(file: Path) -> bool:
    """True for what an import or --init leaves that is killed: the checkpoint before the first step or a part."""
    return file.match(".*.tmp") or (is_step(file) and step_of(file) == 0)


def remember_data(run: RunDir, config: Config, dataset: Dataset | None) -> None:
    """Write the number and the sha256 of the images that the run is trained on, for `check_same_data`.

    For a conditional network also the number of images of each class, which samples are drawn in the proportions of,
    and the names of the classes, if they have some.
    """
    record, classes = _describe_data(dataset), config.network.num_classes
    if dataset is not None and dataset.labels is not None and classes:
        record["class_counts"] = np.bincount(dataset.labels, minlength=classes).tolist()
        if dataset.classes:
            record["class_names"] = list(dataset.classes)
    write_atomically(run.data_file, (json.dumps(record) + "\n").encode())


def remember_changes(run: RunDir, config: Config) -> dict[str, tuple[object, object]]:
    """Write the settings of a run that goes on with other ones, and what changed at which step into RUN/changes.jsonl.

    Settings that an earlier version did not have are written, too: later checkpoints hold them.

    Returns:
        The old and the new value of each setting that changed, by its name.
    """
    old, new = run.load_config().flat(), config.flat()
    changed = {name: (old.get(name), value) for name, value in new.items() if value != old.get(name)}
    if changed:
        record = {"step": run.steps_done(), "changed": changed}
        append_line(run.changes_file, json.dumps(record) + "\n")
    if run.config_file.read_bytes() != config.to_toml().encode():
        write_atomically(run.config_file, config.to_toml().encode())
    return changed


def remember_start(run: RunDir, command: str, versions: Mapping[str, str]) -> None:
    """Add to RUN/history.jsonl that training starts or goes on: the step, the date, the command and the versions."""
    record = {"step": run.steps_done(), "date": _now(), "command": command, "versions": dict(versions)}
    append_line(run.history_file, json.dumps(record) + "\n")


def remember_end(run: RunDir, step: int) -> None:
    """Add to RUN/history.jsonl that training has come to its end. A full disk is no reason to fail then."""
    with contextlib.suppress(OSError):
        append_line(run.history_file, json.dumps({"step": step, "date": _now()}) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(sep=" ", timespec="seconds")


def read_history(run: RunDir) -> list[dict[str, Any]]:
    """The records of `remember_start` and `remember_end`, oldest first; none of a run of an earlier version.

    Raises:
        CheckpointError: the file is damaged.
    """
    return read_lines(run.history_file, _is_event)


def _is_event(record: Mapping[str, Any]) -> bool:
    command, versions = record.get("command", ""), record.get("versions", {})
    texts = isinstance(versions, dict) and all(isinstance(version, str) for version in versions.values())
    return isinstance(record.get("date"), str) and isinstance(command, str) and texts


def class_counts(run: RunDir, config: Config) -> np.ndarray | None:
    """The number of training images of each class, [num_classes] int64.

    None for an unconditional network, and where the run does not say it: it was imported, or is of an earlier version.
    """
    classes = config.network.num_classes
    try:
        counts = read_json(run.data_file, run.data_file.name)["class_counts"]
        found = np.array(counts, dtype=np.int64)
    except (CheckpointError, KeyError, ValueError, TypeError, OverflowError):
        return None
    ok = classes and found.shape == (classes,) and all(type(n) is int for n in counts) and (found >= 0).all()
    return found if ok and found.any() else None


def class_names(run: RunDir, config: Config) -> list[str] | None:
    """The names of the classes, by number.

    None for an unconditional network, and where the run does not say them: its data had none, or it is imported or of
    an earlier version.
    """
    try:
        names = read_json(run.data_file, run.data_file.name)["class_names"]
    except (CheckpointError, KeyError, TypeError):
        return None
    ok = isinstance(names, list) and len(names) == config.network.num_classes and all(type(n) is str for n in names)
    return names if ok and names else None


def check_same_data(run: RunDir, dataset: Dataset) -> None:
    """Raise CheckpointError if the run was started on another data set."""
    if not is_same_data(run, dataset):
        raise CheckpointError(
            f"run {run.path} was started on other data; resuming needs the same images in the same order"
        )


def check_training_data(run: RunDir, config: Config, dataset: Dataset) -> None:
    """Raise DataError unless a data set is the one that a run was trained on, as far as the run's folder says it."""
    if run.data_file.is_file() and not is_same_data(run, dataset):
        raise DataError(
            f"data {config.data.source} holds other images than the run in {run.path} was trained on; say by --data "
            "where these are, or what else to compare with"
        )


def is_same_data(run: RunDir, dataset: Dataset) -> bool:
    """True if a data set is that of the run, or the run has seen none. Raises CheckpointError for a damaged record."""
    known, told = read_json(run.data_file, f"run {run.path}: {run.data_file.name}"), _describe_data(dataset)
    missing = [key for key in told if key not in known]
    if missing:
        raise CheckpointError(f"run {run.path}: {run.data_file.name} is damaged: it has no {missing[0]}")
    return known["sha256"] is None or all(known[key] == told[key] for key in told)


def _describe_data(dataset: Dataset | None) -> dict[str, object]:
    if dataset is None:
        return {"count": 0, "sha256": None}
    digest = hashlib.sha256(np.ascontiguousarray(dataset.images).data)
    if dataset.labels is not None:
        digest.update(np.ascontiguousarray(dataset.labels).data)
    return {"count": len(dataset.images), "sha256": digest.hexdigest()}


def data_digest(dataset: Dataset) -> str:
    """The sha256 of the images and labels of a data set, as RUN/data.json has it."""
    return str(_describe_data(dataset)["sha256"])


def free_run_path(parent: Path, name: str) -> Path:
    """The first of parent/name-001, parent/name-002, ... that does not exist."""
    return next(p for i in range(1, 10**6) if not (p := parent / f"{name}-{i:03d}").exists())
