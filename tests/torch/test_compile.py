"""With `train.compile`, torch compiles a network as few times as can be, and computes the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from twins import assert_all_close, assert_close, small_config

from ict_backends import load_backend
from ict_backends.data.dataset import Dataset
from ict_backends.runs.checkpoint import load_checkpoint
from ict_backends.runs.folder import RunDir, create_run
from ict_backends.sampling.batches import sample_images
from ict_core import Config
from ict_core.settings import replace

CONFIG = small_config(
    network={"dropout": 0.3, "attention_resolutions": []},
    train={"total_steps": 12, "log_every": 2, "checkpoint_every": 0},
)
COMPILED = replace(CONFIG, train={"compile": True})


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """Counts what is compiled, by what takes no C compiler and little time."""
    torch._dynamo.reset()
    found = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=found))
    yield found
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset(rng.integers(0, 256, (10, 3, 4, 4), dtype=np.uint8), np.arange(10) % 3)


@pytest.fixture(scope="module")
def plain(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that is not compiled. Tests must not change it."""
    return trained(CONFIG, data, tmp_path_factory.mktemp("plain") / "run")


def trained(config: Config, data: Dataset, path: Path) -> RunDir:
    run = create_run(path, config, data)
    load_backend("torch").train(config, data, run, device="cpu")
    return run


def test_training_compiles_student_and_teacher_once_however_many_stages(
    counter: CompileCounterWithBackend, plain: RunDir, data: Dataset, tmp_path: Path
) -> None:
    run = trained(COMPILED, data, tmp_path / "run")
    assert {json.loads(line)["n"] for line in run.metrics_file.read_text().splitlines()} == {3, 5, 9}
    assert counter.frame_count == 2
    found, expected = (load_checkpoint(r.latest_checkpoint()) for r in (run, plain))
    assert found.step == expected.step == 12
    for group in ("params", "ema"):
        assert_all_close(getattr(found, group), getattr(expected, group), 1e-6)


def test_sampling_compiles_one_graph_for_each_power_of_two(
    counter: CompileCounterWithBackend, plain: RunDir, tmp_path: Path
) -> None:
    """The batches that fill one, those that do not, and several steps."""
    compiled = RunDir(shutil.copytree(plain.path, tmp_path / "compiled"))
    text = compiled.config_file.read_text()
    compiled.config_file.write_text(text.replace("compile = false", "compile = true"))
    models = [load_backend("torch").load_model(run.path, device="cpu") for run in (plain, compiled)]
    assert [model.config.train.compile for model in models] == [False, True]
    graphs = []
    for batch in range(1, 6):
        for sigmas in ([80.0], [80.0, 0.8]):
            labels = np.arange(batch) % 3
            ours, theirs = (sample_images(m, batch, sigmas=sigmas, seed=0, labels=labels) for m in models)
            assert ours.shape == (batch, 3, 4, 4)
            assert_close(theirs, ours, 1e-6)
        graphs.append(counter.frame_count)
    assert graphs == [1, 2, 3, 3, 4]
    for num, batch in ((7, 4), (5, 3), (9, 8)):  # with tails of 3, 2 and 1
        ours, theirs = (
            sample_images(m, num, sigmas=[80.0], seed=0, labels=np.arange(num) % 3, batch=batch) for m in models
        )
        assert_close(theirs, ours, 1e-6)
    assert counter.frame_count == 4


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def test_the_count_can_fail(counter: CompileCounterWithBackend) -> None:
    """Without padding, each size of a batch is a graph."""
    network = Twice()
    network.compile(dynamic=False)
    for batch in (1, 2, 3, 2):
        network(torch.zeros(batch, 2))
    assert counter.frame_count == 3
