"""A run's folder: what is where in it.

RUN/config.toml                     the resolved configuration
RUN/data.json                       count and sha256 of the images
RUN/metrics.jsonl                   one JSON object a logged step
RUN/tensorboard/                    the same for TensorBoard, where it is asked for
RUN/evals.jsonl                     one JSON object an evaluation, where training evaluates
RUN/best/step_00000100/             the checkpoint whose evaluation was best
RUN/sigmas.json                     levels for sampling in several steps, where they were searched for
RUN/samples/step_00000100.png       one-step samples from the EMA weights, always from the same noise
RUN/checkpoints/step_00000100/      state.safetensors and state.json
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ict_backends.data.dataset import Dataset
from ict_backends.errors import CheckpointError, UsageError
from ict_backends.files import write_atomically
from ict_core import Config, ConfigError, load_config


@dataclass(frozen=True)
class RunDir:
    """The paths of a run."""

    path: Path

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
    def evals_file(self) -> Path:
        """RUN/evals.jsonl."""
        return self.path / "evals.jsonl"

    def best_folder(self, step: int) -> Path:
        """RUN/best/step_N."""
        return self.path / "best" / f"step_{step:08d}"

    def best_checkpoints(self) -> list[Path]:
        """The folders of the best checkpoints, oldest first: one, but for moments."""
        return _step_folders(self.path / "best")

    @property
    def tensorboard_folder(self) -> Path:
        """RUN/tensorboard."""
        return self.path / "tensorboard"

    @property
    def sigmas_file(self) -> Path:
        """RUN/sigmas.json."""
        return self.path / "sigmas.json"

    def samples_file(self, step: int) -> Path:
        """RUN/samples/step_N.png."""
        return self.path / "samples" / f"step_{step:08d}.png"

    def checkpoint_folder(self, step: int) -> Path:
        """RUN/checkpoints/step_N."""
        return self.path / "checkpoints" / f"step_{step:08d}"

    def checkpoints(self) -> list[Path]:
        """The folders of the checkpoints, oldest first."""
        return _step_folders(self.path / "checkpoints")

    def latest_checkpoint(self) -> Path:
        """The newest checkpoint's folder. Raises CheckpointError where there is none."""
        found = self.checkpoints()
        if not found:
            raise CheckpointError(f"run {self.path} has no checkpoints in {self.path / 'checkpoints'}")
        return found[-1]

    def describe_latest(self) -> str:
        """The newest checkpoint's folder, or "none"."""
        folders = self.checkpoints()
        return str(folders[-1]) if folders else "none"

    def checkpoint_of(self, weights: str) -> Path:
        """The folder of the checkpoint that has the weights "ema" or "raw" (the newest), or "best".

        Raises CheckpointError where there is none.
        """
        if weights != "best":
            return self.latest_checkpoint()
        found = self.best_checkpoints()
        if not found:
            raise CheckpointError(
                f"run {self.path} has no best checkpoint: no evaluation (eval.every) has come to an end"
            )
        return found[-1]

    def load_config(self) -> Config:
        """The run's configuration. Raises CheckpointError where this is no run."""
        if not self.path.is_dir():
            raise CheckpointError(f"run {self.path} does not exist")
        if not self.config_file.is_file():
            raise CheckpointError(f"{self.path} is not a run: it has no {self.config_file.name}")
        try:
            return load_config(self.config_file)
        except ConfigError as error:
            raise CheckpointError(f"run {self.path}: {error}") from error


def _step_folders(parent: Path) -> list[Path]:
    found = (p for p in parent.glob("step_*") if re.fullmatch(r"step_\d{8,}", p.name) and p.is_dir())
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step_"))


def remove_leftovers(run: RunDir) -> None:
    """Remove what a process that was killed was about to write."""
    for leftover in run.path.rglob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def create_run(path: Path, config: Config, dataset: Dataset | None) -> RunDir:
    """Make the folder of a new run; without a data set, one that has seen none yet.

    Raises UsageError where the folder holds another run, or other files.
    """
    run = RunDir(path)
    if run.config_file.exists():
        raise UsageError(f"--out {path} holds another run; continue it with --resume or choose another folder")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"--out {path} is not an empty folder; choose another one")
    remember_data(run, dataset)
    write_atomically(run.config_file, config.to_toml().encode())
    return run


def remember_data(run: RunDir, dataset: Dataset | None) -> None:
    """Note the data set that the run is trained on, for `check_same_data`."""
    write_atomically(run.data_file, (json.dumps(_describe_data(dataset)) + "\n").encode())


def check_same_data(run: RunDir, dataset: Dataset) -> None:
    """Raise CheckpointError unless the data set is the one that the run was started with, or it has seen none yet."""
    try:
        known = json.loads(run.data_file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"run {run.path}: {run.data_file.name} cannot be read ({error})") from error
    if known["sha256"] is not None and known != _describe_data(dataset):
        raise CheckpointError(
            f"run {run.path} was started on other data; resuming needs the same images in the same order"
        )


def _describe_data(dataset: Dataset | None) -> dict[str, object]:
    if dataset is None:
        return {"count": 0, "sha256": None}
    digest = hashlib.sha256(np.ascontiguousarray(dataset.images).data)
    if dataset.labels is not None:
        digest.update(np.ascontiguousarray(dataset.labels).data)
    return {"count": len(dataset.images), "sha256": digest.hexdigest()}


def free_run_path(parent: Path, name: str) -> Path:
    """The first of parent/name-001, parent/name-002, ... that does not exist."""
    return next(p for i in range(1, 10**6) if not (p := parent / f"{name}-{i:03d}").exists())
