"""The tables of measurements in docs/performance.md are made of the files in bench/results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMPTY_GPU = "<!-- gpu table -->\n<!-- end of gpu table -->\n"
EMPTY = f"before\n<!-- bench table -->\n<!-- end of bench table -->\nafter\n{EMPTY_GPU}"


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "bench" / "table.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def record(**changes: Any) -> dict[str, Any]:
    """Of what the table reads."""
    known = {
        "machine": {"cpu": "Abacus 3", "cores": 2, "device": "cpu"},
        "backend": "torch",
        "preset": "digits",
        "precision": "float32",
        "batch_size": 64,
        "micro_batch": 0,
        "replicas": 1,
        "settings": {"train.batch_size": 64, "network.fir_kernel": []},
        "plain": {"ratio": {"median": 1.5}},
        "fraction_of_limit": {"median": 0.8},
    }
    known |= {"ms_per_step": {"median": 12.34}, "images_per_second": {"median": 5186.4}}
    return known | {"sampling_images_per_second": {"median": 20000.0}} | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs, the later one in the table first in the folder, and a page."""
    (tmp_path / "results").mkdir()
    gpu = {"cpu": "Abacus 3", "cores": 2, "device": "Fast 9000"}
    slow = record(machine=gpu, backend="jax", micro_batch=16, plain=None, precision="bf16")
    for name, content in (("a", slow), ("b", record(fraction_of_roofline={"median": 0.9}))):
        (tmp_path / "results" / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "page.md").write_text(EMPTY)
    return tmp_path


def places(folder: Path) -> tuple[object, ...]:
    """The options that name a folder's files."""
    return ("--results", folder / "results", "--page", folder / "page.md")


def test_what_differs_from_the_preset_is_said(folder: Path) -> None:
    machine = {"cpu": "Abacus 3", "cpu_family": 25, "cpu_model": 17, "cores": 2, "device": "cpu"}
    other = record(machine=machine, replicas=2, settings={"network.fir_kernel": [1.0, 1.0], "train.batch_size": 32})
    (folder / "results" / "b.json").write_text(json.dumps(other))
    assert call(*places(folder)).returncode == 0
    said = "| Abacus 3 25/17, 2 cores as 2 devices | torch | `digits`, 64, float32, `network.fir_kernel=[1.0, 1.0]` |"
    assert said in (folder / "page.md").read_text()


def test_the_table_is_made_of_the_files(folder: Path) -> None:
    assert call("--check", *places(folder)).returncode == 1
    assert (folder / "page.md").read_text() == EMPTY
    assert call(*places(folder)).returncode == 0
    before, marker, header, rule, *rows, end, after = (
        (folder / "page.md").read_text().partition("<!-- gpu")[0].splitlines()
    )
    assert (before, marker, end, after) == ("before", *EMPTY.splitlines()[1:3], "after")
    assert header.count("|") == rule.count("|") == 10
    assert rows == [
        "| Abacus 3, 2 cores | torch | `digits`, 64, float32 | 12.3 | 5,186 | 0.80 | 0.90 | 1.50 | 20,000 |",
        "| Fast 9000 | jax | `digits`, 64 in parts of 16, bf16 | 12.3 | 5,186 | 0.80 |  |  | 20,000 |",
    ]
    assert call("--check", *places(folder)).returncode == 0
    (folder / "results" / "a.json").unlink()
    assert call("--check", *places(folder)).returncode == 1


def gpu_lines() -> list[dict[str, Any]]:
    """What bench/gpu.py might bring back."""
    step = {"batch": 1024, "micro_batch": 128, "precision": "bf16", "ms_range": [600.0, 700.0], "peak_gib": 15.03}
    step |= {"ms": 650.0, "images_per_second": 1575.4, "tflops": 260.0, "first_call": 12.3}
    limit = {"tflops": {"product 8192": 790.0, "convolution": 800.0}}
    return [
        {"part": "torch-checks", "name": "device", "values": {"name": "Fast 9000"}},
        {"part": "torch-speed", "name": "limit", "values": limit | {"copy_gb_per_second": 3000.0}},
        {"part": "torch-speed", "name": "cifar10, bf16: profile", "values": {"kernels": 43673.0, "host_ms": 321.0}},
        {"part": "torch-speed", "name": "cifar10, bf16", "values": step},
        {"part": "torch-speed", "name": "cifar10-small, bf16", "values": {"error": "RuntimeError: no"}},
        {"part": "jax-speed", "name": "limit", "values": limit},
        {"part": "jax-speed", "name": "cifar10, bf16", "values": step | {"peak_gib": None}},
        {"part": "sampling", "name": "50,000 images", "values": {"images_per_second": 2031.0}},
    ]


def test_what_the_gpu_script_brought_back_is_in_both_tables(folder: Path) -> None:
    (folder / "results" / "gpu").mkdir()
    lines = "\n".join(map(json.dumps, gpu_lines()))
    (folder / "results" / "gpu" / "fast-1.jsonl").write_text(lines + "\n")
    assert call(*places(folder)).returncode == 0
    page, _, gpu_part = (folder / "page.md").read_text().partition("<!-- gpu table -->")
    what = "`cifar10`, 1024 in parts of 128, bf16"
    first, second = page.splitlines()[-4:-2]
    assert first.startswith(f"| Fast 9000 | torch | {what} | 650 | 1,575 | 0.33 | 0.4")
    assert first.endswith(" |  | 2,031 |")
    assert second == f"| Fast 9000 | jax | {what} | 650 | 1,575 | 0.33 |  |  |  |"
    assert gpu_part.splitlines()[-3:-1] == [
        f"| fast-1 | torch | {what} | 650 | 260 | 0.33 | 43,673 | 321 | 15.0 | 12.3 |",
        f"| fast-1 | jax | {what} | 650 | 260 | 0.33 |  |  |  | 12.3 |",
    ]
    (folder / "results" / "gpu" / "fast-1.jsonl").write_text('{"part": "torch-speed"}\n')
    assert "fast-1.jsonl is no result of bench/gpu.py" in call(*places(folder)).stderr


def test_what_is_no_record_is_named(folder: Path) -> None:
    (folder / "results" / "c.json").write_text("{}")
    done = call(*places(folder))
    assert done.returncode == 1
    assert "c.json is no record" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_markers_are_needed(folder: Path) -> None:
    (folder / "page.md").write_text("nothing")
    done = call(*places(folder))
    assert done.returncode == 1
    assert "markers" in done.stderr


def test_the_page_is_in_step() -> None:
    done = call("--check")
    assert done.returncode == 0, done.stderr
