"""The scalars of a run's records, by the names under which TensorBoard and Weights & Biases show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of the log, as "train/loss" and "train/loss_bands/0.002_to_0.00752", or of an evaluation.

    What has no value, as a band without images, is left out; so is the step, at which all of them are logged.
    """
    found: dict[str, float] = {}
    for name, value in record.items():
        tag = name if name.startswith("eval/") else f"train/{name}"
        parts = {f"{tag}/{key}": v for key, v in value.items()} if isinstance(value, dict) else {tag: value}
        found |= {key: v for key, v in parts.items() if v is not None and name != "step"}
    return found
