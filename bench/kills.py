"""Kills of training at random moments, as a test of resuming: python bench/kills.py [--kills N] [--backend B].

In each backend, a small run is killed (SIGKILL) again and again and resumed until it is done. Its folder must then hold
the same files as that of a run that nobody killed, with the same content but for times: checkpoints, the best one,
pictures, the log and evaluations. Folders that differ are kept, and make the exit code 1.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

# Each of these is due at other steps, so that kills fall between them.
_SETTINGS = [
    "--steps=60",
    "--set=train.checkpoint_every=4",
    "--set=train.sample_every=6",
    "--set=eval.every=5",
    "--set=eval.num=40",
    "--set=eval.metric=sw",
    "--set=network.dropout=0.3",
]


class Outcome(NamedTuple):
    """What came of a run: how often it was killed, how long it took in all, and which files differ."""

    kills: int
    seconds: float
    different: list[str]


@click.command()
@click.option("--kills", default=20, show_default=True, help="How often to kill each run at most.")
@click.option("--backend", "backends", multiple=True, default=("torch", "jax"), show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", default="kill-faults", show_default=True, help="Folder for the runs that differ.")
def main(kills: int, backends: tuple[str, ...], seed: int, keep: str) -> None:
    """Kill runs, resume them, and compare what they leave."""
    faults = 0
    click.echo(f"{'backend':10}{'kills':>8}{'seconds':>10}  differs from a run that nobody killed in")
    for backend in backends:
        with tempfile.TemporaryDirectory() as folder:
            outcome = _campaign(backend, Path(folder), kills, np.random.default_rng(seed))
            if outcome.different:
                faults += 1
                shutil.copytree(folder, Path(keep) / backend, dirs_exist_ok=True)
        click.echo(f"{backend:10}{outcome.kills:8}{outcome.seconds:10.1f}  {', '.join(outcome.different) or 'nothing'}")
    sys.exit(faults > 0)


def _campaign(backend: str, folder: Path, kills: int, rng: np.random.Generator) -> Outcome:
    _check(_start(backend, folder / "whole", resume=False))
    begin, run, killed = time.perf_counter(), folder / "run", 0
    while True:
        child = _start(backend, run, resume=(run / "config.toml").exists())
        if killed == kills or not _reaches(child, run, _logged(run) + int(rng.integers(0, 8))):
            break
        time.sleep(rng.uniform(0.0, 0.3))
        child.kill()
        child.communicate()
        killed += 1
    _check(child)
    ours, theirs = _contents(run), _contents(folder / "whole")
    different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return Outcome(killed, time.perf_counter() - begin, different)


def _reaches(child: subprocess.Popen[str], run: Path, step: int) -> bool:
    """Wait until a training has logged so many steps; False if it ends before."""
    while child.poll() is None:
        if _logged(run) >= step:
            return True
        time.sleep(0.01)
    return False


def _logged(run: Path) -> int:
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def _start(backend: str, run: Path, *, resume: bool) -> subprocess.Popen[str]:
    from tiny import TINY

    settings = ["--resume", "--device=cpu"] if resume else [*TINY, *_SETTINGS]
    words = [sys.executable, "-m", "ict_cli", "train", f"--backend={backend}", f"--out={run}", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _check(child: subprocess.Popen[str]) -> None:
    """Wait for a process, and end with what it printed if it failed."""
    output = child.communicate()[0]
    if child.returncode:
        raise click.ClickException(f"{child.args!r} failed with {child.returncode}:\n{output}")


def _contents(run: Path) -> dict[str, object]:
    """All files of a run, by name: bytes, or the lines of a log without times."""
    files = {str(path.relative_to(run)): path for path in run.rglob("*") if path.is_file()}
    return {name: _lines(path) if path.suffix == ".jsonl" else path.read_bytes() for name, path in files.items()}


def _lines(path: Path) -> list[dict[str, object]]:
    return [{**json.loads(line), "images_per_second": None} for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
