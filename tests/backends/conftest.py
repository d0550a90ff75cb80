import numpy as np
import pytest

from ict_backends.data import Dataset
from ict_core import Config
from ict_core.config import build_config, merge

TINY = {
    "data": {"shape": [3, 8, 8], "flip": True},
    "network": {"channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [4], "dropout": 0.3},
    "curriculum": {"s0": 2, "s1": 8},
    "train": {
        "total_steps": 10,
        "batch_size": 6,
        "learning_rate": 1e-3,
        "ema_decay": 0.9,
        "log_every": 2,
        "sample_every": 0,
        "checkpoint_every": 0,
    },
}


@pytest.fixture
def tiny_config():
    """A function from changed sections to a configuration that trains in a moment."""

    def make(**sections: dict) -> Config:
        return build_config(merge([TINY, sections]))

    return make


@pytest.fixture
def tiny_data() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (10, 3, 8, 8), dtype=np.uint8), np.arange(10) % 4)
