"""Files that grow by a line at a time: what a full disk, a lost machine or an editor leaves in them."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ict_backends.errors import CheckpointError
from ict_backends.runs.lines import append_line, read_lines

RECORDS = [{"step": step, "name": "a\u00e9\u2028b", "loss_bands": [0.5, None]} for step in (1, 2, 3)]
CONTENT = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def test_no_file_has_no_records(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "x") == []
    (tmp_path / "x").write_bytes(b"")
    assert read_lines(tmp_path / "x") == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, len(CONTENT)), zeros=st.integers(0, 3))
def test_wherever_the_last_line_is_cut_the_others_stay(
    tmp_path: Path, cut: int, zeros: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    (tmp_path / "x").write_bytes(CONTENT[:cut] + bytes(zeros))
    whole = CONTENT[:cut].count(b"\n")
    assert read_lines(tmp_path / "x") == RECORDS[:whole]
    half = CONTENT[:cut].split(b"\n")[-1]
    assert ("the last line of" in caplog.text and "is not whole" in caplog.text) == bool(half)


@pytest.mark.parametrize("last", [b"{", b"[]", b"7", b'{"n": 3}', b'{"step": "x"}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_last_line_is_left_out_and_any_other_is_an_error(tmp_path: Path, last: bytes) -> None:
    (tmp_path / "x").write_bytes(CONTENT + last + b"\n")
    assert read_lines(tmp_path / "x") == RECORDS
    (tmp_path / "x").write_bytes(last + b"\n" + CONTENT)
    with pytest.raises(CheckpointError, match="x cannot be read: line 1 is damaged"):
        read_lines(tmp_path / "x")


def test_a_line_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    """As on a full disk; what was there stays, and the next attempt succeeds."""
    (tmp_path / "x").write_bytes(CONTENT)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) + 10, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            append_line(tmp_path / "x", '{"step": 4, "loss": 0.25}\n')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "x").read_bytes() == CONTENT
    append_line(tmp_path / "x", '{"step": 4}\n')
    assert read_lines(tmp_path / "x") == [*RECORDS, {"step": 4}]
