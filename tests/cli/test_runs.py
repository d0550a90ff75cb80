"""`ict runs`: a line for each run, whatever state it is in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Ict, Refused
from tiny import TINY

from ict_backends.reports.run_list import list_runs
from ict_backends.runs import checkpoint
from ict_backends.runs.folder import RunDir
from ict_backends.runs.lock import is_in_use


def copy(run: Path, to: Path, day: int) -> RunDir:
    """A copy of a run that last changed on a day of January 2026."""
    copied = RunDir(Path(shutil.copytree(run, to)))
    for path in (to, *to.rglob("*")):
        os.utime(path, (1767225600 + 86400 * (day - 1),) * 2)
    return copied


def lines(ict: Ict, folder: Path) -> list[str]:
    done = ict("runs", folder)
    assert (done.code, done.err) == (0, "")
    title, *rest = done.out.splitlines()
    assert title.split()[:6] == ["run", "preset", "or", "data", "backend", "steps"]
    return rest


def test_each_run_has_a_line_and_the_newest_is_first(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    copy(digits_run, tmp_path / "old", 1)
    copy(digits_run, tmp_path / "study" / "variant-0", 3)
    copy(digits_run, tmp_path / "new", 2)
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    found = lines(ict, tmp_path)
    assert [line.split()[0] for line in found] == ["study/variant-0", "new", "old"]
    record = json.loads((digits_run / "metrics.jsonl").read_text().splitlines()[-1])
    size = sum(path.lstat().st_size for path in digits_run.rglob("*") if path.is_file())
    for line, day in zip(found, (3, 2, 1), strict=True):
        parts = ["digits", "torch", "30/30", f"{record['loss']:.4g}", "-", f"{size / 2**20:.1f} MiB"]
        assert line.split(maxsplit=1)[1].split() == " ".join([*parts, f"2026-01-0{day} 00:00"]).split()


def test_evaluations_and_the_preset_are_shown(ict: Ict, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "a"
    options = ["--preset=digits", "--steps=6", "--set=eval.every=2", "--set=eval.num=70", "--set=eval.metric=sw"]
    assert ict("train", "--backend=jax", "--out", out, *TINY, *options).code == 0
    values = [json.loads(line)["value"] for line in (out / "evals.jsonl").read_text().splitlines()]
    (line,) = lines(ict, tmp_path / "runs")
    assert line.split()[:4] == ["a", "digits", "jax", "6/6"]
    assert f"  sw {values[-1]:.4g} (best {min(values):.4g})  " in line
    assert lines(ict, out)[0].split() == [str(out), *line.split()[1:]]  # a run is a folder of one

    (run,) = list_runs(tmp_path / "runs")
    assert ict("runs", tmp_path / "runs", "--json", tmp_path / "x.json").code == 0
    record = json.loads((tmp_path / "x.json").read_text())
    assert record["folder"] == str(tmp_path / "runs")
    assert record["runs"] == [run.record()]
    assert record["runs"][0]["evaluation"] == {"metric": "sw", "last": values[-1], "best": min(values)}
    assert (record["runs"][0]["preset"], record["runs"][0]["damaged"]) == ("digits", "")


def test_only_evaluations_that_compare_have_a_best(tmp_path: Path, digits_run: Path) -> None:
    run = copy(digits_run, tmp_path / "run", 1)
    values = [("sw", 70, 0.1), ("pixel-fd", 50, 0.2), ("pixel-fd", 70, 4.0), ("pixel-fd", 70, 3.0), ("pixel-fd", 70, 5)]
    records = [{"step": i, "metric": m, "num": n, "value": v} for i, (m, n, v) in enumerate(values)]
    run.evals_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    (found,) = list_runs(tmp_path)
    assert found.evaluation == ("pixel-fd", 5.0, 3.0)


def spoil(run: RunDir, how: str) -> None:
    if how == "settings":
        run.config_file.write_text("[train\n")
    elif how == "without settings":
        run.config_file.unlink()
    elif how == "log":
        run.metrics_file.write_text("{\n" * 3)
    elif how == "evaluations":
        run.evals_file.write_text('{"step": 1}\n{"step": 2}\n')
    elif how == "state":
        (run.latest_checkpoint() / "state.json").write_text("{}")
    else:
        (run.latest_checkpoint() / "state.safetensors").unlink()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("settings", "is not a TOML file"),
        ("without settings", "is not a run: it has no config.toml"),
        ("log", "metrics.jsonl cannot be read: line 1 is damaged"),
        ("evaluations", "evals.jsonl cannot be read: line 1 is damaged"),
        ("state", "state.json says no step"),
        ("arrays", "it has no state.safetensors"),
    ],
)
def test_a_damaged_run_is_a_line_that_says_so(ict: Ict, tmp_path: Path, digits_run: Path, how: str, says: str) -> None:
    copy(digits_run, tmp_path / "sound", 1)
    spoil(copy(digits_run, tmp_path / "bad", 2), how)
    bad, sound = lines(ict, tmp_path)
    assert bad.startswith("bad ")
    assert "damaged: " in bad
    assert says in bad
    assert "MiB" in bad
    assert "damaged" not in sound


def test_a_line_that_is_being_written_is_no_damage(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    run = copy(digits_run, tmp_path / "run", 1)
    with open(run.metrics_file, "a", encoding="utf-8") as file:
        file.write('{"step": 31, "lo')
    (line,) = lines(ict, tmp_path)
    assert "damaged" not in line
    assert " 30/30 " in line


def test_names_are_printed_without_what_controls_a_terminal(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    run = copy(digits_run, tmp_path / "a\n\x1b[31mred", 1)
    run.history_file.write_text('{"step": 0, "date": "", "command": "ict train --preset \'\\u001b[2J\'"}\n')
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace('source = "digits"', 'source = "\\u001b]0;x"'))
    shutil.rmtree(run.path / "checkpoints")
    (line,) = lines(ict, tmp_path)
    assert line.startswith(r"a\n\x1b[31mred  \x1b[2J ")
    run.history_file.write_text('{"step": 0, "date": "", "command": "it is \'"}\n')
    (line,) = lines(ict, tmp_path)
    assert line.startswith(r"a\n\x1b[31mred  \x1b]0;x ")


def test_a_run_in_use_is_said_to_be_and_can_be_used_on(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    run = copy(digits_run, tmp_path / "run", 1)
    script = (
        "import sys\nfrom pathlib import Path\nfrom ict_backends.runs.lock import in_use\n"
        "with in_use(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        (line,) = lines(ict, tmp_path)
        assert line.endswith("  in use")
        assert is_in_use(run.path)
    assert not is_in_use(run.path)
    assert lines(ict, tmp_path)[0].endswith(":00")


def test_no_checkpoint_is_read(ict: Ict, tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(digits_run, tmp_path / "run", 1)

    def read(*arguments: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(checkpoint, "file_sha256", read)
    monkeypatch.setattr(checkpoint, "read_safetensors", read)
    assert len(lines(ict, tmp_path)) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("channels = 8\n", "channels = 1000000000\n"),
        ("total_steps = 30\n", f"total_steps = {10**30}\n"),
        ("total_steps = 30\n", f"total_steps = {'9' * 9999}\n"),
        ("channels = 8\n", "channels = 8\0\n"),
    ],
)
def test_a_run_of_absurd_settings_is_a_line(ict: Ict, tmp_path: Path, digits_run: Path, old: str, new: str) -> None:
    run = copy(digits_run, tmp_path / "run", 1)
    text = run.config_file.read_text()
    assert old in text
    run.config_file.write_text(text.replace(old, new))
    (line,) = lines(ict, tmp_path)
    assert "damaged: " in line


def test_what_is_not_finite_is_null_in_json(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    run = copy(digits_run, tmp_path / "run", 1)
    run.metrics_file.write_text('{"step": 3, "loss": NaN}\n')
    run.evals_file.write_text('{"step": 3, "metric": "sw", "num": 70, "value": Infinity}\n')
    assert re.search(r" nan +sw inf \(best inf\) ", lines(ict, tmp_path)[0])
    assert ict("runs", tmp_path, "--json", tmp_path / "x.json").code == 0
    (record,) = json.loads((tmp_path / "x.json").read_text())["runs"]
    assert (record["loss"], record["evaluation"]) == (None, {"metric": "sw", "last": None, "best": None})


def test_links_are_not_followed_for_ever(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    copy(digits_run, tmp_path / "b" / "run", 1)
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "b" / "run")
    assert sorted(line.split()[0] for line in lines(ict, tmp_path)) == ["b/run", "link"]


def test_a_folder_without_runs(ict: Ict, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ict("runs").out == "no runs in runs; `ict train` makes them\n"
    assert ict("runs", tmp_path).out == f"no runs in {tmp_path}; `ict train` makes them\n"
    (tmp_path / "file").write_text("")
    refused(1, "absent does not exist; give a folder of runs", "runs", tmp_path / "absent")
    refused(1, "file is no folder; give a folder of runs", "runs", tmp_path / "file")
    refused(2, "notes.json is a folder|no such option", "runs", "--jsn", tmp_path / "notes.json")
