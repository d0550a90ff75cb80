"""`ict eval` in several processes: the figures of one, and what happens where one ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Ict

from ict_backends.errors import LostProcessError
from ict_backends.measuring.distances import joined_moments, moments
from ict_backends.measuring.evaluation import gather
from ict_backends.measuring.metrics import Gathered
from ict_backends.measuring.sharing import exchange, join, stretch
from ict_backends.runs.folder import RunDir
from ict_cli import eval as command

METRICS = "pixel-fd,kid,pr,sw"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def start(rank: int, port: int, *arguments: object, world: int = 2) -> subprocess.Popen[str]:
    here = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    environment = {**os.environ, **{key: str(value) for key, value in here.items()}}
    words = [sys.executable, "-m", "ict_cli", "eval", *map(str, arguments)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(*arguments: object, world: int = 2) -> list[tuple[int, str, str]]:
    """The exit codes and the outputs of several processes."""
    port = free_port()
    processes = [start(rank, port, *arguments, world=world) for rank in range(world)]
    outputs = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_processes_share_the_samples_and_give_the_figures_of_one(
    ict: Ict, tmp_path: Path, labelled_run: Path, backend: str
) -> None:
    options = [
        labelled_run,
        f"--backend={backend}",
        "--device=cpu",
        "--metrics=kid,pr,sw",
        "--num=31",
        "--batch-size=8",
    ]
    alone = ict("eval", *options, "--json", tmp_path / "one.json")
    assert alone.code == 0, alone.err
    (first, *others) = together(*options, "--json", tmp_path / "two.json")
    assert first[0] == 0, first[2]
    said = [line for line in first[1].splitlines() if not line.startswith("[Gloo]")]  # which a library prints
    assert [line.split(":")[0] for line in said[:1]] == [line.split(":")[0] for line in alone.out.splitlines()[:1]]
    assert len(said) == len(alone.out.splitlines())
    for code, out, _ in others:
        assert code == 0
        assert all(line.startswith("[Gloo]") for line in out.splitlines())
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    for name, value in one.items():
        assert two[name] == (pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value), name


def test_moments_and_counts_of_all_processes(ict: Ict, tmp_path: Path, digits_run: Path) -> None:
    options = [digits_run, "--device=cpu", "--num=200", "--no-halves"]
    assert ict("eval", *options, "--json", tmp_path / "one.json").code == 0
    assert together(*options, "--json", tmp_path / "three.json", world=3)[0][0] == 0
    one, three = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "three.json"))
    assert three["num"] == 200
    assert three["pixel-fd"] == pytest.approx(one["pixel-fd"], rel=1e-4)


def test_a_folder_is_measured_by_the_first_process(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        np.savez(tmp_path / f"{name}.npz", np.random.default_rng(seed).integers(0, 256, (9, 4, 4, 1), dtype=np.uint8))
    found = together(tmp_path / "a.npz", "--data", tmp_path / "b.npz", "--metrics=sw")
    assert [code for code, *_ in found] == [0, 0]
    assert found[0][1].startswith("sliced Wasserstein")
    assert found[1][1] == ""


def test_where_a_process_is_gone_the_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine:
        @contextlib.contextmanager
        def joined(self, name: str) -> Iterator[None]:
            try:
                yield
            except ConnectionError as error:
                raise LostProcessError(1, 2, str(error)) from error

    monkeypatch.setattr(command, "open_backend", lambda *arguments, **options: Engine())
    says = "^process 1 of 2 stops, since another one has ended: closed; give the command again$"
    with pytest.raises(LostProcessError, match=says), command._together("torch", "cpu", 2):
        raise ConnectionError("closed")
    with command._together("torch", "cpu", 1) as alone:
        assert alone is None


def test_all_processes_measure_the_checkpoint_of_the_first(tmp_path: Path, digits_run: Path) -> None:
    run = RunDir(Path(shutil.copytree(digits_run, tmp_path / "run")))
    newest = run.latest_checkpoint()
    assert command._checkpoint(run, "ema", None) == newest

    class Later(Others):
        """A process that finds a newer checkpoint than the first one has found."""

        def exchange(self, text: str) -> list[str]:
            assert text.endswith("step_00000099")
            return [str(newest), text]

    shutil.copytree(newest, run.checkpoint_folder(99))
    assert command._checkpoint(run, "ema", Later([])) == newest  # type: ignore[arg-type]


def test_each_sample_is_in_one_stretch() -> None:
    for num in (2, 3, 7, 31, 50_000):
        for world in (1, 2, 3, 8):
            parts = [stretch(num, rank, world) for rank in range(world)]
            assert [i for part in parts for i in part] == list(range(num))
            assert all(len(part) == 0 or len(part) >= 2 for part in parts)
            assert max(map(len, parts)) - min(map(len, filter(len, parts))) <= 1


class Others:
    """The first of processes whose texts are known."""

    rank, world = 0, 2

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def exchange(self, text: str) -> list[str]:
        return [text, *self.texts]


def test_what_processes_gather_is_joined_in_order() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 1, 4, 4), dtype=np.uint8)
    names = ["pixel-fd", "kid", "sw"]
    whole = gather([images], names, None)
    parts = [gather([images[rows]], names, None) for rows in (slice(20), slice(20, 47), slice(47, 50))]
    parts.insert(1, gather([], names, None))

    sent: list[str] = []

    class Sender(Others):
        rank = 1

        def exchange(self, text: str) -> list[str]:
            sent.append(text)
            return []

    for part in parts[1:]:
        assert exchange(part, Sender([])) is part  # type: ignore[arg-type]
    for found in (join(parts), exchange(parts[0], Others(sent))):  # type: ignore[arg-type]
        assert found.num == 50
        assert found.probabilities is None
        assert found.moments is None
        assert np.array_equal(found.pixels, whole.pixels)  # type: ignore[arg-type]
        assert np.array_equal(found.features, whole.features)  # type: ignore[arg-type]
        assert found.pixel_moments is not None
        assert whole.pixel_moments is not None
        assert found.pixel_moments.num == 50
        np.testing.assert_allclose(found.pixel_moments.mean, whole.pixel_moments.mean, rtol=1e-12)
        np.testing.assert_allclose(found.pixel_moments.cov, whole.pixel_moments.cov, atol=1e-12)
    assert isinstance(found, Gathered)


def test_moments_of_parts_are_those_of_all() -> None:
    features = 1e4 + np.random.default_rng(0).standard_normal((100, 5))
    parts = [moments(features[rows]) for rows in (slice(2), slice(2, 60), slice(60, 100))]
    found, whole = joined_moments(parts), moments(features)
    assert found.num == whole.num == 100
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(found.cov, whole.cov, rtol=1e-7, atol=1e-9)
