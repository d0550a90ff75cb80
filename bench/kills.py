"""Kills at random moments, as a test of going on: python bench/kills.py [--kills N] [--backend B] [--command C].

In each backend, a small training, a sampling into a folder, one into an .npz file and a study are killed (SIGKILL)
again and again, and started again until they are done. What they leave must then be the same files as without a kill,
with the same content but for times: checkpoints, pictures, logs, evaluations. What differs is kept, and makes the exit
code 1.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from campaign import STUDY, contents, end_well, processes_of, start

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


# Long enough for several kills in the middle: 38 batches.
_SAMPLES = ["--num=600", "--batch-size=16"]
# Trainings that lose their study stop by a signal, with a checkpoint that others would not have.
_LAST = ["--set=train.keep_checkpoints=1"]
_COMMANDS = ("train", "sample", "npz", "ablate")


class Outcome(NamedTuple):
    """What came of a command: how often it was killed, how long it took in all, and which files differ."""

    kills: int
    seconds: float
    different: list[str]


@click.command()
@click.option("--kills", default=20, show_default=True, help="How often to kill each command at most.")
@click.option("--backend", "backends", multiple=True, default=("torch", "jax"), show_default=True)
@click.option("--command", "names", multiple=True, type=click.Choice(_COMMANDS), default=_COMMANDS, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", default="kill-faults", show_default=True, help="Folder for what differs.")
def main(kills: int, backends: tuple[str, ...], names: tuple[str, ...], seed: int, keep: str) -> None:
    """Kill commands, start them again, and compare what they leave."""
    faults, rng = 0, np.random.default_rng(seed)
    click.echo(f"{'backend':9}{'command':9}{'kills':>6}{'seconds':>9}  differs from what nobody killed in")
    for backend in backends:
        for name in names:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place)
                (folder / "plan.toml").write_text(STUDY)
                outcome = (
                    _train(backend, folder, kills, rng)
                    if name == "train"
                    else _other(name, backend, folder, kills, rng)
                )
                if outcome.different:
                    faults += 1
                    shutil.copytree(folder, Path(keep) / f"{backend}-{name}", dirs_exist_ok=True)
            said = ", ".join(outcome.different) or "nothing"
            click.echo(f"{backend:9}{name:9}{outcome.kills:6}{outcome.seconds:9.1f}  {said}")
    sys.exit(faults > 0)


def _train(backend: str, folder: Path, kills: int, rng: np.random.Generator) -> Outcome:
    """Kill a training after some more steps each time, so that it comes forward."""
    from tiny import TINY

    def train(run: Path) -> subprocess.Popen[str]:
        resume = (run / "config.toml").exists()
        settings = ["--resume", "--device=cpu"] if resume else [*TINY, *_SETTINGS]
        return start(["train", f"--backend={backend}", f"--out={run}", *settings], folder)

    end_well(train(folder / "whole"))
    begin, run, killed = time.perf_counter(), folder / "run", 0
    while True:
        child = train(run)
        if killed == kills or not _reaches(child, run, _logged(run) + int(rng.integers(0, 8))):
            break
        time.sleep(rng.uniform(0.0, 0.3))
        _kill(child)
        killed += 1
    end_well(child)
    return Outcome(killed, time.perf_counter() - begin, _different(folder / "whole", run))


def _other(name: str, backend: str, folder: Path, kills: int, rng: np.random.Generator) -> Outcome:
    """Kill a command at any moment of its time, as often as asked: it begins anew where it could keep nothing."""
    from tiny import TINY

    train = [f"--backend={backend}", *TINY]
    if name != "ablate":
        end_well(start(["train", f"--out={folder / 'model'}", *train, "--steps=10"], folder))

    def begin_in(out: Path) -> subprocess.Popen[str]:
        where = [f"--backend={backend}", "--device=cpu"]
        if name != "ablate":
            out = out / "images.npz" if name == "npz" else out / "images"
            return start(["sample", str(folder / "model"), *where, *_SAMPLES, f"--out={out}"], folder)
        resume = ["--resume"] if (out / "runs").exists() else []
        study = ["--seeds=1", "--jobs=2", "--metric=sw", "--steps=40", *_LAST, f"--out={out}"]
        return start(["ablate", str(folder / "plan.toml"), *train, *study, *resume], folder)

    whole, run, different = folder / "whole", folder / "run", set[str]()
    for place in (whole, run):
        place.mkdir()
    end_well(begin_in(whole))  # which fills caches
    begin = time.perf_counter()
    end_well(begin_in(run))
    seconds, begin, killed = time.perf_counter() - begin, time.perf_counter(), 0
    shutil.rmtree(run)
    run.mkdir()
    while killed < kills:
        child = begin_in(run)
        try:
            child.communicate(timeout=rng.uniform(0.3, seconds))
        except subprocess.TimeoutExpired:
            _kill(child)
            killed += 1
            while processes_of(run):  # the trainings of a study end on their own
                time.sleep(0.1)
            if killed < kills:
                continue
            child = begin_in(run)
        end_well(child)
        different |= set(_different(whole, run))
        if different:
            break
        shutil.rmtree(run)
        run.mkdir()
    return Outcome(killed, time.perf_counter() - begin, sorted(different))


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


def _kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def _different(whole: Path, run: Path) -> list[str]:
    ours, theirs = contents(run), contents(whole)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


if __name__ == "__main__":
    main()
