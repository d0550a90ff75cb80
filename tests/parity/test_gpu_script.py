"""The script that settles what needs a GPU, rehearsed on the CPU: every part ends well and finds what it looks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["torch-checks", "jax-checks", "jax-compile", "torch-speed", "jax-speed", "sampling", "training", "tuning"]
FIXTURES = ("the authors' ncsnpp", "the authors' adm")


def call(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **variables})


def read(folder: Path) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The values of each result by part and name."""
    lines = (folder / "results.jsonl").read_text().splitlines()
    return {(r["part"], r["name"]): r["values"] for r in map(json.loads, lines)}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    done = call("--rehearse", OUT=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr + (folder / "log.txt").read_text()
    return folder


def test_every_part_ends_well_and_nothing_fails_in_it(rehearsal: Path) -> None:
    found = read(rehearsal)
    assert [part for part, name in found if name == "ended"] == PARTS
    assert all(values == {"how": "done"} for (_, name), values in found.items() if name == "ended")
    here = (ROOT.parent / "shared" / "fixtures").is_dir()
    errors = {k: v["error"] for k, v in found.items() if "error" in v and (here or k[1] not in FIXTURES)}
    assert errors == {}


def test_checks_compare_what_they_say(rehearsal: Path) -> None:
    found = read(rehearsal)
    for part in ("torch-checks", "jax-checks"):
        masks = found[part, "masks are shared"]
        assert masks["masks_as_on_the_cpu"]
        assert masks["gradient"] <= 1e-3 * masks["gradient_at_other_levels"]
        step = found[part, "4 steps in float32 against torch's float32 on the CPU"]
        assert step["distance"] <= step["allowed"]
        assert "error" not in found[part, "resuming is bit-equal"]
    assert found["jax-checks", "4 steps in float32 against torch's float32 on the CPU"]["distance"] > 0
    assert found["torch-checks", "copies and parts of the weights"].keys() >= {"ddp", "fsdp2"}


def test_speeds_are_of_every_variant(rehearsal: Path) -> None:
    found = read(rehearsal)
    variants = {name for part, name in found if part == "torch-speed" and ", " in name and "profile" not in name}
    assert variants == {
        "a block, compiled",
        "cifar10, bf16",
        "cifar10, bf16, compiled",
        "cifar10, bf16, CUDA graphs",
        "cifar10-small, bf16",
        "cifar10-small, tf32",
        "cifar10-small, float32",
        "cifar10-small, bf16, compiled",
        "cifar10-small, bf16, CUDA graphs",
        "plain, float32",
    }
    assert all(values["ms"] > 0 for values in found.values() if "ms" in values)
    assert found["torch-speed", "limit"]["copy_gb_per_second"] > 0
    assert {"cifar10, bf16", "cifar10-small, bf16"} <= {name for part, name in found if part == "jax-speed"}
    assert found["sampling", "50,000 images"]["num"] == 16


TRAININGS = {"training": "training", "diffusion": "tuning", "tuning": "tuning"}


def test_each_training_leaves_its_log_and_its_pictures(rehearsal: Path) -> None:
    found = read(rehearsal)
    for name, part in TRAININGS.items():
        log = [json.loads(line) for line in (rehearsal / f"{name}.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log] == list(range(1, found[part, name]["steps"] + 1))
        assert found[part, name]["losses"] == [line["loss"] for line in log]
    names = {path.name for path in rehearsal.iterdir()}
    pictures = {f"{name}.{ending}" for name in TRAININGS for ending in ("jsonl", "png")}
    assert names == {"results.jsonl", "report.txt", "log.txt"} | pictures
    assert sum(path.stat().st_size for path in rehearsal.iterdir()) < 60 * 2**20


def test_a_diffusion_model_is_tuned(rehearsal: Path) -> None:
    """Without a teacher at first, then with gaps of a thirty-second; measured as what is trained from scratch is."""
    found = read(rehearsal)
    lines = {name: (rehearsal / f"{name}.jsonl").read_text().splitlines() for name in TRAININGS}
    levels = {name: {json.loads(line)["n"] for line in each} for name, each in lines.items()}
    assert (levels["diffusion"], levels["tuning"]) == ({1}, {32})
    assert found["tuning", "distance of the diffusion model in 18 steps"]["num"] == 32
    for steps in ("distance in 1 steps", "distance in 2 steps"):
        assert found["tuning", steps].keys() == found["training", steps].keys()


def test_a_part_that_takes_too_long_is_ended_and_what_it_found_is_kept(tmp_path: Path) -> None:
    done = call("--rehearse", "--part", "jax-compile", "--part", "sampling", "--limit", "3", OUT=str(tmp_path))
    found = read(tmp_path)
    assert found["jax-compile", "ended"] == {"how": "cut off"}
    assert "jax-compile" in done.stderr
    assert done.returncode == 1
    assert (tmp_path / "report.txt").read_text().count("ended") == 2


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    done = call("--part", "speed", "--out", tmp_path)
    assert done.returncode == 2
    assert "'speed' is not one of 'torch-checks'" in done.stderr
    assert list(tmp_path.iterdir()) == []
