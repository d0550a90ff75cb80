"""Files that grow by a line at a time: what a full disk, a lost machine or an editor leaves in them."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ict_backends.errors import CheckpointError
from ict_backends.runs.lines import append_line, band_losses, is_evaluation, is_log, read_lines

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


@pytest.mark.parametrize(
    "line", ['{"step": 4}', '{"step": 4, "metric": "sw", "num": 8, "value": "1"}', '{"step": 4, "metric": 1}']
)
def test_a_line_without_the_fields_of_its_file_is_damaged(tmp_path: Path, line: str) -> None:
    good = '{"step": 3, "metric": "sw", "num": 8, "value": NaN}'
    (tmp_path / "x").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(CheckpointError, match="line 2 is damaged; without that line, it can"):
        read_lines(tmp_path / "x", is_evaluation)
    (tmp_path / "x").write_text(f"{good}\n{line}\n")
    assert [record["step"] for record in read_lines(tmp_path / "x", is_evaluation)] == [3]


@pytest.mark.parametrize("value", ['"1"', "[1, true]", "{}", "true", '"\\ud800"'])
def test_a_log_holds_numbers(tmp_path: Path, value: str) -> None:
    (tmp_path / "x").write_text(
        '{"step": 1, "loss": 0.5, "loss_bands": [1, null]}\n{"step": 2, "loss": ' + value + "}\n"
    )
    assert [record["step"] for record in read_lines(tmp_path / "x", is_log)] == [1]


def test_bytes_that_are_no_text_are_a_damaged_line(tmp_path: Path) -> None:
    for broken in (b'{"step": 1, "metric": "\xed\xa0\x80"}', b'{\0\0"\0s": 1}', b"\0" * 40):
        (tmp_path / "x").write_bytes(broken + b"\n" + CONTENT)
        with pytest.raises(CheckpointError, match="line 1 is damaged"):
            read_lines(tmp_path / "x")


def test_bands_of_earlier_versions_are_a_list() -> None:
    assert band_losses({"step": 1, "loss_bands": [0.5, None]}) == [0.5, None]
    assert band_losses({"step": 1, "loss_bands": {"0.1_to_1": 0.5, "1_to_10": None}}) == [0.5, None]
    assert band_losses({"step": 1}) == []
