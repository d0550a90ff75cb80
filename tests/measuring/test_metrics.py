"""The table of metrics, and the settings that name one of them."""

from __future__ import annotations

import pytest

from ict_backends.measuring.metrics import METRICS
from ict_core.config import EvalConfig, rules_of


@pytest.mark.parametrize("name", METRICS)
def test_training_can_be_judged_by_every_distance_that_needs_no_network(name: str) -> None:
    """`eval.metric` lies in the core, which knows no metrics; the two must agree."""
    metric = METRICS[name]
    assert rules_of(EvalConfig)["metric"].holds(name) == (metric.is_distance and not metric.of_network)
