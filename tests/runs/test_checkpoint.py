"""Checkpoints: what goes in comes out, or the refusal says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ict_backends.errors import CheckpointError, NonFiniteError
from ict_backends.runs.checkpoint import Checkpoint, check_arrays, load_checkpoint, save_checkpoint
from ict_backends.runs.folder import RunDir
from ict_core import Config, LossScale

ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([1, 2])}


def checkpoint(step: int = 3, **changes: Any) -> Checkpoint:
    groups = {g: {n: a + i for n, a in ARRAYS.items()} for i, g in enumerate(Checkpoint._fields[1:])}
    return Checkpoint(step, **(groups | changes))


def test_round_trip(tmp_path: Path) -> None:
    before = checkpoint()
    after = load_checkpoint(save_checkpoint(RunDir(tmp_path), before, keep=0))
    assert after.step == 3
    for group in Checkpoint._fields[1:]:
        for name, array in getattr(before, group).items():
            assert np.array_equal(getattr(after, group)[name], array)
            assert getattr(after, group)[name].dtype == array.dtype


def test_the_names_in_the_file_are_the_formats(tmp_path: Path) -> None:
    """Whatever a field of `Checkpoint` or `LossScale` is called, users' files keep these names."""
    scale = {name: np.asarray(a) for name, a in LossScale(np.float32(2.0), np.int32(1))._asdict().items()}
    only = {"a": np.float32([1.0])}
    folder = save_checkpoint(RunDir(tmp_path), Checkpoint(3, only, only, only, only, scale, only), keep=0)
    assert set(load_file(folder / "state.safetensors")) == {
        "params/a",
        "ema/a",
        "first_moment/a",
        "second_moment/a",
        "loss_scale/factor",
        "loss_scale/good_steps",
        "teacher/a",
    }
    assert json.loads((folder / "state.json").read_text()).keys() == {"format", "step", "sha256"}


def test_arrays_of_any_strides_round_trip(tmp_path: Path) -> None:
    """What a library hands over transposed is stored as it reads, not as it lies in memory."""
    run = RunDir(tmp_path)
    turned = {name: np.asfortranarray(array) for name, array in ARRAYS.items()}
    assert not all(array.flags.c_contiguous for array in turned.values())
    folder = save_checkpoint(run, Checkpoint(1, turned, turned, {}, {}), keep=0)
    for name, array in load_checkpoint(folder).params.items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_a_write_that_fails_leaves_the_older_checkpoint_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path)
    save_checkpoint(run, checkpoint(1), keep=0)

    def full(arrays: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ict_backends.runs.checkpoint.save_file", full)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(run, checkpoint(step), keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert load_checkpoint(run.latest_checkpoint()).step == 1


@pytest.mark.parametrize("group", Checkpoint._fields[1:])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nonfinite_weights_are_not_written(tmp_path: Path, group: str, value: float) -> None:
    bad = checkpoint(2, **{group: {"a": np.float32([1, value])}})
    save_checkpoint(RunDir(tmp_path), checkpoint(1), keep=1)
    with pytest.raises(NonFiniteError, match=f"{group}/a is not finite after step 2.*step_00000001"):
        save_checkpoint(RunDir(tmp_path), bad, keep=1)
    assert [p.name for p in RunDir(tmp_path).checkpoints()] == ["step_00000001"]


def spoil(folder: Path, how: str) -> None:
    tensors, state = folder / "state.safetensors", folder / "state.json"
    match how:
        case "truncated":
            tensors.write_bytes(tensors.read_bytes()[:-10])
        case "changed":
            content = bytearray(tensors.read_bytes())
            content[-1] ^= 1
            tensors.write_bytes(content)
        case "no tensors":
            tensors.unlink()
        case "no state":
            state.unlink()
        case "no json":
            state.write_text("{")
        case "other json":
            state.write_text("[]")
        case "newer format":
            state.write_text(json.dumps(json.loads(state.read_text()) | {"format": "ict-checkpoint-9"}))
        case "foreign tensors":
            import hashlib

            save_file({"model/a": np.zeros(1, np.float32)}, tensors)
            digest = hashlib.sha256(tensors.read_bytes()).hexdigest()
            state.write_text(json.dumps(json.loads(state.read_text()) | {"sha256": digest}))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "damaged"),
        ("changed", "damaged"),
        ("no tensors", "No such file"),
        ("no state", "not one of ict's"),
        ("no json", "damaged"),
        ("other json", "damaged"),
        ("newer format", "ict-checkpoint-9"),
        ("foreign tensors", "it holds model/a"),
    ],
)
def test_spoilt_checkpoints_are_refused_in_one_line(tmp_path: Path, how: str, says: str) -> None:
    folder = save_checkpoint(RunDir(tmp_path), checkpoint(), keep=0)
    spoil(folder, how)
    with pytest.raises(CheckpointError, match=says) as error:
        load_checkpoint(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_every_difference_of_names_and_shapes_is_listed() -> None:
    with pytest.raises(CheckpointError, match=r"missing: x, y; unknown: b; a.weight is \[2, 3\] and not \[3, 2\]"):
        check_arrays("it", {"x": (1,), "y": (), "a.weight": (3, 2)}, ARRAYS)
    check_arrays("it", {name: array.shape for name, array in ARRAYS.items()}, ARRAYS)


def test_only_step_folders_count_as_checkpoints(tmp_path: Path) -> None:
    for name in ("step_00000002", "step_00000010", ".step_00000003.1.tmp", "step_x", "other"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000099").write_text("a file")
    assert [p.name for p in RunDir(tmp_path).checkpoints()] == ["step_00000002", "step_00000010"]


def test_a_run_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoints"):
        RunDir(tmp_path).latest_checkpoint()


def test_moments_of_another_network_do_not_load(tiny_config: Callable[..., Config]) -> None:
    import torch

    from ict_backends.torch.parallel import Processes
    from ict_backends.torch.state import init_state
    from ict_backends.torch.weights import from_checkpoint, to_checkpoint

    config, cpu = tiny_config(), Processes(torch.device("cpu"))
    whole = to_checkpoint(init_state(config, cpu))
    assert from_checkpoint(config, whole, cpu, "it").step == 0
    short = whole._replace(second_moment={})
    with pytest.raises(CheckpointError, match="it: second_moment does not fit the network: missing: conv_in.bias"):
        from_checkpoint(config, short, cpu, "it")
    taught = tiny_config(teacher={"decay": 0.9})
    assert from_checkpoint(taught, whole, cpu, "it").teacher is not None  # before the first step, it is the student
    with pytest.raises(CheckpointError, match="it: teacher does not fit the network: missing: conv_in.bias"):
        from_checkpoint(taught, whole._replace(step=1), cpu, "it")
    other = tiny_config(network={"channels": 16})
    with pytest.raises(CheckpointError, match=r"params does not fit.*conv_in.weight is \[8, 3, 3, 3\] and not \[16,"):
        from_checkpoint(other, whole, cpu, "it")
