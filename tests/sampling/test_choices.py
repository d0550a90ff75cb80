"""Classes and noise levels as users give them: text on the command line, numbers, names and arrays in Python."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tiny import smallest

from ict_backends.errors import UsageError
from ict_backends.sampling.choices import Labels, as_labels, resolve_labels, resolve_sigmas
from ict_core.settings import build_config

CONFIG = build_config(smallest(network={"num_classes": 3}))
NAMES = ["rock", "leaves", "2"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (None, [0, 1, 2, 0, 1]),
        ("balanced", [0, 1, 2, 0, 1]),
        ("leaves", [1, 1, 1, 1, 1]),
        ("leaves,rock", [1, 0, 1, 0, 1]),
        ("leaves,0,2", [1, 0, 2, 1, 0]),
        ("1", [1, 1, 1, 1, 1]),
        (2, [2, 2, 2, 2, 2]),
        (["leaves", 2], [1, 2, 1, 2, 1]),
        (np.array([2, 1, 0, 0, 1]), [2, 1, 0, 0, 1]),
        (np.array(["rock", "leaves"]), [0, 1, 0, 1, 0]),
        (np.int64(1), [1, 1, 1, 1, 1]),
        ("data", [2, 0, 2, 2, 2]),
    ],
)
def test_classes_are_given_by_number_or_name(labels: Labels | np.ndarray | None, expected: list[int]) -> None:
    counts = np.array([1, 0, 3])
    found = resolve_labels(CONFIG, as_labels(labels), 5, counts=counts, names=NAMES)
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == expected


def test_an_integer_is_a_number_even_where_a_class_has_that_name() -> None:
    found = resolve_labels(CONFIG, "0", 1, names=["2", "1", "0"])
    assert found is not None
    assert found.tolist() == [0]


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ("Leaves", "--labels Leaves: there is no class Leaves; the classes are rock, leaves, 2 (0..2); there are also"),
        ("leaves,moss", "--labels leaves,moss: there is no class moss"),
        ("leaves, rock", "there is no class  rock"),
        ("3", "--labels 3: 3 is not in 0..2"),
        (3, "--labels 3: 3 is not in 0..2"),
        ([0, -1], "--labels 0,-1: -1 is not in 0..2"),
        ([0.5], "there is no class 0.5"),
        ([], "at least one class"),
        ("data", "the run does not say"),
        (list(range(50)), "--labels 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,2...: 3 is not in 0..2"),
    ],
)
def test_other_classes_are_refused(labels: Labels, says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        resolve_labels(CONFIG, labels, 5, names=NAMES)


def test_ten_names_are_listed() -> None:
    config = build_config(smallest(network={"num_classes": 12}))
    with pytest.raises(UsageError, match=re.escape("a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, ... (0..11)")):
        resolve_labels(config, "b", 1, names=[f"a{i}" for i in range(12)])


@pytest.mark.parametrize("names", [None, NAMES])
def test_an_unconditional_model_has_no_classes(names: list[str] | None) -> None:
    config = build_config(smallest())
    assert resolve_labels(config, None, 5, names=names) is None
    with pytest.raises(UsageError, match="--labels 0,1: the model is unconditional"):
        resolve_labels(config, [0, 1], 5, names=names)


def test_levels_are_the_same_as_numbers_and_as_text() -> None:
    assert resolve_sigmas(CONFIG, None, "80,0.5") == resolve_sigmas(CONFIG, None, [80, 0.5]) == [80.0, 0.5]
    for sigmas in ("80,90", [80, 90], np.array([80.0, 90.0])):
        with pytest.raises(UsageError, match=r"^--sigmas 80(\.0)?,90(\.0)?: sigmas must lie in"):
            resolve_sigmas(CONFIG, None, sigmas)
    with pytest.raises(UsageError, match="--steps 0 must be at least 1"):
        resolve_sigmas(CONFIG, 0, None)
