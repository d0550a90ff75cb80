"""Several processes of the command line, as torchrun starts them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import Ict, Refused, assert_refusal
from tiny import TINY

from ict_backends.errors import LostProcessError
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir
from ict_backends.training import prefetch
from ict_backends.training.step_plan import StepPlan
from ict_core import Config

LONG = [*TINY, "--steps=100000", "--set=train.checkpoint_every=3", "--set=train.sample_every=0"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(backend: str, rank: int, port: int, *arguments: object, world: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ict_cli", "train", "--backend", backend, *map(str, arguments)]
    return launch(rank, port, command, world)


def launch(rank: int, port: int, command: list[str], world: int = 2) -> subprocess.Popen[str]:
    here = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    environment = {**os.environ, **{key: str(value) for key, value in here.items()}}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_a_checkpoint(run: RunDir, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not run.checkpoints():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_process_that_is_killed_ends_all_and_the_run_goes_on(
    ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, port = RunDir(tmp_path / "run"), free_port()
    first, second = (start("torch", rank, port, "--out", run.path, *LONG) for rank in range(2))
    wait_for_a_checkpoint(run, first)
    second.kill()
    killed = time.monotonic()
    out, error = first.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert first.returncode == 1
    last = error.splitlines()[-1]
    assert re.match(
        r"Error: process 0 of 2 stops, since another one has ended: .*; continue from the last .* --resume", last
    )
    assert "# run" in out
    assert not second.communicate()[0]  # only the first process prints

    done = load_checkpoint(run.latest_checkpoint()).step
    original = prefetch.plan_step

    def plan_step(config: Config, step: int, count: int) -> StepPlan:
        if step == done + 1:
            signal.raise_signal(signal.SIGTERM)
        return original(config, step, count)

    monkeypatch.setattr(prefetch, "plan_step", plan_step)
    resumed = ict("train", "--resume", "--out", run.path, "--device=cpu")
    assert resumed.code == 143
    line = f"Stopped by SIGTERM after step {done + 2}; go on with: ict train --out {run.path} --resume"
    assert resumed.err.splitlines()[-1] == line
    assert "Error" not in resumed.err
    assert load_checkpoint(run.latest_checkpoint()).step == done + 2


@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed"), ValueError("Gloo")]
)
def test_jax_says_in_one_line_that_a_process_is_gone(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from ict_backends.jax import parallel

    monkeypatch.setattr(parallel, "share_of_work", lambda: (1, 4))
    monkeypatch.setattr(parallel, "check_rendezvous", lambda: "127.0.0.1:1")
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    said = r"process 1 of 4 stops, since another one has ended: .*Gloo"
    with pytest.raises(LostProcessError, match=said), parallel.joined("cpu"):
        raise error
    with pytest.raises(ValueError, match="another fault"), parallel.joined("cpu"):
        raise ValueError("another fault")


LATE = """
import atexit, os, time
from ict_backends import load_backend
with load_backend("jax").joined("cpu") as processes:
    processes.part()
    if processes.rank:
        atexit.register(time.sleep, 2)
"""


def test_in_jax_a_process_that_ends_later_than_the_first_ends_well() -> None:
    """The library aborts a process that leaves after the first one."""
    port = free_port()
    processes = [launch(rank, port, [sys.executable, "-c", LATE]) for rank in range(2)]
    ends = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends


def test_sigterm_to_one_process_stops_all_after_the_same_step(tmp_path: Path) -> None:
    run, port = RunDir(tmp_path / "run"), free_port()
    processes = [start("torch", rank, port, "--out", run.path, *LONG) for rank in range(2)]
    wait_for_a_checkpoint(run, processes[0])
    processes[1].terminate()
    ends = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    steps = {int(re.search(r"Stopped by SIGTERM after step (\d+)", end)[1]) for end in ends}
    assert steps == {load_checkpoint(run.latest_checkpoint()).step}


def test_torchrun_shares_the_samples_as_the_docs_say(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    """The line of docs/sampling.md with another number, of processes and of images."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^torchrun .*?(?=  +#)", page, re.MULTILINE)
    line = line.replace("--nproc-per-node 8", "--standalone --nproc-per-node 2").replace("--num 50000", "--num 12")
    words = line.replace("runs/mine", str(digits_run)).replace("samples.npz", str(tmp_path / "x.npz")).split()
    program = str(Path(sys.executable).with_name(words[0]))
    done = subprocess.run(
        [program, *words[1:], "--batch-size=3", "--device=cpu"], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"12 images: {tmp_path / 'x.npz'}\n"
    assert ict("sample", digits_run, "--num=12", "--out", tmp_path / "y.npz", "--device=cpu").code == 0
    a, b = (np.load(tmp_path / name)["arr_0"].astype(int) for name in ("x.npz", "y.npz"))
    assert np.abs(a - b).max() <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set=train.batch_size=5"], "train.batch_size = 5 must be divisible by the number of processes, 2"),
        (["--set=train.micro_batch=4"], "train.micro_batch = 4 must divide the 2 images that each of the 2 processes"),
        (None, "--out RUN is needed where several processes train together"),
    ],
)
def test_what_processes_cannot_share_is_refused(
    ict: Ict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str] | None, message: str
) -> None:
    """In one process that takes itself for two: it is refused before they would train."""
    from ict_backends.torch import parallel

    monkeypatch.setattr(parallel, "share_of_work", lambda: (0, 2))
    monkeypatch.setattr(parallel.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(parallel.Processes, "wait", lambda self: None)
    monkeypatch.setattr(parallel.Processes, "exchange", lambda self, text: [text, text])
    out = [] if options is None else ["--out", tmp_path / "run", *options]
    result = ict("train", *TINY, *out)
    assert result.code == 2, result
    assert_refusal(result.err, re.escape(message))
    assert result.out == ""


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_port_in_use_is_said_in_one_line(
    ict: Ict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        here = {"RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": taken.getsockname()[1]}
        for name, value in here.items():
            monkeypatch.setenv(name, str(value))
        refused = ict("train", *TINY, "--backend", backend, "--out", tmp_path / "run")
    assert refused.code == 1
    assert re.search(r"^Error: process 0 of 2 cannot join the others at 127.0.0.1:\d+: .*in use", refused.err, re.M)
    assert not (tmp_path / "run").exists()


def test_the_log_says_what_a_step_was_like(ict: Ict, tmp_path: Path) -> None:
    assert ict("train", *TINY, "--out", tmp_path / "run").code == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["grad_norm"] > 0 and line["loss_max"] >= line["loss"] > 0 for line in lines)
    assert [line["spikes"] for line in lines] == [0, 0]


def read_events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars by name, and pictures as their sizes; each record is framed by its length and two checksums."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.iterdir()):
        data, place = file.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + size])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value or value.image.height))
            place += 12 + size + 4
    return found


def test_tensorboard_gets_scalars_and_pictures(ict: Ict, tmp_path: Path) -> None:
    options = ["--tensorboard", "--set=eval.every=2", "--set=train.sample_every=2"]
    assert ict("train", *TINY, *options, "--out", tmp_path / "run").code == 0
    found = read_events(tmp_path / "run" / "tensorboard")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "grad_norm", "images_per_second"):
        assert [step for step, _ in found[f"train/{name}"]] == [m["step"] for m in lines]
        values = [value for _, value in found[f"train/{name}"]]
        assert values == pytest.approx([m[name] for m in lines], rel=1e-6)
    assert found["samples"] == [(2, 8 * 36)]
    evaluation = json.loads((tmp_path / "run" / "evals.jsonl").read_text())
    assert found["eval/pixel-fd"][0] == (2, pytest.approx(evaluation["value"], rel=1e-6))
    assert any(name.startswith("train/loss_bands/") for name in found)


def test_tensorboard_that_is_not_installed_is_refused(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    refused(2, r"pip install 'ict\[tensorboard\]'", "train", *TINY, "--tensorboard", "--out", tmp_path / "run")


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_processes_that_would_train_a_mixture_are_refused(tmp_path: Path, backend: str) -> None:
    """Each says the same, and nothing is written."""
    port, other = free_port(), ["--seed=3", "--data=" + str(tmp_path / "other.npz")]
    np.savez(tmp_path / "other.npz", np.zeros((12, 8, 8, 1), np.uint8))
    options = ("--preset=digits", "--out", tmp_path / "run", *TINY)
    both = [start(backend, rank, port, *options, *(other if rank else [])) for rank in range(2)]
    ends = [process.communicate(timeout=200) for process in both]
    assert [process.returncode for process in both] == [2, 2], ends
    for out, errors in ends:
        assert "total_steps" not in out
        error = errors.splitlines()[-1]
        assert error.startswith(
            "Error: process 1 of 2 differs from process 0: train.seed is 3 and not 0; data (sha256)"
        )
    assert not (tmp_path / "run").exists()


ALONE = """
import sys
from ict_backends import environment
from ict_cli.main import run

environment.SILENCE_SECONDS = 0.5
import ict_backends.{backend}.parallel as parallel
parallel.JOINING_SECONDS = environment.JOINING_SECONDS = 5
run(sys.argv[1:])
"""


@pytest.mark.parametrize(("backend", "rank"), [("torch", 1), ("jax", 0)])
def test_a_process_alone_says_that_it_waits_and_gives_up(tmp_path: Path, backend: str, rank: int) -> None:
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    words = [sys.executable, "-c", ALONE.format(backend=backend), "train", "--backend", backend]
    done = subprocess.run(
        [*words, "--out", str(tmp_path / "run"), *TINY],
        env=os.environ | place,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1, done.stderr
    assert f"Warning: process {rank} of 2 waits at 127.0.0.1:{place['MASTER_PORT']} for the others" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"Error: process {rank} of 2 cannot join the others at 127.0.0.1:{place['MASTER_PORT']}: ")
