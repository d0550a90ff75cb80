"""`ict bench` on networks so small that it takes no time, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from command_line import Ict, Refused
from tiny import as_options, smallest

import ict_backends.torch as engine
from ict_backends.networks.roofline import least_seconds, operations
from ict_backends.protocols import Arrays, Model
from ict_core import Config
from ict_core.settings import build_config

PLAIN = Path(__file__).resolve().parents[2] / "bench" / "plain.py"
SMALL = [
    "--preset=digits",
    *as_options(smallest(network={"channels": 4})),
    "--device=cpu",
    "--repeats=2",
    "--steps=2",
    "--images=6",
    "--batch-size=4",
    "--product=16",
    "--copy=4096",
]
ADM = [
    "--preset=imagenet64",
    "--set=network.channels=32",
    "--set=network.channel_mult=[1]",
    "--set=network.blocks=1",
    "--set=network.head_channels=32",
    "--set=network.num_classes=3",
    "--set=data.shape=[3,4,4]",
]
SPREADS = ("ms_per_step", "images_per_second", "flops_per_second", "fraction_of_limit")
SPREADS += ("fraction_of_roofline", "sampling_images_per_second", "forward_images_per_second")


def numbers(value: Any) -> list[float]:
    """All of a record's figures."""
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers(item)]
    if isinstance(value, list):
        return [n for item in value for n in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def check_record(record: dict[str, Any], *, plain: bool) -> None:
    figures = {name: record[name] for name in (*SPREADS, "limit", "memory", "first_seconds", "seconds", "loss")}
    assert all(math.isfinite(n) and n > 0 for n in numbers(figures))
    for name in SPREADS:
        assert record[name]["min"] <= record[name]["median"] <= record[name]["max"]
    limit = record["limit"]["flops_per_second"]
    assert len(limit) == 4
    assert record["limit"]["best"] == max(limit, key=lambda name: limit[name]["median"])
    check_roofline(record)
    batch = record["batch_size"]
    assert math.isclose(record["ms_per_step"]["min"] * record["images_per_second"]["max"], 1000 * batch)
    assert record["step_flops"] == 4 * batch * record["forward_flops_per_image"]
    assert all(len(seconds) == record["repeats"] for seconds in record["seconds"].values())
    assert (record["plain"] is not None) == plain
    for name in ("date", "command", "git", "machine", "versions", "settings", "precision"):
        assert name in record
    assert record["machine"]["device"] == "cpu"


def check_roofline(record: dict[str, Any]) -> None:
    """The fractions are those of the rates in the same repeat, and the kinds add up to the whole at their medians."""
    roofline, kinds = record["roofline"], record["roofline"]["kinds"]
    assert all(n > 0 for name in ("bytes_per_second", "ms_per_step") for n in numbers(roofline[name]))
    assert math.isclose(sum(kind["share"] for kind in kinds), 1.0)
    assert [kind["ms"] for kind in kinds] == sorted((kind["ms"] for kind in kinds), reverse=True)
    assert all(0 <= kind["bound_by_memory"] <= 1 for kind in kinds)
    found = operations(build_config(nested(record["settings"])), record["devices"])
    best = record["limit"]["flops_per_second"][record["limit"]["best"]]["median"]
    least = least_seconds(found, best, roofline["bytes_per_second"]["median"])
    assert math.isclose(1000 * least, sum(kind["ms"] for kind in kinds))
    assert {kind["kind"] for kind in kinds} == {operation.kind for operation in found}


def nested(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings by section."""
    tree: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        tree.setdefault(section, {})[key] = value
    return tree


def test_it_prints_a_table_and_writes_all_figures(ict: Ict, tmp_path: Path) -> None:
    out = tmp_path / "new" / "x.json"
    result = ict("bench", *SMALL, "--plain", PLAIN, "--plain-batch", 2, "--out", out)
    assert result.code == 0, result.err
    record = json.loads(out.read_text())
    check_record(record, plain=True)
    assert record["plain"]["batch_size"] == 2
    per_image = record["plain"]["ms_per_step"]["median"] / 2 / (record["ms_per_step"]["median"] / 4)
    ratio = record["plain"]["ratio"]
    assert ratio["min"] * 0.5 < per_image < ratio["max"] * 2
    assert record["command"].startswith("ict bench --preset digits --set network.channels=4 ")
    for part in ("training, ms a step", "fraction of the best", "plain's time over ours", "peak memory", str(out)):
        assert part in result.out
    for part in ("copy, GB/s read and written", "a step at least, ms", "fraction of the roofline"):
        assert part in result.out
    table = result.out.partition("a step at least, by kind")[2].splitlines()
    assert table[0].split() == ["ms", "share", "bound", "by", "memory"]
    kinds = record["roofline"]["kinds"]
    assert all(line.startswith(kind["kind"]) for line, kind in zip(table[1:], kinds, strict=False))


def test_micro_batches_and_adm_are_measured(ict: Ict, tmp_path: Path) -> None:
    result = ict("bench", *SMALL, *ADM, "--set=train.micro_batch=2", "--out", tmp_path / "x.json")
    assert result.code == 0, result.err
    check_record(json.loads((tmp_path / "x.json").read_text()), plain=False)


def test_jax_is_measured(ict: Ict, tmp_path: Path) -> None:
    result = ict("bench", "--backend=jax", *SMALL, "--out", tmp_path / "x.json")
    assert result.code == 0, result.err
    check_record(json.loads((tmp_path / "x.json").read_text()), plain=False)


def plain_files(folder: Path) -> None:
    (folder / "empty.py").write_text("")
    (folder / "broken.py").write_text("import absent_library")
    (folder / "odd.txt").write_text("")


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (2, 'unknown preset "digitz"; did you mean digits', ["--preset=digitz"]),
        (2, "unknown key train.batchsize", ["--set=train.batchsize=1"]),
        (2, "unknown backend 'numpy'", ["--backend=numpy"]),
        (2, "--device warp is not available", ["--device=warp"]),
        (2, "must end in .json", ["--out=x.txt"]),
        (2, "must end in .json", ["--out=x"]),
        (2, "is a folder", ["--out=there.json"]),
        (1, "File exists", ["--out=empty.py/x.json"]),
        (2, "no such file", ["--plain=absent.py"]),
        (2, "must end in .py", ["--plain=odd.txt"]),
        (2, "has no make_step", ["--plain=empty.py"]),
        (2, "cannot be loaded: ModuleNotFoundError", ["--plain=broken.py"]),
        (2, "--plain-batch 2 needs --plain", ["--plain-batch=2"]),
        (2, "NCSN++ alone, not network.family = adm", [*ADM, f"--plain={PLAIN}"]),
        (2, "--repeats", ["--repeats=0"]),
        (2, "--steps", ["--steps=0"]),
        (2, "--images", ["--images=1"]),
    ],
)
def test_bad_input_is_one_line(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, says: str, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of the plain versions, which Python would leave beside them
    (tmp_path / "there.json").mkdir()
    plain_files(tmp_path)
    refused(code, re.escape(says), "bench", *SMALL, *arguments)


def test_a_loss_that_is_not_finite_is_refused(ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(steps: int) -> np.ndarray:
        return np.full((steps, 4), np.nan)

    monkeypatch.setattr(
        engine, "make_trainer", lambda *_: SimpleNamespace(stride=1, replicas=1, devices=1, advance=advance)
    )
    result = ict("bench", *SMALL, "--out", tmp_path / "x.json")
    assert (result.code, result.err) == (1, "Error: training: 4 of 4 losses are not finite\n")
    assert not (tmp_path / "x.json").exists()


def test_a_plain_loss_that_is_not_finite_is_refused(ict: Ict, tmp_path: Path) -> None:
    (tmp_path / "nan.py").write_text("def make_step(*_):\n    return lambda: float('nan')")
    result = ict("bench", *SMALL, "--plain", tmp_path / "nan.py")
    assert (result.code, result.err) == (1, "Error: the plain version: 1 of 1 losses are not finite\n")


def test_samples_that_are_all_zero_are_refused(ict: Ict, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model = engine.make_model

    def zero(config: Config, arrays: Arrays, device: str) -> Model:
        return make_model(config, {name: 0 * a for name, a in arrays.items()}, device)

    monkeypatch.setattr(engine, "make_model", zero)
    result = ict("bench", *SMALL)
    assert result.code == 1
    assert re.fullmatch(r"Error: sampling: all pixels of 6 images are 12\d\.\.12\d; the output is lost\n", result.err)
