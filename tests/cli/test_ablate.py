"""`ict ablate`: a plan's runs, what is left of them, and going on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict, Refused
from PIL import Image

from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir
from ict_backends.runs.lock import in_use
from ict_cli.main import run

PLAN = """
title = "Two rates"
preset = "digits"
reference = "slow"
axis = "train.learning_rate"

[variants.slow]
train = { learning_rate = 1e-3 }

[variants.fast]
train = { learning_rate = 1e-2 }

[variants."far too fast"]
train = { learning_rate = 1e30 }
"""
TINY = ["--set=network.channels=8", "--set=train.batch_size=4", "--set=train.log_every=1", "--num=130", "--device=cpu"]


def ablate(plan: Path, out: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        run(["ablate", str(plan), f"--out={out}", *TINY, images_beside(plan), *arguments])
    return stop.value.code


def images_beside(plan: Path) -> str:
    """The option for images in the folder of a plan: for the digits, each process would load scikit-learn."""
    file = plan.with_name("images.npy")
    if not file.exists():
        np.save(file, np.random.default_rng(0).integers(0, 256, (200, 8, 8), dtype=np.uint8))
    return f"--data={file}"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("plans") / "two-rates.toml"
    file.write_text(PLAN)
    return file


@pytest.fixture(scope="module")
def study(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three variants by two seeds, of which those of the last one diverge."""
    out = tmp_path_factory.mktemp("studies") / "study"
    assert ablate(plan, out, "--seeds=2", "--jobs=2", "--steps=3") == 0
    return out


def test_each_run_is_one_of_ict_train(study: Path) -> None:
    for name, rate in (("slow", 1e-3), ("fast", 1e-2)):
        for seed in (0, 1):
            found = RunDir(study / "runs" / f"{name}-{seed}")
            config = found.load_config()
            assert (config.train.learning_rate, config.train.seed, config.train.total_steps) == (rate, seed, 3)
            assert config.network.channels == 8
            assert load_checkpoint(found.latest_checkpoint()).step == 3
            log = (study / "runs" / f"{name}-{seed}.log").read_text()
            assert "$ ict train --backend=torch" in log
            assert "step 3/3" in log


def test_the_figures_are_those_of_ict_eval(study: Path, ict: Ict) -> None:
    record = json.loads((study / "results.json").read_text())
    assert (record["plan"], record["metric"], record["seeds"]) == ("two-rates", "pixel-fd", [0, 1])
    assert record["versions"]["torch"]
    slow = record["variants"]["slow"]
    printed = ict("eval", study / "runs" / "slow-1", "--num=130", "--device=cpu").out
    distance = re.search(r": ([\d.]+)$", printed.splitlines()[0])
    assert distance is not None
    assert float(distance[1]) == pytest.approx(slow["outcomes"][1]["value"], rel=1e-3)
    assert slow["mean"] == pytest.approx(sum(o["value"] for o in slow["outcomes"]) / 2)
    assert record["variants"]["fast"]["mean"] != slow["mean"]


def test_runs_that_diverge_are_results_too(study: Path) -> None:
    record = json.loads((study / "results.json").read_text())
    far = record["variants"]["far too fast"]
    assert far["mean"] is None
    assert all("exit code 1" in o["error"] for o in far["outcomes"])
    page = (study / "table.md").read_text()
    assert "2 of 2 runs failed" in page
    assert "far too fast, seed 1: Error: " in page


def test_the_table_and_the_pictures_are_there(study: Path) -> None:
    page = (study / "table.md").read_text()
    assert page.startswith("# Two rates\n")
    assert "| fast | `train.learning_rate=0.01` |" in page
    assert "ict ablate" in page
    assert "--jobs 2" in page
    for name in ("figure.png", "samples.png"):
        with Image.open(study / name) as picture:
            assert picture.size[0] > 300
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10
    # Two rows of samples: the third variant has none.
    assert {path.name for path in (study / "runs").glob("*.npz")} == {"slow-0.npz", "fast-0.npz"}


def test_going_on_does_what_is_missing_alone(study: Path, plan: Path) -> None:
    """A run that was measured stays; one that was not, and those that failed, are done."""
    before = json.loads((study / "results.json").read_text())["variants"]
    stamps = {p: p.stat().st_mtime_ns for p in (study / "runs").glob("*/ablation.json")}
    assert len(stamps) == 4
    (study / "runs" / "fast-1" / "ablation.json").unlink()
    assert ablate(plan, study, "--seeds=2", "--jobs=2", "--steps=3", "--resume") == 0
    after = json.loads((study / "results.json").read_text())["variants"]
    for name in ("slow", "fast"):
        assert [o["value"] for o in after[name]["outcomes"]] == [o["value"] for o in before[name]["outcomes"]]
    changed = [p.parent.name for p, stamp in stamps.items() if p.stat().st_mtime_ns != stamp]
    assert changed == ["fast-1"]
    assert "--resume" in (study / "runs" / "fast-1.log").read_text()


def test_another_metric_is_measured_anew(study: Path, plan: Path) -> None:
    """Of runs that stay as they are. This comes after what looks at the first metric."""
    weights = {p: p.read_bytes() for p in (study / "runs").glob("slow-*/checkpoints/*/state.safetensors")}
    assert ablate(plan, study, "--seeds=1", "--jobs=2", "--steps=3", "--metric=sw", "--resume") == 0
    record = json.loads((study / "results.json").read_text())
    assert record["metric"] == "sw"
    assert record["variants"]["slow"]["outcomes"][0]["metric"] == "sw"
    assert {p: p.read_bytes() for p in weights} == weights


def test_other_settings_are_refused_when_going_on(study: Path, plan: Path, refused: Refused) -> None:
    says = "has other settings: train.total_steps is 3 and not 4"
    words = [*TINY, images_beside(plan), "--seeds=2", "--steps=4", "--resume"]
    refused(2, says, "ablate", plan, f"--out={study}", *words)


def test_a_folder_in_use_is_refused(study: Path, plan: Path, refused: Refused) -> None:
    says = "is not an empty folder; choose another one, or go on in it with --resume"
    refused(2, says, "ablate", plan, f"--out={study}", *TINY)


# Of the command: SIGHUP is heeded as SIGTERM, and a second Ctrl-C leaves its trainings as SIGKILL does.
ENDS = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGKILL: -signal.SIGKILL}


@pytest.mark.parametrize("end", ENDS)
def test_however_it_ends_no_training_stays_and_the_runs_go_on(plan: Path, tmp_path: Path, end: int) -> None:
    """The training that was under way writes a checkpoint, and ends, before the command or soon after."""
    out = tmp_path / "out"
    words = ["ablate", str(plan), f"--out={out}", *TINY, images_beside(plan), "--seeds=1", "--steps=100000"]
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the working folder was imported')")
    log, run = out / "runs" / "slow-0.log", out / "runs" / "slow-0"
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "ict_cli", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        wait_until(lambda: log.is_file() and "step 2/" in log.read_text())
        os.kill(child.pid, end)
        _, errors = child.communicate(timeout=120)
    assert child.returncode == ENDS[end]
    if end == signal.SIGTERM:
        assert errors.splitlines()[-1].startswith("Stopped by SIGTERM; the same command")
        assert "Error" not in errors
        assert "--resume" in errors
    wait_until(lambda: not (run / ".lock").exists())
    assert 0 < load_checkpoint(RunDir(run).latest_checkpoint()).step < 100_000
    assert "Stopped by SIGTERM" in log.read_text()
    assert not (run / "ablation.json").exists()
    assert not (out / "runs" / "fast-0").exists()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_training_that_still_ends_is_not_joined_by_another(plan: Path, tmp_path: Path, refused: Refused) -> None:
    run = tmp_path / "out" / "runs" / "slow-0"
    run.mkdir(parents=True)
    with in_use(run):
        says = f"{run} is in use by process {os.getpid()}"
        refused(2, says, "ablate", plan, f"--out={tmp_path / 'out'}", *TINY, "--seeds=1", "--resume")


def test_a_study_whose_runs_have_all_failed_exits_with_1(
    plan: Path, tmp_path: Path, ict: Ict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(children: object, words: list[str], log: Path) -> int:
        log.write_text("Error: the disk is gone\n")
        return 1

    monkeypatch.setattr("ict_cli.ablate._Children.call", fail)
    result = ict("ablate", plan, f"--out={tmp_path / 'out'}", *TINY, "--seeds=1")
    assert result.code == 1
    assert result.err.endswith(f"Error: all 3 runs have failed; {tmp_path / 'out' / 'table.md'} says how\n")
    assert "the disk is gone" in (tmp_path / "out" / "table.md").read_text()


def test_a_dry_run_prints_the_commands_and_makes_nothing(plan: Path, tmp_path: Path, ict: Ict) -> None:
    result = ict("ablate", plan, f"--out={tmp_path / 'out'}", *TINY, "--seeds=2", "--dry-run")
    assert result.code == 0
    lines = result.out.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("ict train --backend=torch --device=cpu --preset=digits ") for line in lines)
    assert "--set=train.learning_rate=0.01 --seed=1" in lines[4]
    assert not (tmp_path / "out").exists()


def test_the_plans_that_come_along_are_listed(ict: Ict) -> None:
    result = ict("ablate")
    assert result.code == 0
    assert "five-changes" in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["five-change"], "plan 'five-change' is no file that ends in .toml, and none of curriculum, dropout"),
        (["five-changes", "--preset=digitz"], "did you mean digits"),
        (["five-changes", "--resume"], "--resume needs --out FOLDER"),
        (["five-changes", "--metric=fid"], "fid"),
        (["five-changes", "--seeds=0"], "seeds"),
        (["five-changes", "--jobs=0"], "jobs"),
        (["five-changes", "--backend=numpy"], "unknown backend 'numpy'"),
        (["five-changes", "--set=train.sed=3"], "did you mean train.seed"),
        (["five-changes", "--set=network.channel_mult=[1,1,1,1,1]", "--dry-run"], "of a height that divides by 16"),
    ],
)
def test_bad_input_is_one_line(
    refused: Refused, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(2, re.escape(message), "ablate", *arguments)


def test_data_that_is_not_there_is_one_line(refused: Refused, tmp_path: Path) -> None:
    refused(1, [], "ablate", "five-changes", f"--data={tmp_path / 'none'}", f"--out={tmp_path / 'out'}")


def test_what_starts_from_a_run_that_failed_is_not_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor what starts from that, even if the run left a checkpoint before it diverged."""
    plan = tmp_path / "tuned.toml"
    plan.write_text(
        'title = "Tuned"\npreset = "digits"\nreference = "first"\n'
        "[variants.first]\ntrain = { learning_rate = 1e30, checkpoint_every = 1 }\n"
        '[variants.second]\ninit = "first"\n[variants.third]\ninit = "second"\n'
    )
    out = tmp_path / "study"
    assert ablate(plan, out, "--seeds=1", "--steps=3") == 1
    said = capsys.readouterr().out
    assert RunDir(out / "runs" / "first-0").checkpoints()
    assert "second, seed 0: not started, because first, seed 0 failed" in said
    assert "third, seed 0: not started, because second, seed 0 failed" in said
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["first-0", "first-0.log"]


def test_a_variant_may_start_from_another_ones_run(tmp_path: Path) -> None:
    """With the weights of the same seed, after it; and two-step samples may be measured, of the same runs."""
    plan = tmp_path / "tuned.toml"
    plan.write_text(
        'title = "Tuned"\npreset = "digits"\nreference = "first"\n'
        '[variants.first]\n[variants.second]\ninit = "first"\ntrain = { total_steps = 1, learning_rate = 1e-9 }\n'
    )
    out = tmp_path / "study"
    assert ablate(plan, out, "--seeds=1", "--jobs=2", "--steps=2") == 0
    runs = (RunDir(out / "runs" / f"{name}-0") for name in ("first", "second"))
    first, second = (load_checkpoint(run.latest_checkpoint()) for run in runs)
    for name, array in first.ema.items():
        np.testing.assert_allclose(second.params[name], array, atol=1e-7)
    assert "--init first train.total_steps=1" in (out / "table.md").read_text()
    assert json.loads((out / "results.json").read_text())["variants"]["second"]["init"] == "first"
    before = (out / "runs" / "first-0" / "ablation.json").read_text()
    assert ablate(plan, out, "--seeds=1", "--jobs=2", "--steps=2", "--sampling-steps=2", "--resume") == 0
    assert (out / "runs" / "first-0" / "ablation.json").read_text() != before
    assert "pixel-fd in 2 steps, mean" in (out / "table.md").read_text()
