"""Being told to stop, being killed, and disks that fail: what a run has kept is whole, and it goes on from there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny import smallest

from ict_backends import load_backend
from ict_backends.data.dataset import Dataset
from ict_backends.errors import CheckpointError, UserError
from ict_backends.runs import checkpoint_writer
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir, create_run, remove_leftovers
from ict_backends.training import evaluator, prefetch
from ict_backends.training.interruption import StoppedError
from ict_backends.training.step_plan import StepPlan
from ict_core import Config
from ict_core.settings import build_config


def make_config(*, evaluate: int = 0, **train: object) -> Config:
    every = {"log_every": 1, "sample_every": 0, "checkpoint_every": 0}
    evaluation = {"every": evaluate, "num": 8, "metric": "sw"}
    # The levels of the first steps do not depend on how many follow.
    curriculum = {"steps": 50}
    return build_config(smallest(network={"dropout": 0.3}, curriculum=curriculum, train=every | train, eval=evaluation))


def make_data() -> Dataset:
    return Dataset(np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), dtype=np.uint8), None)


def start(path: Path, config: Config, backend: str = "torch") -> RunDir:
    run = create_run(path, config, make_data())
    load_backend(backend).train(config, make_data(), run, device="cpu")
    return run


def go_on(run: RunDir, config: Config, backend: str = "torch") -> None:
    remove_leftovers(run)
    load_backend(backend).train(config, make_data(), run, device="cpu", resume=True)


def contents(run: RunDir) -> bytes:
    return (run.latest_checkpoint() / "state.safetensors").read_bytes()


def everything(run: RunDir) -> dict[str, object]:
    """All that a run has left but its settings, by file: bytes, or the lines of a log without the times."""
    files = {str(path.relative_to(run.path)): path for path in sorted(run.path.rglob("*")) if path.is_file()}
    return {name: without_settings(path) for name, path in files.items() if name != "config.toml"}


def without_settings(path: Path) -> object:
    if path.suffix == ".jsonl":
        return [
            json.loads(line) | {"images_per_second": 0, "peak_memory_bytes": 0}
            for line in path.read_text().splitlines()
        ]
    if path.name == "state.json":
        return {key: value for key, value in json.loads(path.read_text()).items() if key in ("step", "sha256")}
    return path.read_bytes()


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], object]) -> None:
    """Do something when the plan of a step is made."""
    original = prefetch.plan_step

    def plan_step(config: Config, number: int, count: int) -> StepPlan:
        if number == step:
            act()
        return original(config, number, count)

    monkeypatch.setattr(prefetch, "plan_step", plan_step)


@pytest.mark.parametrize(
    ("backend", "number"),
    [("torch", signal.SIGINT), ("torch", signal.SIGTERM), ("torch", signal.SIGHUP), ("jax", signal.SIGTERM)],
)
def test_a_signal_ends_the_step_and_the_run_goes_on_to_the_same_weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
    backend: str,
    number: int,
) -> None:
    if number == signal.SIGHUP:  # pytest itself may run under nohup
        original = signal.signal(signal.SIGHUP, signal.SIG_DFL)
        request.addfinalizer(lambda: signal.signal(signal.SIGHUP, original))
    config = make_config(total_steps=9)
    whole, before = start(tmp_path / "whole", config, backend), signal.getsignal(number)
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: signal.raise_signal(number))
        with pytest.raises(StoppedError, match=f"Stopped by {signal.Signals(number).name} after step 5; go on") as stop:
            start(tmp_path / "stopped", config, backend)
    assert stop.value.exit_code == 128 + number
    assert "finishing this step and writing a checkpoint" in capfd.readouterr().err
    assert signal.getsignal(number) is before
    run = RunDir(tmp_path / "stopped")
    assert load_checkpoint(run.latest_checkpoint()).step == 5
    go_on(run, config, backend)
    assert contents(run) == contents(whole)
    lines = [[json.loads(line) for line in r.metrics_file.read_text().splitlines()] for r in (run, whole)]
    assert [(m["step"], m["loss"]) for m in lines[0]] == [(m["step"], m["loss"]) for m in lines[1]]


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("step", [4, 6])
def test_what_belongs_to_the_last_checkpoint_is_made_up_for(tmp_path: Path, backend: str, step: int) -> None:
    """A process was killed after it had written a checkpoint, and before it drew, evaluated and removed an old one."""
    config = make_config(total_steps=6, checkpoint_every=2, sample_every=2, evaluate=2, keep_checkpoints=2)
    whole = start(tmp_path / "whole", config, backend)
    run = start(tmp_path / "run", make_config(**UP_TO[step]), backend)
    run.samples_file(step).unlink(missing_ok=True)
    lines = [line for line in run.evals_file.read_text().splitlines() if json.loads(line)["step"] < step]
    run.evals_file.write_text("".join(f"{line}\n" for line in lines))
    if step == 6:
        shutil.copytree(run.checkpoint_folder(6), run.checkpoint_folder(2))  # which another step has left
    assert len(everything(run)) < len(everything(whole)) + 2
    go_on(run, config, backend)
    assert everything(run) == everything(whole)


# The step after which it was killed -> the settings that lead to there.
_EVERY = {"checkpoint_every": 2, "sample_every": 2, "evaluate": 2, "keep_checkpoints": 2}
UP_TO = {step: {"total_steps": step, **_EVERY} for step in (4, 6)}


def test_a_signal_cuts_an_evaluation_short_and_the_resumed_run_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In its second batch, after a step without a checkpoint; and after the last step."""
    config = make_config(total_steps=4, evaluate=2)
    whole = start(tmp_path / "whole", config)
    for step in (2, 4):
        with monkeypatch.context() as patch:
            drawn = cut_short(patch, step)
            with pytest.raises(StoppedError, match=f"Stopped by SIGTERM after step {step}"):
                start(tmp_path / f"{step}", config)
        run = RunDir(tmp_path / f"{step}")
        assert drawn[-1] < 8
        assert load_checkpoint(run.latest_checkpoint()).step == step
        go_on(run, config)
        assert everything(run)["evals.jsonl"] == everything(whole)["evals.jsonl"]
        best = {name for name in everything(whole) if name.startswith("best")}
        assert best
        assert {name: everything(run).get(name) for name in best} == {name: everything(whole)[name] for name in best}
        assert contents(run) == contents(whole)
    assert "missing in" not in capfd.readouterr().err


def cut_short(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Raise SIGTERM within the evaluation after a step, which draws two images at a time; return how many it drew."""
    original, calls, drawn = evaluator.sample_images, [0], [0]

    def sample(*arguments: object, on_batch: Callable[[int], object], **options: object) -> np.ndarray:
        calls[0] += 2  # steps, since there is an evaluation every two

        def count(done: int) -> None:
            drawn.append(drawn[-1] + done)
            if calls[0] == step:
                signal.raise_signal(signal.SIGTERM)
            on_batch(done)

        drawn[:] = [0]
        return original(*arguments, batch=2, on_batch=count, **options)

    monkeypatch.setattr(evaluator, "sample_images", sample)
    return drawn


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 1, lambda: signal.raise_signal(signal.SIGHUP))
        assert load_checkpoint(start(tmp_path / "run", make_config(total_steps=3)).latest_checkpoint()).step == 3
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_in_the_last_step_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_step(monkeypatch, 2, lambda: signal.raise_signal(signal.SIGTERM))
    assert load_checkpoint(start(tmp_path / "run", make_config(total_steps=3)).latest_checkpoint()).step == 3


def run_here(action: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """This file by itself: see the end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, action, str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    done = run_here("interrupt-twice", tmp_path / "run")
    assert done.returncode == 130, done.stderr
    assert "Interrupted." in done.stderr
    run = RunDir(tmp_path / "run")
    assert load_checkpoint(run.latest_checkpoint()).step == 3
    go_on(run, make_config(total_steps=6, checkpoint_every=3))
    assert load_checkpoint(run.latest_checkpoint()).step == 6


def interrupt_twice(folder: Path) -> None:
    """In the fifth step, when the checkpoint of the third is there."""

    def interrupt() -> None:
        while not RunDir(folder).checkpoints():
            time.sleep(0.01)
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 4, interrupt)
        start(folder, make_config(total_steps=6, checkpoint_every=3))


def test_a_second_ctrl_c_waits_for_the_checkpoint_that_is_being_written(tmp_path: Path) -> None:
    done = run_here("interrupt-twice-writing", tmp_path / "run")
    assert done.returncode == 130, done.stderr
    assert "Writing the checkpoint; again to leave without it" in done.stderr
    run = RunDir(tmp_path / "run")
    assert load_checkpoint(run.latest_checkpoint()).step == 3
    assert not list(run.path.rglob(".*.tmp"))


def test_a_third_ctrl_c_leaves_without_it(tmp_path: Path) -> None:
    done = run_here("interrupt-thrice", tmp_path / "run")
    assert done.returncode == 130, done.stderr
    assert not RunDir(tmp_path / "run").checkpoints()


def interrupt_while_writing(folder: Path, *, times: int) -> None:
    """In the fifth step, while the checkpoint of the third is being written, which takes a second."""
    original, writing = checkpoint_writer.save_checkpoint, threading.Event()

    def save(*arguments: object, **options: object) -> None:
        writing.set()
        time.sleep(1 if times == 2 else 60)
        original(*arguments, **options)

    def interrupt() -> None:
        writing.wait(60)
        threading.Timer(0.2, lambda: [os.kill(os.getpid(), signal.SIGINT) for _ in range(times - 2)]).start()
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_writer, "save_checkpoint", save)
        at_step(patch, 4, interrupt)
        start(folder, make_config(total_steps=6, checkpoint_every=3))


KILLS = 50
# Of the moments at which the children are killed; the variable sets another one.
KILL_SEED = int(os.environ.get("ICT_TEST_KILL_SEED", "0"))


def test_a_run_that_is_killed_at_any_moment_goes_on_from_a_whole_checkpoint(tmp_path: Path) -> None:
    """Fifty times, while it writes a checkpoint after every step; in the end it is as if nothing had happened."""
    print(f"ICT_TEST_KILL_SEED={KILL_SEED}")  # pytest shows it where the test fails
    done = run_here("kill", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kills"] == KILLS
    assert report["checkpoints read"] >= KILLS
    assert report["steps"] >= 7  # at which there were pictures and evaluations
    assert report["leftovers"] > 0  # some were killed in the middle of writing
    assert report["equal"]


def kill(folder: Path) -> None:
    """Let children train, kill each at a random moment, and read what they leave."""
    every = {"checkpoint_every": 1, "keep_checkpoints": 3, "sample_every": 5, "evaluate": 7}
    config = make_config(total_steps=100_000, **every)
    run, rng = create_run(folder, config, make_data()), np.random.default_rng(KILL_SEED)
    start(folder.with_name("first"), make_config(total_steps=1))  # what is imported on first use is so in every child
    read = leftovers = kills = 0
    while kills < KILLS:
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            with pytest.MonkeyPatch.context() as patch:
                at_step(patch, steps_done(run), partial(os.write, told, b"."))
                load_backend("torch").train(config, make_data(), run, device="cpu", resume=bool(run.checkpoints()))
            os._exit(1)
        os.read(ready, 1)
        time.sleep(rng.uniform(0.0, 0.25))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        kills += 1
        for checkpoint in run.checkpoints():
            load_checkpoint(checkpoint)
            read += 1
        leftovers += len(list(run.path.rglob(".*.tmp")))
        remove_leftovers(run)
    steps = steps_done(run)
    go_on(run, make_config(total_steps=steps, **every))
    equal = everything(run) == everything(start(folder.with_name("straight"), make_config(total_steps=steps, **every)))
    print(
        json.dumps({"kills": kills, "checkpoints read": read, "leftovers": leftovers, "steps": steps, "equal": equal})
    )


def steps_done(run: RunDir) -> int:
    return load_checkpoint(run.latest_checkpoint()).step if run.checkpoints() else 0


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the next so many writings of a checkpoint fail, without long pauses between tries."""
    monkeypatch.setattr(checkpoint_writer, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(checkpoint_writer, "_RETRY_SECONDS_AT_END", 0.01)
    original = checkpoint_writer.save_checkpoint

    def let(times: int, error: Exception | None = None) -> None:
        left = [times]

        def save(*arguments: object, **options: object) -> None:
            left[0] -= 1
            if left[0] >= 0:
                raise error or OSError(28, "No space left on device")
            original(*arguments, **options)

        monkeypatch.setattr(checkpoint_writer, "save_checkpoint", save)

    return let


def test_a_checkpoint_that_cannot_be_written_is_said_and_tried_again(
    tmp_path: Path, failing: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    failing(2)
    run = start(tmp_path / "run", make_config(total_steps=4))
    error = capfd.readouterr().err
    assert error.count("the checkpoint after step 4 is not written: [Errno 28] No space left on device") == 2
    assert load_checkpoint(run.latest_checkpoint()).step == 4


def test_a_run_whose_last_checkpoint_cannot_be_written_says_so_and_keeps_the_one_before(
    tmp_path: Path, failing: Callable[..., None]
) -> None:
    config = make_config(total_steps=6)
    run = start(tmp_path / "run", make_config(total_steps=6))
    shutil.rmtree(run.path)
    failing(10**6, CheckpointError("the disk is gone"))
    with pytest.raises(CheckpointError, match="after step 6 could not be written: the disk is gone; newest: none"):
        start(tmp_path / "run", config)


def test_training_does_not_wait_for_a_disk_that_fails(
    tmp_path: Path, failing: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """The next checkpoint takes the place of the one that cannot be written."""
    failing(3)
    run = start(tmp_path / "run", make_config(total_steps=8, checkpoint_every=1, keep_checkpoints=0))
    assert load_checkpoint(run.latest_checkpoint()).step == 8
    assert "is not written" in capfd.readouterr().err


def test_a_folder_that_vanishes_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(total_steps=8, checkpoint_every=4)
    whole = start(tmp_path / "whole", config)
    folder = tmp_path / "run"

    def vanish() -> None:
        deadline = time.monotonic() + 60
        while not RunDir(folder).checkpoints() and time.monotonic() < deadline:
            time.sleep(0.01)  # removing what a thread is writing would be another test
        shutil.rmtree(folder)

    at_step(monkeypatch, 6, vanish)
    run = start(folder, config)
    assert "has vanished and is written again" in capfd.readouterr().err
    assert contents(run) == contents(whole)
    assert run.load_config() == config
    monkeypatch.undo()
    go_on(run, config)


def test_a_log_that_cannot_be_written_loses_no_line_that_can_be_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(total_steps=6)
    file, aside = tmp_path / "run" / "metrics.jsonl", tmp_path / "aside"

    def block() -> None:
        file.rename(aside)
        file.mkdir()

    def unblock() -> None:
        file.rmdir()
        aside.rename(file)

    at_step(monkeypatch, 2, block)
    at_step(monkeypatch, 4, unblock)
    run = start(tmp_path / "run", config)
    assert "metrics.jsonl cannot be written: Is a directory; trying again" in capfd.readouterr().err
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_log_that_lacks_lines_says_so_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run" / "metrics.jsonl"
    at_step(monkeypatch, 2, lambda: (file.unlink(), file.mkdir()))
    start(tmp_path / "run", make_config(total_steps=6))
    assert "metrics.jsonl lacks 4 lines" in capfd.readouterr().err


def test_a_picture_that_cannot_be_drawn_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(model: object) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("ict_backends.training.recorder.preview", fail)
    run = start(tmp_path / "run", make_config(total_steps=4, sample_every=2))
    error = capfd.readouterr().err
    assert "no sample picture after step 2: CUDA out of memory" in error
    assert f"missing in {run.path}: step_00000002.png, step_00000004.png" in error
    assert load_checkpoint(run.latest_checkpoint()).step == 4


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = make_config(total_steps=6, checkpoint_every=2, keep_checkpoints=0)
    run = start(tmp_path / "run", config)
    expected = contents(run)
    for folder in run.checkpoints()[1:]:
        tensors = bytearray((folder / "state.safetensors").read_bytes())
        tensors[-9] ^= 1
        (folder / "state.safetensors").write_bytes(tensors)
    go_on(run, config)
    error = capfd.readouterr().err
    assert error.count("is damaged") == 2
    assert contents(run) == expected
    for folder in run.checkpoints():
        (folder / "state.json").unlink()
    with pytest.raises(UserError, match="step_00000002 is not one of ict's"):
        go_on(run, config)


def test_checkpoints_are_kept_by_the_rule(tmp_path: Path) -> None:
    config = make_config(total_steps=10, checkpoint_every=1, keep_checkpoints=2, keep_every=4)
    run = start(tmp_path / "run", config)
    assert [int(folder.name[5:]) for folder in run.checkpoints()] == [4, 8, 9, 10]


if __name__ == "__main__":
    actions = {
        "interrupt-twice": interrupt_twice,
        "interrupt-twice-writing": partial(interrupt_while_writing, times=2),
        "interrupt-thrice": partial(interrupt_while_writing, times=3),
        "kill": kill,
    }
    actions[sys.argv[1]](Path(sys.argv[2]))
