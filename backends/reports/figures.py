"""The pictures of `--plot` and of ablations: what a configuration's method is, what a search for levels tried, and what
variants gave."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from einops import rearrange

from ict_backends.errors import UsageError
from ict_backends.files import write_atomically
from ict_backends.measuring.metrics import METRICS
from ict_backends.training.step_plan import grid_of, some_stages, stages_of
from ict_core import Config

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ict_backends.reports.ablation import StudyPlan, Summary

_MOST_STAGES = 8


def plot_method(config: Config, path: Path) -> None:
    """Draw into a PNG. Raises UsageError where matplotlib is not installed."""
    found = some_stages(config, _MOST_STAGES)
    figure = _new_figure(11, 8)
    levels, law, weights, curriculum = figure.subplots(2, 2).flat
    for i, stage in enumerate(found):
        grid = grid_of(config, stage.n)
        style = {"color": (0.85 - 0.75 * i / len(found), 0.3, 0.15 + 0.75 * i / len(found)), "label": f"N = {stage.n}"}
        middle = np.sqrt(grid.sigmas[:-1] * grid.sigmas[1:])
        levels.plot(np.linspace(0, 1, stage.n), grid.sigmas, ".-", markersize=3, linewidth=0.8, **style)
        law.step(middle, grid.probabilities / np.diff(np.log(grid.sigmas)), where="mid", **style)
        weights.plot(middle, grid.weights, **style)
    levels.set(title="Noise levels (EDM eq. 5)", xlabel="(i - 1) / (N - 1)", ylabel="sigma", yscale="log")
    law.set(title="Noise law", xlabel="sigma", ylabel="density of log sigma", xscale="log")
    weights.set(title=f"Loss weight, {config.loss.weighting}", xlabel="sigma", xscale="log", yscale="log")
    every = stages_of(config)
    steps = [s for stage in every for s in (stage.first, stage.last + 1)]
    curriculum.plot(steps, [stage.n for stage in every for _ in range(2)], color="black")
    curriculum.set(title="Curriculum", xlabel="training step", ylabel="N(k)", yscale="log")
    levels.legend(fontsize="small")
    _save(figure, path)


def plot_search(curves: Sequence[Sequence[tuple[float, float]]], metric: str, path: Path) -> None:
    """Draw (level, metric) points, a curve a step from the second on, into a PNG.

    Raises UsageError where matplotlib is not installed.
    """
    figure = _new_figure(7, 4)
    axes = figure.subplots()
    for step, points in enumerate(curves, start=2):
        axes.plot(*zip(*sorted(points), strict=True), "o-", markersize=3, label=f"step {step}")
    axes.set(xscale="log", xlabel="noise level of the step", ylabel=metric)
    axes.legend()
    _save(figure, path)


def check_matplotlib(what: str) -> None:
    """Raise UsageError, naming what needs it, where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{what} needs matplotlib: pip install 'ict[plot]'")


def plot_ablation(plan: StudyPlan, summaries: Sequence[Summary], metric: str, path: Path) -> None:
    """Draw what each variant gave, a dot a run and the mean with its spread, into a PNG.

    Along the plan's axis where it has one: variants that differ in that setting alone are joined, and those that do not
    set it are lines across. Otherwise a row a variant.
    """
    known = [found for found in summaries if found.values]
    figure = _new_figure(7, 4 if plan.axis else 1 + 0.45 * len(summaries))
    axes = figure.subplots()
    if plan.axis:
        _along_axis(axes, plan.axis, known)
        axes.set(xlabel=plan.axis, ylabel=METRICS[metric].describe())
        axes.legend(fontsize="small")
    else:
        _in_rows(axes, plan, known)
        axes.set(xlabel=f"{METRICS[metric].describe()}; less is better")
        axes.margins(y=0.1)
    values = [value for found in known for value in found.values]
    if values and max(values) > 8 * min(values) > 0:
        axes.set(**{"yscale" if plan.axis else "xscale": "log"})
    axes.set(title=plan.title)
    _save(figure, path)


def _along_axis(axes: Axes, axis: str, summaries: Sequence[Summary]) -> None:
    curves: dict[str, list[Summary]] = {}
    for found in summaries:
        curves.setdefault(str(found.variant.others(axis)), []).append(found)
    for i, group in enumerate(curves.values()):
        color = f"C{i}"
        at = [(found.variant.value(axis), found) for found in group if found.variant.value(axis) is not None]
        if not at:
            (found,) = group
            axes.axhline(found.mean, color=color, label=found.variant.name)
            if np.isfinite(found.spread):
                axes.axhspan(found.mean - found.spread, found.mean + found.spread, color=color, alpha=0.15)
            continue
        at.sort(key=lambda pair: pair[0])
        x = [value for value, _ in at]
        errors = [0.0 if np.isnan(found.spread) else found.spread for _, found in at]
        name = at[0][1].variant.name if len(at) == 1 else axis
        axes.errorbar(x, [f.mean for _, f in at], errors, fmt="o-", color=color, capsize=3, label=name)
        for value, found in at:
            axes.plot([value] * len(found.values), found.values, ".", color=color, alpha=0.5, markersize=4)
        if min(x) > 0 and max(x) >= 8 * min(x):
            axes.set(xscale="log")


def _in_rows(axes: Axes, plan: StudyPlan, summaries: Sequence[Summary]) -> None:
    for row, found in enumerate(summaries):
        error = 0.0 if np.isnan(found.spread) else found.spread
        color = "black" if found.variant.name == plan.reference else "C0"
        axes.errorbar(found.mean, row, xerr=error, fmt="o", color=color, capsize=3)
        axes.plot(found.values, [row] * len(found.values), ".", color=color, alpha=0.5, markersize=4)
        axes.annotate(
            f"{found.mean:.3g}",
            (found.mean, row),
            color=color,
            textcoords="offset points",
            xytext=(0, 6),
            ha="center",
            fontsize="small",
            zorder=3,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
        if found.variant.name == plan.reference:
            axes.axvline(found.mean, color=color, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(summaries)), [found.variant.name for found in summaries])
    axes.invert_yaxis()


def plot_rows(rows: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw a row of images, [n, h, w, c] uint8, under each name into a PNG."""
    if not rows:
        return
    stacked = np.stack([np.pad(a, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=255) for a in rows.values()])
    picture = rearrange(stacked, "r n h w c -> (r h) (n w) c")
    height = stacked.shape[2]
    figure = _new_figure(2.2 + 0.55 * stacked.shape[1], 0.2 + 0.55 * len(rows))
    axes = figure.subplots()
    axes.imshow(
        picture[:, :, 0] if picture.shape[2] == 1 else picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest"
    )
    axes.set_yticks([(row + 0.5) * height for row in range(len(rows))], list(rows))
    axes.set(xticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _save(figure, path)


def _new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. Raises UsageError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'ict[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    write_atomically(path, stream.getvalue())
