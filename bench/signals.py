"""Signals to commands at random moments: python bench/signals.py [--times N] [--backend B].

Training, sampling, measuring and a study get SIGINT, SIGTERM or SIGHUP at a random moment between their start and their
end: while they import, read, compile, train, write, draw or measure. Each must end soon, with 0 or with the code of the
signal, without a traceback and without a process left behind; the same command (training: with --resume) must then end
well. Anything else is a fault, and makes the exit code 1.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import numpy as np
from campaign import STUDY, end_well, processes_of, start

_COMMANDS = ("train", "sample", "eval", "ablate")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_RUN = [
    "--steps=12",
    "--set=train.checkpoint_every=3",
    "--set=train.sample_every=4",
    "--set=eval.every=4",
    "--set=eval.num=40",
    "--set=eval.metric=sw",
]
# Seconds after the signal in which a command must end.
_SOON = 60


@click.command()
@click.option("--times", default=10, show_default=True, help="How often each command gets a signal.")
@click.option("--backend", "backends", multiple=True, default=("torch", "jax"), show_default=True)
@click.option("--command", "names", multiple=True, default=_COMMANDS, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(times: int, backends: tuple[str, ...], names: tuple[str, ...], seed: int) -> None:
    """Send signals, and count how the commands end."""
    faults, rng = 0, np.random.default_rng(seed)
    click.echo(f"{'backend':9}{'command':9}{'signals':>8}{'faults':>8}  exit codes: times")
    for backend in backends:
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                codes, said = _campaign(name, backend, Path(folder), times, rng)
            counts = ", ".join(f"{code}: {number}" for code, number in sorted(codes.items()))
            click.echo(f"{backend:9}{name:9}{times:8}{len(said):8}  {counts}")
            click.echo("".join(f"  FAULT {line}\n" for line in said), nl=False)
            faults += len(said)
    sys.exit(faults > 0)


def _campaign(
    name: str, backend: str, folder: Path, times: int, rng: np.random.Generator
) -> tuple[Counter[int], list[str]]:
    from tiny import TINY

    (folder / "plan.toml").write_text(STUDY)
    train = ["train", f"--backend={backend}", "--device=cpu", *TINY, *_RUN]
    if name in ("sample", "eval"):
        end_well(start([*train, f"--out={folder / 'run'}"], folder))
    codes, faults = Counter[int](), list[str]()
    seconds = 0.0
    for i in range(-2, times):  # the first two get no signal: they fill caches, and show how long the command takes
        here = folder / str(i)
        here.mkdir()
        first, again = _words(name, backend, folder, here, train)
        begin = time.perf_counter()
        if i < 0:
            end_well(start(first, folder))
            seconds = time.perf_counter() - begin
            continue
        number = _SIGNALS[int(rng.integers(len(_SIGNALS)))]
        delay = float(rng.uniform(0.3, seconds))  # before, Python itself has not begun
        code, output = _interrupted(first, number, delay, folder)
        codes[code] += 1
        what = f"{name}, {number.name} after {delay:.2f} s: "
        if code not in (0, 128 + number) or "Traceback" in output:
            faults.append(f"{what}exit code {code}, {output.strip()[-300:]!r}")
        left = processes_of(here)
        if left:
            faults.append(f"{what}left behind: {left}")
        begun = here / "out" / ("runs" if name == "ablate" else "config.toml")
        started = name not in ("train", "ablate") or begun.exists()  # before, there is nothing to resume
        code, output = _call(again if started else first, folder)
        if code:
            faults.append(f"{what}then exit code {code}, {output.strip()[-300:]!r}")
    return codes, faults


def _words(name: str, backend: str, folder: Path, here: Path, train: list[str]) -> tuple[list[str], list[str]]:
    """The command that gets a signal, and the one that must end well afterwards."""
    where = [f"--backend={backend}", "--device=cpu"]
    out = f"--out={here / 'out'}"
    match name:
        case "train":
            resumed = ["train", *where, "--resume", out]
            return [*train, out], resumed
        case "sample":
            words = ["sample", str(folder / "run"), *where, "--num=600", "--batch-size=16", out]
            return words, words
        case "eval":
            words = ["eval", str(folder / "run"), *where, "--num=600", "--batch-size=16", "--metrics=sw"]
            words += [f"--json={here / 'out.json'}"]
            return words, words
        case _:
            words = [
                "ablate",
                str(folder / "plan.toml"),
                *where,
                *train[3:],
                "--seeds=1",
                "--jobs=2",
                "--metric=sw",
                out,
            ]
            return words, [*words, "--resume"]


def _interrupted(words: list[str], number: signal.Signals, delay: float, folder: Path) -> tuple[int, str]:
    child = start(words, folder)
    time.sleep(delay)
    child.send_signal(number)
    try:
        output = child.communicate(timeout=_SOON)[0]
    except subprocess.TimeoutExpired:
        child.kill()
        return 999, f"it went on for {_SOON} s; {child.communicate()[0]}"
    code = child.returncode
    return (128 - code if code < 0 else code), output


def _call(words: list[str], folder: Path) -> tuple[int, str]:
    child = start(words, folder)
    output = child.communicate()[0]
    return child.returncode, output


if __name__ == "__main__":
    main()
