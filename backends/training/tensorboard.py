"""Scalars and sample pictures for TensorBoard, by the tensorboardX package."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ict_backends.errors import UsageError
from ict_backends.training.scalars import scalars


def check_tensorboard() -> None:
    """Raise UsageError if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise UsageError("train.tensorboard = true needs tensorboardX: pip install 'ict[tensorboard]'") from error


class TensorBoard:
    """A context that writes event files.

    Args:
        folder: the folder for them; a resumed run adds a file.
        first: the step that training starts from; records of later steps, left by an interrupted run, are hidden.
    """

    def __init__(self, folder: Path, first: int) -> None:
        check_tensorboard()
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first + 1 if first else None)

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.close()

    def add_record(self, record: dict[str, Any]) -> None:
        """Write the numbers of a record of the log."""
        for name, number in scalars(record).items():
            self._writer.add_scalar(name, number, record["step"])

    def add_picture(self, step: int, picture: np.ndarray) -> None:
        """Write a picture of samples, [h, w, c] uint8."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._writer.add_image("samples", picture, step, dataformats="HWC")
