"""How a step is shared among processes, in words."""

from __future__ import annotations

import pytest

from ict_backends.errors import UsageError
from ict_backends.training.split import describe_split


def test_a_split_is_described() -> None:
    found = describe_split(4096, 32, 8, "processes")
    assert found == "8 processes share each step of 4,096 images: 512 for each, 32 at a time, in 16 micro-batches"
    assert describe_split(64, 0, 2, "devices") == "2 devices share each step of 64 images: 32 for each, all at a time"
    with pytest.raises(UsageError, match="must be divisible by the number of processes, 3"):
        describe_split(64, 0, 3, "processes")
