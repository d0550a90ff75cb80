"""Random damages to one file of a run, as a test of what reads it: python bench/damage.py [--damages N] [--backend B].

A run that was stopped half-way is copied, one of its files is damaged, and the run is resumed, sampled and reported on.
Each command must end well, with what an undamaged run gives, or in one line of an error. What may differ is the damaged
file itself: the text of a log or a picture has no checksum. A traceback, another error, or other weights, samples or
files are faults, kept, and make the exit code 1.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

import click
import numpy as np
from campaign import contents

_SETTINGS = [
    "--set=train.checkpoint_every=4",
    "--set=train.sample_every=6",
    "--set=train.keep_every=8",
    "--set=eval.every=5",
    "--set=eval.num=40",
    "--set=eval.metric=sw",
]
_HALF, _WHOLE = 14, 20


@click.command()
@click.option("--damages", default=75, show_default=True, help="How many files to damage in each backend.")
@click.option("--backend", "backends", multiple=True, default=("torch", "jax"), show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--keep", default="damage-faults", show_default=True, help="Folder for the runs that went wrong.")
def main(damages: int, backends: tuple[str, ...], seed: int, keep: str) -> None:
    """Damage files of runs, and count what comes of it."""
    faults, rng = 0, np.random.default_rng(seed)
    for backend in backends:
        with tempfile.TemporaryDirectory() as folder:
            half, whole = _runs(backend, Path(folder))
            counts = Counter[str]()
            for i in range(damages):
                run = Path(folder) / "run"
                shutil.copytree(half, run)
                what = _damage(run, rng)
                said = _outcome(backend, run, whole, what)
                counts[said.split(":")[0]] += 1
                if said.startswith("FAULT"):
                    faults += 1
                    click.echo(f"  {backend} {i}: {what}: {said}")
                    shutil.copytree(run, Path(keep) / f"{backend}-{i}", dirs_exist_ok=True)
                shutil.rmtree(run)
        click.echo(f"{backend}: {damages} damages: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
    sys.exit(faults > 0)


def _call(*words: str) -> tuple[int, str]:
    """The exit code of a command, run in this process, and what it printed; 99 where it ended by a bug."""
    from ict_cli.main import run

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run(words)
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
        except Exception:
            return 99, traceback.format_exc()


def _commands(backend: str, run: Path) -> dict[str, list[str]]:
    where = [f"--backend={backend}", "--device=cpu"]
    return {
        "sample": ["sample", str(run), *where, "--num=4", f"--out={run}.npz"],
        "report": ["report", str(run), f"--out={run}.html"],
        "resume": ["train", *where, "--resume", f"--out={run}"],
    }


def _runs(backend: str, folder: Path) -> tuple[Path, Path]:
    """A run that was stopped half-way, and what it becomes when it is resumed."""
    from tiny import TINY

    half, whole = folder / "half", folder / "whole"
    train = ["train", f"--backend={backend}", *TINY, *_SETTINGS]
    code, said = _call(*train, f"--steps={_HALF}", f"--out={half}")
    assert code == 0, said
    code, said = _call(
        "train", f"--backend={backend}", "--device=cpu", "--resume", f"--steps={_WHOLE}", f"--out={half}"
    )
    assert code == 0, said
    _back_to_the_half(half)
    shutil.copytree(half, whole)
    for words in _commands(backend, whole).values():
        code, said = _call(*words)
        assert code == 0, said
    return half, whole


def _back_to_the_half(run: Path) -> None:
    """Take away the newest checkpoints, as if the run had been killed before them."""
    for place in run.glob("checkpoints/step_*"):
        if int(place.name.split("_")[1]) > _HALF:
            shutil.rmtree(place)


def _damage(run: Path, rng: np.random.Generator) -> str:
    """Damage one file of a run in one way, and say which and how."""
    files = sorted(path for path in run.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    content, size = path.read_bytes(), path.stat().st_size
    at = int(rng.integers(max(size, 1)))
    ways = {
        "a bit flipped": lambda: content[:at] + bytes([content[at] ^ (1 << int(rng.integers(8)))]) + content[at + 1 :],
        "cut": lambda: content[:at],
        "empty": lambda: b"",
        "zeros": lambda: content[:at] + bytes(min(64, size - at)) + content[at + 64 :],
        "zeros to the end": lambda: content[:at] + bytes(size - at),
        "noise": lambda: content[:at] + rng.bytes(min(16, size - at)) + content[at + 16 :],
        "more at the end": lambda: content + rng.bytes(20),
        "a part doubled": lambda: content[:at] + content[at : at + 40] + content[at:],
        "removed": None,
    }
    name = sorted(ways)[int(rng.integers(len(ways)))]
    make = ways[name]
    if make is None:
        path.unlink()
    elif size:
        path.write_bytes(make())
    return f"{path.relative_to(run)}, {name} at {at}"


def _outcome(backend: str, run: Path, whole: Path, what: str) -> str:
    damaged = what.split(",")[0]
    before = contents(run)
    refused = False
    for name, words in _commands(backend, run).items():
        code, said = _call(*words)
        errors = [line for line in said.splitlines() if line.startswith("Error: ")]
        if code not in (0, 1, 2) or (code and len(errors) != 1) or "Traceback" in said:
            return f"FAULT: {name} ended with {code}: {said[-400:]!r}"
        if code and name == "resume" and contents(run) != before:
            return f"FAULT: refused, and changed the run: {errors[0]}"
        refused |= code != 0
        out = Path(f"{run}.npz")
        if name == "sample" and code == 0 and out.read_bytes() != Path(f"{whole}.npz").read_bytes():
            return "FAULT: other samples"
    if refused:
        return "refused in one line"
    ours, theirs = contents(run), contents(whole)
    different = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    if different - {damaged}:
        return f"FAULT: {sorted(different)} differ"
    return "equal but for the damaged file itself" if different else "equal"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
