"""The result does not depend on how a batch is split: over micro-batches, processes, and parts of the weights; nor on
where the images are held.

Each backend's runs are made by one process that imports it once and is then forked: see the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from twins import assert_all_close, small_adm_config, small_config

from ict_backends import load_backend
from ict_backends.data.dataset import Dataset
from ict_backends.errors import UserError
from ict_backends.runs.checkpoint import Checkpoint, load_checkpoint
from ict_backends.runs.folder import RunDir, create_run
from ict_core import Config
from ict_core.settings import replace

# name -> number of processes, and the settings that are changed. Dropout, of labels too, is on in all of them; images
# are gathered on the host in those that begin so; "taught" ones have a teacher with an average and masks of its own, as
# all of JAX's.
TORCH = {
    "whole": (1, {}),
    "micro": (1, {"micro_batch": 4}),
    "host micro": (1, {"micro_batch": 4}),
    "two": (2, {"micro_batch": 4}),
    "host four": (4, {}),
    "adm": (1, {}),
    "adm sharded": (2, {"shard_weights": True, "micro_batch": 4}),
    "adm taught": (1, {"micro_batch": 4}),
    "adm taught sharded": (2, {"shard_weights": True}),
}
JAX = {
    "whole": (1, {}),
    "host micro": (1, {"micro_batch": 4}),
    "sharded": (2, {"shard_weights": True, "micro_batch": 4}),
}
RUNS = {"torch": TORCH, "jax": JAX}
# Processes that share two cores wait for each other at every array of every step.
STEPS = 8


def make_config(name: str, settings: dict[str, object], *, taught: bool = False) -> Config:
    base = small_adm_config() if name.startswith("adm") else small_config(network={"dropout": 0.3})
    train = {"batch_size": 16, "total_steps": STEPS, "log_every": 2, "checkpoint_every": 4, "keep_checkpoints": 0}
    train["label_dropout"] = 0.3
    hold = "host" if name.startswith("host") else "device"
    # Evaluating compiles the sampler anew in each process of JAX's.
    evaluated = {"every": 0 if name in ("whole", "host micro") else 4, "num": 64}
    teacher = {"decay": 0.9, "share_dropout": False} if taught or "taught" in name else {}
    return replace(base, train=train | settings, eval=evaluated, data={"hold": hold}, teacher=teacher)


def make_data() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (64, 3, 4, 4), dtype=np.uint8), np.arange(64) % 3)


@pytest.fixture(scope="module", params=["torch", "jax"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    """A backend's runs by name."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, request.param, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return {name: RunDir(folder / name) for name in RUNS[request.param]}


def newest(run: RunDir) -> Checkpoint:
    return load_checkpoint(run.latest_checkpoint())


def expected_of(name: str) -> str:
    return name.removesuffix(" sharded") if name.startswith("adm") else "whole"


def test_the_weights_are_the_same_however_a_batch_is_split(runs: dict[str, RunDir]) -> None:
    """After eight steps with dropout, to float32 rounding; evaluated and logged on the way."""
    for name, run in runs.items():
        found, expected = newest(run), newest(runs[expected_of(name)])
        assert found.step == STEPS
        for group in ("params", "ema", "first_moment", "teacher"):
            assert_all_close(getattr(found, group), getattr(expected, group), 1e-5)
    first, last = (load_checkpoint(folder) for folder in runs["whole"].checkpoints())
    with pytest.raises(AssertionError, match="relative difference"):
        assert_all_close(first.params, last.params, 1e-5)


def test_the_log_is_that_of_all_processes(runs: dict[str, RunDir]) -> None:
    for name, run in runs.items():
        logs = [
            [json.loads(line) for line in r.metrics_file.read_text().splitlines()]
            for r in (run, runs[expected_of(name)])
        ]
        assert [m["step"] for m in logs[0]] == [2, 4, 6, 8]
        for found, expected in zip(*logs, strict=True):
            for key in ("n", "loss", "loss_max", "grad_norm", "grad_norm_max", "learning_rate"):
                np.testing.assert_allclose(found[key], expected[key], rtol=1e-3, err_msg=f"{name} {key}")
            assert found["loss_bands"].keys() == expected["loss_bands"].keys()
            bands = [np.array(list(m["loss_bands"].values()), float) for m in (found, expected)]
            np.testing.assert_allclose(*bands, rtol=1e-3, err_msg=f"{name} loss_bands")


def test_the_first_process_alone_writes(runs: dict[str, RunDir]) -> None:
    names = {name: {str(p.relative_to(run.path)) for p in run.path.rglob("*")} for name, run in runs.items()}
    for name, found in names.items():
        others = names[expected_of(name)]
        assert {f for f in found ^ others if not f.startswith(("best", "evals"))} == set()
        assert len(runs[name].best_checkpoints()) == (runs[name].load_config().eval.every > 0)
        assert "samples/step_00000008.png" in found


def test_a_run_goes_on_with_another_number_of_processes(runs: dict[str, RunDir], tmp_path: Path) -> None:
    """Half of it by two processes, each with a part of the weights, and the rest by one."""
    backend, name = ("torch", "adm sharded") if "two" in runs else ("jax", "sharded")
    config = make_config(name, {}, taught=backend == "jax")
    run = create_run(tmp_path / "run", config, make_data())
    half = runs[name].checkpoints()[0]
    half_here = run.checkpoint_folder(4)
    half_here.parent.mkdir()
    half_here.symlink_to(half)
    load_backend(backend).train(config, make_data(), run, device="cpu", resume=True)
    assert_all_close(newest(run).params, newest(runs[expected_of(name)]).params, 1e-5)


@pytest.mark.parametrize(
    ("variables", "train", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, {}, "MASTER_ADDR = unset and MASTER_PORT = unset must say where the 2"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "x"}, {}, "MASTER_PORT = x"),
        ({"RANK": "0"}, {}, "WORLD_SIZE = unset must both be set"),
        ({}, {"micro_batch": 16, "batch_size": 16}, None),
    ],
)
@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_an_environment_half_set_is_refused(
    monkeypatch: pytest.MonkeyPatch, backend: str, variables: dict[str, str], train: dict[str, Any], message: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if message is None:
        with load_backend(backend).joined("cpu") as processes:
            assert (processes.rank, processes.world, processes.agree(True), processes.agree(False)) == (
                0,
                1,
                True,
                False,
            )
        return
    with pytest.raises(UserError, match=message) as error, load_backend(backend).joined("cpu"):
        pass
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)


def make_runs(backend: str, folder: Path) -> None:
    """Each of the runs, by children that have imported everything already."""
    if backend == "torch":  # what is imported on first use is so in every child; JAX must not be used before a fork
        config = make_config("whole", {"total_steps": 1})
        run_one(backend, config, create_run(folder / "first", config, make_data()), 0, 1, 0)
    load_backend(backend)
    for name, (world, settings) in RUNS[backend].items():
        config = make_config(name, settings, taught=backend == "jax")
        create_run(folder / name, config, make_data())
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                with contextlib.suppress(SystemExit):
                    run_one(backend, config, RunDir(folder / name), rank, world, port)
                    os._exit(0)
                os._exit(1)
            children.append(child)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0, name


def run_one(backend: str, config: Config, run: RunDir, rank: int, world: int, port: int) -> None:
    import traceback

    here = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in here.items()}
    try:
        load_backend(backend).train(config, make_data(), run, device="cpu")
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


if __name__ == "__main__":
    make_runs(sys.argv[1], Path(sys.argv[2]))
