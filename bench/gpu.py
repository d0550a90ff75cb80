"""All measurements and checks that need a GPU, in one command: python bench/gpu.py [--train SECONDS] [--part NAME].

The parts run in the order of their importance, each in a process of its own that is ended at its time limit. Results
are written at once, so that a part that is cut off loses nothing. See bench/gpu.md.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:  # nothing of ours is imported before `environment` says where it is
    from ict_backends.protocols import Backend

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_OUT = ROOT / "bench" / "results" / "gpu"
# Where what the machine lacks, and what the repository may not hold, comes along; git ignores it.
CARRIED = ROOT / ".gpu"
RESULTS, REPORT, LOG = "results.jsonl", "report.txt", "log.txt"


class Part(NamedTuple):
    """A part of the measurement.

    Attributes:
        phase: the number of the phase; parts of one phase run side by side.
        seconds: the time limit, after which the part is ended.
        module: the name of a file beside this one.
        function: the name of the function in it that does the part; its first argument is a `Report`.
        arguments: further arguments of the function.
    """

    phase: int
    seconds: int
    module: str
    function: str
    arguments: tuple[str, ...] = ()


# XLA takes longer to compile the paper's step than a part may last: the first phase leaves it in JAX's cache.
PARTS = {
    "torch-checks": Part(1, 100, "gpu_checks", "check", ("torch",)),
    "jax-checks": Part(1, 100, "gpu_checks", "check", ("jax",)),
    "jax-compile": Part(1, 100, "gpu_speed", "jax_compile"),
    "torch-speed": Part(2, 120, "gpu_speed", "torch_speed"),
    "jax-speed": Part(3, 100, "gpu_speed", "jax_speed"),
    "sampling": Part(4, 40, "gpu_speed", "sampling"),
    "training": Part(5, 60, "gpu_training", "train"),
    "tuning": Part(6, 60, "gpu_training", "tune"),
}
# Those that take part only if they are named, or rehearsed.
ON_REQUEST = ("tuning",)
# Seconds that each training has beside itself: compiling the step, and then sampling and measuring.
BEFORE_TRAINING, AFTER_TRAINING = 60, 50


class Report(NamedTuple):
    """The results of a part, which are written as they come, and its limits.

    Attributes:
        part: the name of the part.
        out: the folder of the results.
        rehearse: True for tiny sizes on the CPU.
        seconds: the time that the part may take in all.
        began: `time.monotonic()` when the part began.
    """

    part: str
    out: Path
    rehearse: bool
    seconds: float
    began: float

    def add(self, name: str, /, **values: Any) -> None:
        """Write one result, and print it."""
        print(write(self.out, self.part, name, time.monotonic() - self.began, values), end="", flush=True)

    def attempt(self, name: str, function: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Do a measurement, write its values and return them; if it raises, write the error and return None."""
        start = time.monotonic()
        try:
            values = function()
        except Exception as error:  # a part goes on with what follows
            text = " ".join(str(error).split())
            self.add(name, error=f"{type(error).__name__}: {text[:500]}")
            return None
        self.add(name, took=round(time.monotonic() - start, 1), **values)
        return values

    @property
    def left(self) -> float:
        """The seconds that the part has left."""
        return self.seconds - (time.monotonic() - self.began)

    @property
    def device(self) -> str:
        """The name of the device, which is the same for both backends."""
        return "cpu" if self.rehearse else "cuda"


def write(out: Path, part: str, name: str, at: float, values: Mapping[str, Any]) -> str:
    """Add a line to the file of results, and return the line.

    Args:
        out: the folder of the results.
        part, name: the names of the part and of the result.
        at: seconds since the part began.
        values: the result's figures by name.
    """
    line = json.dumps({"part": part, "name": name, "at": round(at, 1), "values": values}) + "\n"
    with open(out / RESULTS, "a", encoding="utf-8") as file:
        file.write(line)
    return line


def environment(rehearse: bool) -> dict[str, str]:
    """Environment variables of the parts, which find the packages without installation; JAX leaves memory to others."""
    packages = CARRIED / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    for name, folder in (("ict_core", "ict_core"), ("ict_backends", "backends"), ("ict_cli", "cli")):
        if not (packages / name).exists():
            (packages / name).symlink_to(ROOT / folder)
    paths = [str(packages), str(CARRIED / "site"), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
    found |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONUNBUFFERED": "1"}
    # Side by side, as many threads as cores in each process wait for each other: a step on the CPU took ten seconds.
    found |= {"OMP_NUM_THREADS": "4"}
    if rehearse:
        found |= {
            "CUDA_VISIBLE_DEVICES": "",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
            "OMP_NUM_THREADS": "1",
            "XLA_FLAGS": f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}",
        }
    return found


def start(name: str, out: Path, seconds: float, rehearse: bool) -> subprocess.Popen[bytes]:
    """Start the process of a part, whose output goes into the log."""
    command = [sys.executable, str(Path(__file__)), "--inner", name, "--out", str(out), "--limit", str(seconds)]
    with open(out / LOG, "ab") as log:
        return subprocess.Popen(
            command + ["--rehearse"] * rehearse,
            env=environment(rehearse),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait(process: subprocess.Popen[bytes], deadline: float) -> str:
    """Wait for a part until `deadline`, end it then, and return "done", "cut off" or "failed with CODE"."""
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "cut off"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "done" if code == 0 else f"failed with {code}"


def run_parts(names: list[str], out: Path, rehearse: bool, limits: Mapping[str, float]) -> list[str]:
    """Run parts phase by phase, and return the names of those that failed or were cut off.

    Args:
        limits: the seconds that each part may take, by name.
    """
    bad = []
    # The CPU of a rehearsal has no cores to spare.
    together = [[n] for n in names] if rehearse else [list(g) for _, g in groupby(names, lambda n: PARTS[n].phase)]
    for group in together:
        running = {name: start(name, out, limits[name], rehearse) for name in group}
        began = time.monotonic()
        for name, process in running.items():
            ended = wait(process, began + limits[name])
            at = time.monotonic() - began
            write(out, name, "ended", at, {"how": ended})
            print(f"{name}: {ended} after {at:.0f} s", flush=True)
            bad += [name] * (ended != "done")
        (out / REPORT).write_text(describe(out), encoding="utf-8")
    return bad


def records(out: Path) -> list[dict[str, Any]]:
    """The results in a folder, in the order in which they were written."""
    path = out / RESULTS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def describe(out: Path) -> str:
    """The results in a folder as text, a line for each."""
    lines = []
    for record in records(out):
        shown = ", ".join(f"{k} {_number(v)}" for k, v in record["values"].items())
        lines.append(f"{record['part']:15s} {record['at']:6.1f} s  {record['name']}: {shown}")
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def engine_of(report: Report, backend: str) -> Backend[Any, Any]:
    """Load a backend, and tune this process for it and the report's device."""
    from ict_backends import load_backend

    engine = load_backend(backend)
    engine.tune_process(report.device)
    return engine


def run_inner(name: str, report: Report) -> None:
    """Do a part, in its own process."""
    import importlib

    part = PARTS[name]
    if report.rehearse:
        _compile_without_a_compiler()
    getattr(importlib.import_module(part.module), part.function)(report, *part.arguments)


def _compile_without_a_compiler() -> None:
    """Have torch trace modules and functions, but run them uncompiled: compiling for the CPU takes minutes."""
    import torch

    def compiled(module: torch.nn.Module, **options: Any) -> None:
        of_module(module, backend="aot_eager", dynamic=options.get("dynamic"))

    of_module, of_function = torch.nn.Module.compile, torch.compile
    torch.nn.Module.compile = compiled
    torch.compile = lambda function, **options: of_function(function, backend="aot_eager", dynamic=options["dynamic"])


@click.command()
@click.option("--part", "chosen", type=click.Choice(list(PARTS)), multiple=True, help="This one alone; repeatable.")
@click.option("--train", "seconds", default=10, show_default=True, help="Seconds of training, in each of its parts.")
@click.option("--rehearse", is_flag=True, help="Everything at tiny sizes on the CPU.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: OUT, or bench/results/gpu]"
)
@click.option("--inner", type=click.Choice(list(PARTS)), hidden=True)
@click.option("--limit", type=float, default=600.0, help="Seconds of each part at the most.  [default: its own limit]")
def main(
    chosen: tuple[str, ...], seconds: int, rehearse: bool, out: Path | None, inner: str | None, limit: float
) -> None:
    """Measure and check everything that needs a GPU."""
    out = out or Path(os.environ.get("OUT", DEFAULT_OUT))
    out.mkdir(parents=True, exist_ok=True)
    if inner:
        run_inner(inner, Report(inner, out, rehearse, limit, time.monotonic()))
        return
    beside = BEFORE_TRAINING + AFTER_TRAINING
    own = {name: part.seconds for name, part in PARTS.items()}
    own |= {"training": seconds + beside, "tuning": seconds + 2 * beside}
    if rehearse:  # which is not for its speed
        own = dict.fromkeys(PARTS, 600)
    limits = {name: min(float(most), limit) for name, most in own.items()}
    usual = PARTS if rehearse else [name for name in PARTS if name not in ON_REQUEST]
    names = [name for name in PARTS if name in (chosen or usual)]
    bad = run_parts(names, out, rehearse, limits)
    print(describe(out))
    if bad:
        raise click.ClickException(f"did not end well: {', '.join(bad)}; see {out / LOG}")


if __name__ == "__main__":
    main()
