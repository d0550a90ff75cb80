"""Scalars and sample pictures for Weights & Biases, by the wandb package."""

from __future__ import annotations

import contextlib
import os
from types import TracebackType
from typing import Any

import numpy as np

from ict_backends.errors import UsageError, UserError
from ict_backends.files import write_atomically
from ict_backends.runs.folder import RunDir
from ict_backends.training.scalars import scalars
from ict_core import Config


def check_wandb() -> None:
    """Raise UsageError if wandb is not installed."""
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise UsageError("train.wandb = true needs wandb: pip install 'ict[wandb]'") from error


class WandB:
    """A context that logs to one run of Weights & Biases, with which a resumed run goes on.

    Account, server and mode are what wandb's environment variables say, such as WANDB_MODE=offline; the project is
    WANDB_PROJECT, or "ict". wandb takes no second value for a step: those that a killed process has logged stay.

    Args:
        run: the run's folder, which keeps the id and wandb's files.
        config: the run's settings, which are logged by their dotted names.

    Raises:
        UserError: wandb cannot begin, as without an account.
    """

    def __init__(self, run: RunDir, config: Config) -> None:
        check_wandb()
        import wandb

        known = run.wandb_file.read_text(encoding="utf-8").strip() if run.wandb_file.is_file() else None
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "ict"),
                name=os.environ.get("WANDB_NAME", run.path.name),
                dir=str(run.path),
                config=config.flat(),
                id=known or os.environ.get("WANDB_RUN_ID"),
                resume="allow",
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise UserError(f"train.wandb = true: {reason} (WANDB_MODE=offline needs no account)") from error
        if self._run.id != known:
            with contextlib.suppress(OSError):  # the disk is full: what else is missing is said at the end
                write_atomically(run.wandb_file, f"{self._run.id}\n".encode())
        self._image = wandb.Image

    def __enter__(self) -> WandB:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)

    def add_record(self, record: dict[str, Any]) -> None:
        """Log the numbers of a record of the log."""
        self._run.log(scalars(record), step=record["step"])

    def add_picture(self, step: int, picture: np.ndarray) -> None:
        """Log a picture of samples, [h, w, c] uint8."""
        self._run.log({"samples": self._image(picture)}, step=step)
