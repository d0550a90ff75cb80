"""`ict ablate`."""

from __future__ import annotations

import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np

from ict_backends.errors import UsageError, UserError
from ict_backends.reports.ablation import (
    Outcome,
    StudyPlan,
    Summary,
    Variant,
    assignments,
    read_outcome,
    read_plan,
    write_outcome,
)
from ict_cli.options import (
    DATA_HELP,
    PATH,
    SOURCE,
    backend_option,
    command_line,
    crop_option,
    debug_option,
    device_option,
    examples,
    size_option,
)
from ict_core import Config
from ict_core.settings import Tree, merge, parse_assignment, replace

PLANS = Path(__file__).parent / "plans"
# Samples of each variant in samples.png.
_SHOWN = 12
# Seconds between two checks for a signal.
_POLL_SECONDS = 0.2


class StudyRun(NamedTuple):
    """A training run of the study.

    Attributes:
        variant, seed: what it is a run of.
        folder: its folder.
        config: its resolved settings.
        source: the folder of the run whose weights it starts from, or None.
    """

    variant: Variant
    seed: int
    folder: Path
    config: Config
    source: Path | None = None

    @property
    def name(self) -> str:
        """The name of the run in messages."""
        return f"{self.variant.name}, seed {self.seed}"

    def file(self, ending: str) -> Path:
        """The path of a file beside the run's folder: its name is the folder's, a dot and `ending`."""
        return self.folder.with_name(f"{self.folder.name}.{ending}")


class Study(NamedTuple):
    """A plan and how it is carried out.

    Attributes:
        asked: settings that apply to all variants, before their own changes.
        metric: the metric that is compared.
        num: the number of samples it is measured on; None for as many as `ict eval` takes by default.
        steps: their sampling steps; None for as many as `ict eval` takes by default.
    """

    plan: StudyPlan
    asked: Tree
    backend: str
    device: str
    metric: str
    num: int | None
    steps: int | None

    def train_words(self, run: StudyRun) -> list[str]:
        """The arguments of `ict` that train a run, but for its folder."""
        settings = assignments(merge([self.asked, run.variant.changes]))
        return ["train", *self._where(), f"--preset={self.plan.preset}", *settings, f"--seed={run.seed}"]

    def is_measured(self, outcome: Outcome) -> bool:
        """True if an outcome is of the metric, the samples and the steps that are asked for."""
        return (outcome.metric, outcome.num, outcome.steps) == (self.metric, self.num, self.steps)

    def eval_words(self, run: StudyRun) -> list[str]:
        """The arguments of `ict` that measure a run and write the result into a JSON file."""
        num = [] if self.num is None else [f"--num={self.num}"]
        what = [f"--metrics={self.metric}", *num, *self._steps(), "--no-halves", f"--json={run.file('json')}"]
        return ["eval", str(run.folder), *self._where(), *what]

    def sample_words(self, run: StudyRun) -> list[str]:
        """The arguments of `ict` that draw the samples of a run for samples.png."""
        return [
            "sample",
            str(run.folder),
            *self._where(),
            f"--num={_SHOWN}",
            *self._steps(),
            f"--out={run.file('npz')}",
        ]

    def _steps(self) -> list[str]:
        return [] if self.steps is None else [f"--steps={self.steps}"]

    def _where(self) -> list[str]:
        return [f"--backend={self.backend}", f"--device={self.device}"]


@click.command(
    "ablate",
    epilog=examples(
        "ict ablate five-changes",
        "ict ablate huber-c --seeds 5 --jobs 2 --out runs/huber",
    ),
)
@click.argument("plan_name", metavar="[PLAN|FILE.toml]", type=SOURCE, required=False)
@backend_option
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Runs of each variant, with different seeds.",
)
@click.option("--preset", help="Settings that the variants change.  [default: the plan's]")
@click.option("--data", type=SOURCE, help=DATA_HELP)
@size_option
@crop_option
@click.option(
    "--set", "settings", metavar="A.B=VALUE", multiple=True, help="Change a setting of all variants; repeatable."
)
@click.option("--steps", type=click.IntRange(min=1), help="Training steps of each run (train.total_steps).")
@click.option(
    "--metric",
    type=click.Choice(["pixel-fd", "kid", "sw"]),
    default="pixel-fd",
    show_default=True,
    help="Metric to compare, as in `ict eval`.",
)
@click.option(
    "--sampling-steps",
    "sampling_steps",
    type=click.IntRange(min=1),
    help="Sampling steps of the samples, as --steps of `ict eval`.  [default: 1; 18 of a diffusion model]",
)
@click.option("--num", type=click.IntRange(min=2), help="Samples to measure of each run.  [default: as in `ict eval`]")
@click.option("--out", type=PATH, help="Folder for runs and results.  [default: runs/ablate-PLAN-NNN]")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Runs at a time; the cores are divided among them.",
)
@device_option
@click.option("--resume", is_flag=True, help="Continue in --out: finished runs stay, interrupted ones continue.")
@click.option("--dry-run", is_flag=True, help="Print the command of each run, and stop.")
@debug_option
def ablate_command(
    plan_name: str | None,
    backend: str,
    seeds: int,
    preset: str | None,
    data: str | None,
    size: int | tuple[int, ...] | None,
    crop: str | None,
    settings: tuple[str, ...],
    steps: int | None,
    metric: str,
    sampling_steps: int | None,
    num: int | None,
    out: Path | None,
    jobs: int,
    device: str,
    resume: bool,
    dry_run: bool,
) -> None:
    """Train the variants of a plan over several seeds, measure them, and compare.

    A plan is a TOML file, or the name of a plan that is part of ict; without an argument, the names of these plans are
    printed. Each run is an `ict train` and an `ict eval`. The folder --out gets table.md, results.json, figure.png with
    error bars, samples.png with samples of each variant, and in runs/ the runs and their output.
    """
    from ict_backends import load_backend
    from ict_backends.reports.figures import check_matplotlib
    from ict_backends.runs.folder import free_run_path
    from ict_backends.runs.lock import in_use
    from ict_backends.training.resolve import given_settings

    if plan_name is None:
        click.echo("plans: " + ", ".join(sorted(path.stem for path in PLANS.glob("*.toml"))))
        return
    if resume and out is None:
        raise UsageError("--resume needs --out FOLDER, the one to go on in")
    plan = _find_plan(plan_name)
    plan = plan._replace(preset=preset or plan.preset)
    given = given_settings(data=data, size=size, crop=crop, steps=steps)
    asked = merge([*map(parse_assignment, settings), given])
    study = Study(plan, asked, backend, device, metric, num, sampling_steps)
    load_backend(backend).check_device(device)
    check_matplotlib("ict ablate")
    out = out or free_run_path(Path("runs"), f"ablate-{plan.name}")
    runs = _runs(study, seeds, out)
    if dry_run:
        for run in runs:
            start = [] if run.source is None else [f"--init={run.source}"]
            click.echo(shlex.join(["ict", *study.train_words(run), *start, f"--out={run.folder}"]))
        return
    _check_folder(out, runs, resume=resume)
    with in_use(out):
        outcomes = _carry_out(study, runs, jobs)
        about = {"command": command_line("out", "resume"), "jobs": jobs}
        summaries = _write_results(study, runs, outcomes, out, about)
    for summary in summaries:
        words = f"{metric} {summary.mean:.3g}, spread {summary.spread:.2g}; {summary.verdict()}"
        click.echo(f"{summary.variant.name}: {words}")
    click.echo(f"Results: {out / 'table.md'}, figure.png, samples.png and results.json beside it")
    if all(outcome.error for outcome in outcomes.values()):
        raise UserError(f"all {len(outcomes)} runs have failed; {out / 'table.md'} says how")


def _find_plan(name: str) -> StudyPlan:
    """Read the plan of this name, or in this file. Raises UsageError, which lists the plans, if there is none."""
    own = {path.stem: path for path in PLANS.glob("*.toml")}
    path = own.get(name, Path(name))
    if path.suffix.lower() != ".toml" or not path.is_file():
        raise UsageError(f"plan {name!r} is no file that ends in .toml, and none of {', '.join(sorted(own))}")
    return read_plan(path)


def _runs(study: Study, seeds: int, out: Path) -> list[StudyRun]:
    """The runs of a plan, ordered by seed: all variants with the first seed, then all with the second, and so on.

    Raises:
        ConfigError, UsageError, DataError: a variant's settings or the data are wrong; nothing has been trained yet.
    """
    from ict_backends.training.resolve import check_data, fit_to_data, read_data

    base = study.plan.base(study.asked)
    dataset = read_data(merge([base, study.asked]))
    configs = {v.name: fit_to_data(merge([base, v.changes]), study.asked, dataset.shape) for v in study.plan.variants}
    for config in configs.values():
        check_data(config, dataset)
    folders = {v.name: v.folder for v in study.plan.variants}

    def folder(variant: str, seed: int) -> Path:
        return out / "runs" / f"{folders[variant]}-{seed}"

    return [
        StudyRun(
            v,
            seed,
            folder(v.name, seed),
            replace(configs[v.name], train={"seed": seed}),
            folder(v.init, seed) if v.init else None,
        )
        for seed in range(seeds)
        for v in study.plan.variants
    ]


def _check_folder(out: Path, runs: Sequence[StudyRun], *, resume: bool) -> None:
    """Make the folder of the study.

    Raises UsageError if it is not empty, or if a run to resume has other settings or is in use: by a training of a
    study that was killed, which ends as soon as it has written a checkpoint.
    """
    from ict_backends.runs.folder import RunDir
    from ict_backends.runs.lock import in_use

    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"--out {out} is not an empty folder; choose another one, or go on in it with --resume")
    (out / "runs").mkdir(parents=True, exist_ok=True)
    for run in runs:
        if run.folder.is_dir():
            with in_use(run.folder):
                pass
        if RunDir(run.folder).config_file.is_file():
            known, asked = RunDir(run.folder).load_config().flat(), run.config.flat()
            changed = [f"{k} is {known.get(k)} and not {v}" for k, v in asked.items() if known.get(k) != v]
            if changed:
                raise UsageError(f"--resume: {run.folder} has other settings: {'; '.join(changed)}")


def _carry_out(study: Study, runs: Sequence[StudyRun], jobs: int) -> dict[str, Outcome]:
    """Do the runs that are not done yet, `jobs` at a time, and return the outcome of every run by its name.

    Raises:
        StoppedError: a signal has come; the running trainings have written checkpoints.
    """
    from ict_backends.training.interruption import Interruption, StoppedError

    outcomes: dict[str, Outcome] = {}
    children = _Children()
    shares: queue.Queue[set[int]] = queue.Queue()
    for share in _shares(jobs):
        shares.put(share)
    with Interruption() as interruption, ThreadPoolExecutor(jobs, initializer=_take, initargs=(shares,)) as pool:
        blocked = [run for run in runs if run.source is not None]  # until the run that they start from is done
        waiting: dict[Future[Outcome], StudyRun] = {
            pool.submit(_do, study, run, children): run for run in runs if run.source is None
        }
        while waiting:
            done, _ = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            if interruption.number is not None:
                pool.shutdown(wait=False, cancel_futures=True)
                children.stop()
                break
            for future in done:
                run = waiting.pop(future)
                outcomes[run.name] = outcome = future.result()
                said = outcome.error or f"{study.metric} {outcome.value:.4g}"
                click.echo(f"[{len(outcomes)}/{len(runs)}] {run.name}: {said}, {outcome.seconds:.0f} s")
                free = [other for other in blocked if other.source == run.folder]
                # The last checkpoint of a run that failed is not what the others are to start from.
                do = _do if not outcome.error else partial(_leave_out, run.name)
                waiting |= {pool.submit(do, study, other, children): other for other in free}
                blocked = [other for other in blocked if other not in free]
    if interruption.number is not None:
        name = signal.Signals(interruption.number).name
        raise StoppedError(
            f"Stopped by {name}; the same command with --resume and this --out goes on", interruption.number
        )
    return outcomes


def _shares(jobs: int) -> list[set[int]]:
    """Divide the cores among runs at the same time: a set for each; empty for a single run, or if cores are unknown."""
    if jobs == 1 or not hasattr(os, "sched_getaffinity"):
        return [set()] * jobs
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[i::jobs]) or {cores[i % len(cores)]} for i in range(jobs)]


def _take(shares: queue.Queue[set[int]]) -> None:
    """Bind this thread, and the processes that it starts, to the next share of the cores."""
    share = shares.get()
    if share:
        os.sched_setaffinity(0, share)


class _Children:
    """The running processes of `ict` commands; `stopped` is true once they have been told to end.

    They also end by themselves where this process is killed (cli/child.py).
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False

    def call(self, words: Sequence[str], log: Path) -> int:
        """Run an `ict` command, append its output to the file `log`, and return its exit code."""
        environment = dict(os.environ)
        if hasattr(os, "sched_getaffinity"):  # the cores of this thread
            environment.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        with open(log, "ab") as file:
            file.write(f"$ {shlex.join(['ict', *words])}\n".encode())
            file.flush()
            # In a session of its own: Ctrl-C at the terminal reaches only this process, which passes on one signal.
            # With -P, no file of the working folder is imported in place of a library.
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "ict_cli.child", *words],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            self._running.add(child)
            if self.stopped:
                child.terminate()
            code = child.wait()
            self._running.discard(child)
            if child.stdin is not None:
                child.stdin.close()
        return code

    def stop(self) -> None:
        """Tell all processes to write a checkpoint and end."""
        self.stopped = True
        for child in list(self._running):
            child.terminate()


def _do(study: Study, run: StudyRun, children: _Children) -> Outcome:
    """Train and measure a run, or do the rest of it; only an outcome without an error is saved in its folder."""
    from ict_backends.runs.folder import RunDir

    known = read_outcome(run.folder)
    if known is not None and study.is_measured(known):
        return known
    begin, log, resume = time.perf_counter(), run.file("log"), bool(RunDir(run.folder).checkpoints())
    if run.folder.exists() and not resume:  # it ended before its first checkpoint
        shutil.rmtree(run.folder)
    if not resume or (known is not None and known.steps != study.steps):
        run.file("npz").unlink(missing_ok=True)  # samples of weights that are gone, or in other steps
    start = ["--resume"] if resume else [] if run.source is None else [f"--init={run.source}"]
    train = [*study.train_words(run), f"--out={run.folder}", *start]
    shown = [study.sample_words(run)] if run.seed == 0 else []
    for words in (train, study.eval_words(run), *shown):
        code = children.call(words, log)
        if code or children.stopped:
            error = f"{_last_line(log)} (exit code {code}, see {log})"
            return Outcome(study.metric, study.num, None, time.perf_counter() - begin, error, study.steps)
    value = json.loads(run.file("json").read_text(encoding="utf-8"))[study.metric]
    outcome = Outcome(study.metric, study.num, value, time.perf_counter() - begin, steps=study.steps)
    write_outcome(run.folder, outcome)
    return outcome


def _leave_out(source: str, study: Study, run: StudyRun, children: _Children) -> Outcome:
    """The outcome of a run whose source, of this name, has failed."""
    return Outcome(study.metric, study.num, None, 0.0, f"not started, because {source} failed", study.steps)


def _last_line(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-1]


def _write_results(
    study: Study, runs: Sequence[StudyRun], outcomes: Mapping[str, Outcome], out: Path, about: Mapping[str, Any]
) -> list[Summary]:
    """Write the table, the pictures, and all results as JSON into `out`, and return a summary of each variant."""
    from ict_backends.files import write_atomically
    from ict_backends.reports.ablation import markdown, summarize, to_json
    from ict_backends.reports.figures import plot_ablation, plot_rows
    from ict_backends.reports.host import describe_machine, describe_versions

    plan, seeds = study.plan, sorted({run.seed for run in runs})
    summaries = summarize(plan, {v.name: [outcomes[r.name] for r in runs if r.variant is v] for v in plan.variants})
    facts: dict[str, Any] = {
        "metric": study.metric,
        "num": study.num,
        "steps": study.steps,
        "backend": study.backend,
        "seeds": seeds,
        "settings": study.asked,
    }
    facts |= {"machine": describe_machine(), "versions": describe_versions(), **about}
    plot_ablation(plan, summaries, study.metric, out / "figure.png")
    rows = {run.variant.name: _samples(run.file("npz")) for run in runs if run.seed == 0}
    plot_rows({name: images for name, images in rows.items() if images is not None}, out / "samples.png")
    write_atomically(out / "results.json", to_json(plan, summaries, facts).encode())
    page = markdown(plan, summaries, facts, ["figure.png", "samples.png"])
    write_atomically(out / "table.md", page.encode())
    return summaries


def _samples(file: Path) -> np.ndarray | None:
    """The samples in a file, [n, h, w, c] uint8; None if the run has failed."""
    return np.load(file)["arr_0"] if file.is_file() else None
