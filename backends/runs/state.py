"""The JSON file of a checkpoint: its step, the sha256 of its arrays, the settings of its run, and a checksum of these.

Checkpoints of earlier versions have neither settings nor a checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ict_backends.errors import CheckpointError
from ict_core import Config

# Arrays as `checkpoint.py` describes them, by the names of the parameters.
FORMAT = "ict-checkpoint-1"
STATE_FILE = "state.json"
# More than any of a run's small files has, in bytes.
_MOST_JSON = 2**26


class State(NamedTuple):
    """What a checkpoint's JSON file says.

    Attributes:
        step: the number of steps done, >= 0.
        sha256: that of the arrays' file.
        settings: the settings of the run by dotted name; empty if an earlier version wrote the file.
    """

    step: int
    sha256: str
    settings: dict[str, Any]


def state_text(step: int, sha256: str, config: Config | None) -> str:
    """The content of the file that `read_state` reads; without settings if `config` is None."""
    state: dict[str, Any] = {"format": FORMAT, "step": step, "sha256": sha256}
    if config is not None:
        state["settings"] = config.flat()
    state["checksum"] = _checksum(state)
    return json.dumps(state, indent=2) + "\n"


def _checksum(state: Mapping[str, Any]) -> str:
    """The sha256 of all fields but the checksum itself."""
    text = json.dumps({name: value for name, value in state.items() if name != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def read_state(folder: Path) -> State:
    """Read the JSON file of a checkpoint's folder.

    Raises:
        CheckpointError: the file is damaged, or this package did not write it.
    """
    if not (folder / STATE_FILE).exists():
        raise CheckpointError(f"checkpoint {folder} is not one of ict's: it has no {STATE_FILE}")
    damaged = f"checkpoint {folder} is damaged: {STATE_FILE}"
    state = read_json(folder / STATE_FILE, damaged)
    if state.get("format", FORMAT) != FORMAT:
        raise CheckpointError(f"checkpoint {folder} has format {state['format']!r}; this version reads {FORMAT!r}")
    if "checksum" in state and state["checksum"] != _checksum(state):
        raise CheckpointError(f"{damaged} is not as it was written")
    step, sha256, settings = state.get("step"), state.get("sha256"), state.get("settings", {})
    if type(step) is not int or not 0 <= step < 2**31:
        raise CheckpointError(f"{damaged} says no step, an integer in [0, 2^31)")
    if not isinstance(sha256, str) or not isinstance(settings, dict):
        raise CheckpointError(f"{damaged} says no sha256, or settings that are none")
    return State(step, sha256, settings)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a small JSON file with an object in it.

    Args:
        path: the file.
        what: names the file in the error.

    Raises:
        CheckpointError: the file cannot be read, or holds anything else.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")  # a device or a pipe could be read for ever
        with open(path, "rb") as file:
            content = file.read(_MOST_JSON + 1)
        if len(content) > _MOST_JSON:
            raise ValueError(f"it is larger than {_MOST_JSON // 2**20} MiB")
        record = json.loads(content.decode())
        if not isinstance(record, dict):
            raise ValueError(f"it holds no object, but a {type(record).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} cannot be read ({error})") from error
    return record
