"""Quality over the length of the average, of one run: python bench/ema_length.py RUN 0.02 0.05 0.1 [--out FILE.png].

Lengths that RUN has kept (train.ema_sigma_rel) are taken as they are, others are made of these as `ict ema` does, in a
folder that is removed afterwards. Each is measured by `ict eval`, and so are the weights of the last step ("raw") and
the average by train.ema_decay ("ema"). Prints the table of docs/checkpoints.md and draws its figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from matplotlib.figure import Figure

from ict_backends.exchange.averages import find_mixture, make_average
from ict_backends.runs.folder import RunDir, open_run


class Point(NamedTuple):
    """One kind of weights: what it is in the table, its misfit (None where it was kept), and its distance by steps."""

    name: str
    misfit: float | None
    distance: Mapping[int, float]


@click.command()
@click.argument("run")
@click.argument("lengths", nargs=-1, type=float, required=True)
@click.option("--num", default=2000, show_default=True, help="Samples to measure.")
@click.option("--steps", multiple=True, type=int, default=(1, 2), show_default=True, help="Steps of sampling.")
@click.option("--out", default="docs/img/ema-length.png", show_default=True, help="PNG to write.")
def main(run: str, lengths: tuple[float, ...], num: int, steps: tuple[int, ...], out: str) -> None:
    """Measure a run's averages of these lengths."""
    place = open_run(run)
    points = [_measure(place, length, num, steps) for length in sorted(lengths)]
    others = [Point(name, None, _distances(run, name, num, steps)) for name in ("ema", "raw")]
    click.echo("| weights | misfit |" + "".join(f" {s} step{'s' * (s > 1)} |" for s in steps))
    click.echo("|---|---|" + "---|" * len(steps))
    for point in [*points, *others]:
        misfit = "" if point.name in ("ema", "raw") else "kept" if point.misfit is None else f"{point.misfit:.2g}"
        click.echo(f"| {point.name} | {misfit} |" + "".join(f" {point.distance[s]:.3f} |" for s in steps))
    _plot(points, others, steps, Path(out))


def _measure(run: RunDir, length: float, num: int, steps: Sequence[int]) -> Point:
    config = run.load_config()
    if length in config.train.ema_sigma_rel:
        where = f"{run.path}@{run.chosen.name[5:]}" if run.chosen else str(run.path)
        return Point(f"{length:g}", None, _distances(where, str(length), num, steps))
    mixture = find_mixture(run, config, length)
    with tempfile.TemporaryDirectory() as folder:
        made = make_average(run, config, mixture, Path(folder) / "made")
        return Point(f"{length:g}", mixture.misfit, _distances(str(made.path), "ema", num, steps))


def _distances(run: str, weights: str, num: int, steps: Sequence[int]) -> dict[int, float]:
    """The Frechet distance of pixels, `ict eval`'s, by the steps of sampling."""
    found = {}
    for count in steps:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "it.json"
            command = [sys.executable, "-m", "ict_cli", "eval", run, "--weights", weights, "--device=cpu"]
            command += ["--num", str(num), "--steps", str(count), "--no-halves", "--json", str(file)]
            subprocess.run(command, check=True, capture_output=True)
            found[count] = float(json.loads(file.read_text())["pixel-fd"])
    return found


def _plot(points: Sequence[Point], others: Sequence[Point], steps: Sequence[int], path: Path) -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for count, color in zip(steps, ("tab:blue", "tab:orange", "tab:green"), strict=False):
        x, y = [float(p.name) for p in points], [p.distance[count] for p in points]
        axes.plot(x, y, "-", color=color, label=f"{count} step{'s' * (count > 1)}")
        for kept, marker in ((True, "o"), (False, "x")):
            some = [(a, b) for a, b, p in zip(x, y, points, strict=True) if (p.misfit is None) == kept]
            axes.plot(*zip(*some, strict=True), marker, color=color) if some else None
        for point, style in zip(others, ("--", ":"), strict=True):
            axes.axhline(point.distance[count], color=color, linestyle=style, linewidth=1)
    axes.plot([], [], "o", color="grey", label="kept while training")
    axes.plot([], [], "x", color="grey", label="made afterwards")
    axes.plot([], [], "--", color="grey", label="ema (train.ema_decay)")
    axes.plot([], [], ":", color="grey", label="raw (the last step)")
    axes.set(xscale="log", xlabel="length of the average, sigma_rel", ylabel="Frechet distance of pixels")
    axes.set_xticks([float(p.name) for p in points], [p.name for p in points])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
