"""The weights in what a trainer saved: which of its state dicts they are, and names without wrappers' prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ict_backends.errors import CheckpointError
from ict_backends.protocols import Arrays

# What trainers call the average of the weights, and then the weights themselves: the first that is there is taken.
_AVERAGES = (
    "ema",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "ema_params",
    "params_ema",
    "shadow",
)
_WEIGHTS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "unet", "params")
_GROUPS = _AVERAGES + _WEIGHTS
# What torch.compile, FSDP and checkpointing insert into names, at any place.
_INSERTED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
# torch's AveragedModel counts its updates in this array.
_COUNTER = "n_averaged"
# More than trainers nest.
_DEPTH = 5


class StateDict(NamedTuple):
    """The weights that were found in a file.

    Attributes:
        arrays: the arrays by name, without the prefixes of wrappers.
        place: the names that led to them, such as "ema" or "model/module"; empty if there was nothing else.
    """

    arrays: Arrays
    place: str


def find_state_dict(tree: Mapping[Any, Any], what: str) -> StateDict:
    """Find the weights in what a trainer saved: arrays by name, or dicts of such by known names, nested or as prefixes.

    Of an average of the weights (`ema` and the like) and the weights themselves, the average is taken.

    Args:
        tree: nested dicts with NumPy arrays.
        what: names the file in the error.

    Raises:
        CheckpointError: there are no arrays by name in a known place; the message lists what is there.
    """
    place: list[str] = []
    while len(place) < _DEPTH:
        tree = _grouped(tree)
        group = next((name for name in _GROUPS if isinstance(tree.get(name), Mapping)), None)
        if group is None:
            break
        place.append(group)
        tree = tree[group]
    where = f"{what}: {'/'.join(place)}" if place else what
    if not tree or not all(isinstance(n, str) and isinstance(a, np.ndarray) for n, a in tree.items()):
        others = [str(name) for name, value in tree.items() if not isinstance(value, np.ndarray)]
        listed = ", ".join(others[:10]) + ", ..." * (len(others) > 10) if tree else "nothing"
        raise CheckpointError(f"{where} is no state dict: it must hold arrays by name and nothing else, not {listed}")
    return StateDict(dict(tree), "/".join(place))


def _grouped(tree: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """The tree without what wrappers insert into names; where every name begins with a group's, by these groups."""
    if not all(isinstance(name, str) for name in tree):
        return tree
    plain = {_without_inserted(name): value for name, value in tree.items() if name != _COUNTER or len(tree) == 1}
    if len(plain) < len(tree) - (_COUNTER in tree) or not all(isinstance(a, np.ndarray) for a in plain.values()):
        return tree
    if not all(name.partition(".")[0] in _GROUPS and "." in name for name in plain):
        return plain
    groups: dict[str, dict[str, Any]] = {}
    for name, value in plain.items():
        group, _, rest = name.partition(".")
        groups.setdefault(group, {})[rest] = value
    return groups


def _without_inserted(name: str) -> str:
    for wrapper in _INSERTED:
        name = name.replace(wrapper, "")
    return name
