"""Checkpoints: what goes in comes out, or the refusal says why."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ict_backends.errors import CheckpointError, NonFiniteError, UsageError
from ict_backends.runs.checkpoint import Checkpoint, check_arrays, load_checkpoint, load_newest, save_checkpoint
from ict_backends.runs.folder import RunDir, create_run, remember_changes, remove_leftovers
from ict_backends.runs.state import state_text
from ict_core import Config, LossScale

GROUPS = Checkpoint._fields[1:-1]
ARRAYS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32([1, 2])}


def checkpoint(step: int = 3, **changes: Any) -> Checkpoint:
    groups: dict[str, Any] = {g: {n: a + i for n, a in ARRAYS.items()} for i, g in enumerate(GROUPS)}
    groups["averages"] = {name: {n: a + i for n, a in ARRAYS.items()} for i, name in enumerate(("0.1", "0.05"), 10)}
    return Checkpoint(step, **(groups | changes))


def test_round_trip(tmp_path: Path) -> None:
    before = checkpoint()
    after = load_checkpoint(save_checkpoint(RunDir(tmp_path), before, keep=0))
    assert after.step == 3
    assert [*after.averages] == ["0.05", "0.1"]  # the shorter first
    for group, arrays in before.groups().items():
        for name, array in arrays.items():
            assert np.array_equal(after.groups()[group][name], array)
            assert after.groups()[group][name].dtype == array.dtype


def test_the_names_in_the_file_are_the_formats(tmp_path: Path) -> None:
    """Whatever a field of `Checkpoint` or `LossScale` is called, users' files keep these names."""
    scale = {name: np.asarray(a) for name, a in LossScale(np.float32(2.0), np.int32(1))._asdict().items()}
    only = {"a": np.float32([1.0])}
    folder = save_checkpoint(
        RunDir(tmp_path), Checkpoint(3, only, only, only, only, scale, only, {"0.05": only}), keep=0
    )
    assert set(load_file(folder / "state.safetensors")) == {
        "params/a",
        "ema/a",
        "first_moment/a",
        "second_moment/a",
        "loss_scale/factor",
        "loss_scale/good_steps",
        "teacher/a",
        "ema_0.05/a",
    }
    assert json.loads((folder / "state.json").read_text()).keys() == {"format", "step", "sha256", "checksum"}


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

    def full(path: Path, arrays: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ict_backends.runs.checkpoint.write_safetensors", full)
    for step in (1, 2):
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(run, checkpoint(step), keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    assert load_checkpoint(run.latest_checkpoint()).step == 1


@pytest.mark.parametrize("group", GROUPS)
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
            save_file({"model/a": np.zeros(1, np.float32)}, tensors)
            digest = hashlib.sha256(tensors.read_bytes()).hexdigest()
            state.write_text(state_text(3, digest, None))


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


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "changes", [{"step": 2}, {"sha256": "0" * 64}, {"settings": {}}, {"more": 1}, {"checksum": "0" * 64}]
)
def test_the_checksum_covers_all_that_the_checkpoint_says(
    tmp_path: Path, tiny_config: Callable[..., Config], changes: dict[str, object]
) -> None:
    folder = save_checkpoint(RunDir(tmp_path), checkpoint(), keep=0, config=tiny_config())
    assert load_checkpoint(folder).step == 3
    edit(folder / "state.json", **changes)
    with pytest.raises(CheckpointError, match=r"is damaged: state.json is not as it was written"):
        load_checkpoint(folder)


def as_of_an_earlier_version(folder: Path, **changes: object) -> None:
    state = json.loads((folder / "state.json").read_text()) | changes
    kept = {name: value for name, value in state.items() if name not in ("checksum", "settings")}
    (folder / "state.json").write_text(json.dumps(kept))


def test_checkpoints_of_earlier_versions_are_read(tmp_path: Path) -> None:
    """Without a checksum, a wrong step is seen by the folder's name at least."""
    folder = save_checkpoint(RunDir(tmp_path), checkpoint(), keep=0)
    as_of_an_earlier_version(folder)
    assert load_checkpoint(folder).step == 3
    as_of_an_earlier_version(folder, step=2)
    with pytest.raises(CheckpointError, match="state.json says that it is of step 2"):
        load_checkpoint(folder)


NONSENSE = {
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "zeros": "\0" * 100,
    "long number": '{"step": ' + "9" * 10_000 + "}",
    "infinite step": '{"step": Infinity, "sha256": "x"}',
    "negative step": '{"step": -1, "sha256": "x"}',
    "large step": '{"step": 9999999999999999999999, "sha256": "x"}',
    "true for a step": '{"step": true, "sha256": "x"}',
    "words for a step": '{"step": "three", "sha256": "x"}',
    "list for a hash": '{"step": 3, "sha256": ["x"]}',
    "list of settings": '{"step": 3, "sha256": "x", "settings": []}',
    "nothing": "{}",
}


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_in_the_json_file_is_one_line(tmp_path: Path, text: str) -> None:
    folder = save_checkpoint(RunDir(tmp_path), checkpoint(), keep=0)
    for content in (text.encode(), text.encode() + b"\xff\xfe"):
        (folder / "state.json").write_bytes(content)
        with pytest.raises(CheckpointError, match="is damaged: state.json") as error:
            load_checkpoint(folder)
        assert "\n" not in str(error.value)


def header_of(**arrays: object) -> bytes:
    text = json.dumps(arrays).encode()
    return len(text).to_bytes(8, "little") + text


def array(dtype: str, shape: list[int], *offsets: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


DEEP = b'{"a":' * 50_000
LIES = {
    "a long header": (2**62).to_bytes(8, "little") + b"{}",
    "a deep header": len(DEEP).to_bytes(8, "little") + DEEP,
    "more than there is": header_of(**{"params/a": array("F32", [10**12], 0, 4 * 10**12)}),
    "more elements than bytes": header_of(**{"params/a": array("F32", [10**12], 0, 4)}) + bytes(4),
    "an overflow": header_of(**{"params/a": array("F32", [2**62, 2**62], 0, 4)}) + bytes(4),
    "an overlap": header_of(**{n: array("F32", [1], 0, 4) for n in ("params/a", "ema/a")}) + bytes(4),
    "a gap": header_of(**{"params/a": array("F32", [1], 4, 8)}) + bytes(8),
    "backwards": header_of(**{"params/a": array("F32", [1], 8, 4)}) + bytes(8),
    "a negative shape": header_of(**{"params/a": array("F32", [-1], 0, 4)}) + bytes(4),
    "float8": header_of(**{"params/a": array("F8_E4M3", [4], 0, 4)}) + bytes(4),
    "float4": header_of(**{"params/a": array("F4", [8], 0, 4)}) + bytes(4),
    "an unknown type": header_of(**{"params/a": array("F31", [1], 0, 4)}) + bytes(4),
    "float64": header_of(**{"params/a": array("F64", [1], 0, 8)}) + bytes(8),
    "integers": header_of(**{"params/a": array("I32", [1], 0, 4)}) + bytes(4),
    "nothing": b"",
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_files_of_arrays_that_lie_are_one_line(tmp_path: Path, content: bytes) -> None:
    """Even where the sha256 is right, as somebody would make it."""
    folder = save_checkpoint(RunDir(tmp_path), checkpoint(), keep=0)
    (folder / "state.safetensors").write_bytes(content)
    (folder / "state.json").write_text(state_text(3, hashlib.sha256(content).hexdigest(), None))
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_newer_checkpoints_take_no_place_of_good_ones(tmp_path: Path) -> None:
    run, warnings = RunDir(tmp_path), list[str]()
    for step in (1, 2, 3, 4):
        save_checkpoint(run, checkpoint(step), keep=0)
    for step in (3, 4):
        spoil(run.checkpoint_folder(step), "truncated")
    # A checkpoint that is older than others, damaged or not, is kept even if it is one of too many.
    folder, loaded = load_newest(run, warn=warnings.append, writes=False)
    save_checkpoint(run, checkpoint(2), keep=1)
    assert [p.name for p in run.checkpoints()] == [f"step_0000000{step}" for step in (2, 3, 4)]
    folder, loaded = load_newest(run, warn=warnings.append)
    assert (folder.name, loaded.step, len(warnings)) == ("step_00000002", 2, 4)
    assert [p.name for p in run.checkpoints()] == ["step_00000002"]
    assert {p.name for p in folder.parent.iterdir()} == {folder.name, "step_00000003.damaged", "step_00000004.damaged"}
    for step in (3, 4, 5):
        save_checkpoint(run, checkpoint(step), keep=2)
    assert [p.name for p in run.checkpoints()] == ["step_00000004", "step_00000005"]
    spoil(run.checkpoint_folder(5), "truncated")
    spoil(run.checkpoint_folder(4), "truncated")
    with pytest.raises(CheckpointError, match="step_00000004 is damaged"):
        load_newest(run, warn=warnings.append)
    assert [p.name for p in run.checkpoints()] == ["step_00000004", "step_00000005"]  # as they were: none is good


def test_links_are_never_followed_to_remove_a_checkpoint(tmp_path: Path) -> None:
    mine, other = RunDir(tmp_path / "mine"), RunDir(tmp_path / "other")
    for step in (1, 2):
        save_checkpoint(other, checkpoint(step), keep=0)
    # A checkpoint that is a link is one of those that are kept; then the link goes, and not what it points to.
    mine.checkpoint_folder(1).parent.mkdir(parents=True)
    mine.checkpoint_folder(1).symlink_to(other.checkpoint_folder(1))
    save_checkpoint(mine, checkpoint(3), keep=1)
    assert [p.name for p in mine.checkpoints()] == ["step_00000003"]
    # Checkpoints that lie elsewhere, behind a link, all stay.
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "checkpoints").symlink_to(other.path / "checkpoints")
    save_checkpoint(RunDir(tmp_path / "linked"), checkpoint(3), keep=1)
    assert [load_checkpoint(p).step for p in other.checkpoints()] == [1, 2, 3]
    # A link to the whole run is another name for it.
    (tmp_path / "latest").symlink_to(mine.path)
    save_checkpoint(RunDir(tmp_path / "latest"), checkpoint(4), keep=1)
    assert [p.name for p in mine.checkpoints()] == ["step_00000004"]


def test_files_that_never_end_are_not_read(tmp_path: Path) -> None:
    folder = save_checkpoint(RunDir(tmp_path), checkpoint(), keep=0)
    for name in ("state.safetensors", "state.json"):
        whole = (folder / name).read_bytes()
        for device in ("/dev/zero", tmp_path / "pipe"):
            if not Path(device).exists():
                os.mkfifo(device)
            (folder / name).unlink()
            (folder / name).symlink_to(device)
            with pytest.raises(CheckpointError, match="is no file"):
                load_checkpoint(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(whole)
    assert load_checkpoint(folder).step == 3


def test_leftovers_are_removed_and_not_what_they_point_to(tmp_path: Path) -> None:
    run, other = RunDir(tmp_path / "run"), save_checkpoint(RunDir(tmp_path / "other"), checkpoint(), keep=0)
    save_checkpoint(run, checkpoint(), keep=0)
    (run.path / "checkpoints" / ".step_00000004.1.tmp").symlink_to(other)
    (run.path / "checkpoints" / ".step_00000005.1.tmp").mkdir()
    (run.path / ".config.toml.1.tmp").symlink_to(other / "state.json")
    (run.path / "best").symlink_to(other.parent)
    (other.parent / ".mine.tmp").write_text("of another run")
    remove_leftovers(run)
    assert not [p for p in run.path.rglob(".*.tmp") if p.parent.name != "best"]
    assert load_checkpoint(other).step == 3
    assert (other.parent / ".mine.tmp").exists()


def test_what_is_left_before_a_run_has_settings_is_no_hindrance(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    """A process that is killed while it makes a run leaves the first checkpoint or a part; no later one is lost."""
    run = RunDir(tmp_path / "run")
    save_checkpoint(run, checkpoint()._replace(step=0), keep=0)
    (run.path / "checkpoints" / ".step_00000000.1.tmp").mkdir()
    create_run(run.path, tiny_config(), None)
    assert not list((run.path / "checkpoints").glob("*"))
    run.config_file.unlink()
    save_checkpoint(run, checkpoint(), keep=0)
    with pytest.raises(UsageError, match="is not an empty folder"):
        create_run(run.path, tiny_config(), None)
    assert load_checkpoint(run.latest_checkpoint()).step == 3


def test_settings_that_lack_their_end_or_were_changed_are_refused(
    tmp_path: Path, tiny_config: Callable[..., Config]
) -> None:
    config = tiny_config()
    run = create_run(tmp_path / "run", config, None)
    save_checkpoint(run, checkpoint(), keep=0, config=config)
    text = config.to_toml()
    lines = text.splitlines(keepends=True)
    for stop in range(len(lines)):
        run.config_file.write_text("".join(lines[:stop]))
        if "".join(lines[:stop]).strip() == text.strip():
            continue
        with pytest.raises(CheckpointError, match="config.toml has other settings than step_00000003.*without "):
            run.load_config()
    run.config_file.write_text(text.replace("sigma_data = 0.5", "sigma_data = 0.7"))
    with pytest.raises(CheckpointError, match="noise.sigma_data is 0.7 and was 0.5"):
        run.load_config()
    for free in ({"train": {"learning_rate": 1.0}}, {"curriculum": {"steps": 7}}, {"data": {"source": "elsewhere"}}):
        run.config_file.write_text(tiny_config(**free).to_toml())
        assert run.load_config() == tiny_config(**free)
    # If the newest checkpoint is damaged, the one before it tells.
    save_checkpoint(run, checkpoint(4), keep=0, config=config)
    spoil(run.checkpoint_folder(4), "no json")
    run.config_file.write_text(text[: text.index("[train]")])
    with pytest.raises(CheckpointError, match="other settings than step_00000003.*without train.seed"):
        run.load_config()
    shutil.rmtree(run.checkpoint_folder(4))
    # Of earlier versions, nothing but the file itself is known; what they lack is added where training goes on.
    as_of_an_earlier_version(run.checkpoint_folder(3))
    run.config_file.write_text("\n".join(line for line in text.splitlines() if not line.startswith("late_")))
    assert run.load_config() == config
    assert remember_changes(run, config) == {}
    assert run.config_file.read_text() == text


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
