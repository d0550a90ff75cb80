"""The names of the classes, as a run's folder has them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import smallest

from ict_backends.runs.folder import RunDir, class_names
from ict_core.settings import build_config

CONFIG = build_config(smallest(network={"num_classes": 2}))


def test_the_names_are_read(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.data_file.write_text(json.dumps({"class_names": ["leaves", "rock"]}))
    assert class_names(run, CONFIG) == ["leaves", "rock"]
    assert class_names(run, build_config(smallest())) is None


@pytest.mark.parametrize(
    "text", ["{}", "x", "[]", '{"class_names": ["leaves"]}', '{"class_names": "ab"}', '{"class_names": [1, 2]}', None]
)
def test_where_there_are_none_or_others_nothing_is_said(tmp_path: Path, text: str | None) -> None:
    run = RunDir(tmp_path)
    if text is not None:
        run.data_file.write_text(text)
    assert class_names(run, CONFIG) is None
