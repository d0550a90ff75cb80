"""Records of a run that grow by a line at a time: files with a JSON object a line, such as RUN/metrics.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ict_backends.console import warn
from ict_backends.errors import CheckpointError


def read_lines(path: Path, sound: Callable[[dict[str, Any]], bool] = lambda record: True) -> list[dict[str, Any]]:
    """Read the records of a file; there are none without a file.

    A last line that is not whole is left out, with a warning: a full disk or a lost machine leaves such lines.

    Args:
        sound: whether a record has the fields that records of this file have; every record has the number of its step.

    Raises:
        CheckpointError: another line is damaged, or the file cannot be read.
    """
    records, rest = _parse(path, sound)
    if rest:
        warn(f"the last line of {path} is not whole and is left out")
    return records


def whole_lines(path: Path, sound: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """What `read_lines` returns, without a warning: the last line may be being written. Raises its CheckpointError."""
    return _parse(path, sound)[0]


def check_lines(path: Path, sound: Callable[[dict[str, Any]], bool]) -> None:
    """Do nothing if `read_lines` can read the records of a file; raise its CheckpointError if not."""
    _parse(path, sound)


def _parse(path: Path, sound: Callable[[dict[str, Any]], bool]) -> tuple[list[dict[str, Any]], bool]:
    """The whole records of a file, and whether its last line is not whole."""
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    # What a lost machine had not written yet may read as zeros.
    *whole, rest = content.rstrip(b"\0").split(b"\n")
    records = [_record(line, sound) for line in whole]
    cut = bool(rest) or (bool(records) and records[-1] is None)
    if cut and not rest:
        records.pop()
    damaged = next((number for number, record in enumerate(records, start=1) if record is None), None)
    if damaged is not None:
        raise CheckpointError(f"{path} cannot be read: line {damaged} is damaged; without that line, it can")
    return [record for record in records if record is not None], cut


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """True for a record of RUN/evals.jsonl: a step, the name of a metric, a number of samples, and a value."""
    return type(record.get("num")) is int and isinstance(record.get("metric"), str) and _is_number(record.get("value"))


def is_log(record: Mapping[str, Any]) -> bool:
    """True for a record of RUN/metrics.jsonl: numbers and, as `loss_bands`, some by name; null stands for none.

    Earlier versions wrote the bands as a list.
    """
    bands = record.get("loss_bands") or {}
    numbers = all(_is_number(value) for name, value in record.items() if name != "loss_bands")
    if not (numbers and isinstance(bands, dict | list)):
        return False
    return all(mean is None or _is_number(mean) for mean in band_losses(record))


def band_losses(record: Mapping[str, Any]) -> list[Any]:
    """The `loss_bands` of a record of the log, from the lowest noise levels to the highest; [] if it has none."""
    bands = record.get("loss_bands") or []
    return list(bands.values()) if isinstance(bands, dict) else bands


def _is_number(value: object) -> bool:
    """True for a number that a float can have, NaN included; True and False are none."""
    return type(value) is float or (type(value) is int and abs(value) < 2**63)


def _record(line: bytes, sound: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    """The record of a line, or None if the line is damaged."""
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    whole = isinstance(record, dict) and type(record.get("step")) is int and sound(record)
    return record if whole else None


def append_line(path: Path, text: str) -> None:
    """Append whole lines to a file, so that it gets all of them or, with an OSError, none."""
    # Opened by its name each time: a file that was deleted meanwhile would take lines and keep none.
    with open(path, "ab", buffering=0) as file:
        size, left = os.fstat(file.fileno()).st_size, text.encode()
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(size)
            raise
