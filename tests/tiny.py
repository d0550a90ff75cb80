"""The smallest settings that train, for Python and for the command line.

Loaded as `tiny` through pytest's `pythonpath`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ict_core.settings import merge

Tree = Mapping[str, Mapping[str, Any]]

# One level without attention on images of 4x4. A test adds what it is about.
SMALLEST: Tree = {
    "network": {"channels": 8, "channel_mult": [1], "blocks": 1, "attention_resolutions": [], "dropout": 0.0},
    "data": {"shape": [1, 4, 4]},
    "curriculum": {"s0": 2, "s1": 8},
    "train": {"batch_size": 4},
}


def smallest(**sections: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The smallest settings, with these ones changed."""
    return merge([SMALLEST, sections])


def as_options(tree: Tree) -> list[str]:
    """Settings as options of a command: --set=SECTION.KEY=VALUE."""
    return [
        f"--set={section}.{key}={json.dumps(value, separators=(',', ':'))}"
        for section, values in tree.items()
        for key, value in values.items()
    ]


# Two levels, since the digits have 8x8 pixels; their stages are the preset's.
_DIGITS = smallest(network={"channel_mult": [1, 1]}, train={"log_every": 1})
# A run of the command line on the digits.
TINY = [*as_options({"network": _DIGITS["network"], "train": _DIGITS["train"]}), "--device=cpu", "--steps=2"]
