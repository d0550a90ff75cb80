"""Figures of `--plot` and of ablations: a configuration's method, a search for noise levels, variants' results."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from ict_backends.errors import UsageError
from ict_backends.files import write_atomically
from ict_backends.images import PICTURE_SOFTWARE
from ict_backends.measuring.metrics import METRICS
from ict_backends.reports.charts import number
from ict_backends.training.step_plan import levels_of, some_stages, stages_of
from ict_core import Config, Gap, Grid

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from ict_backends.reports.ablation import StudyPlan, Summary

_MOST_STAGES = 8


def plot_method(config: Config, path: Path) -> None:
    """Draw the noise levels, noise law, loss weights and curriculum of a configuration into a PNG.

    Raises:
        UsageError: matplotlib is not installed.
    """
    shown = some_stages(config, _MOST_STAGES)
    figure = _new_figure(11, 8)
    levels, law, weights, curriculum = figure.subplots(2, 2).flat
    for i, stage in enumerate(shown):
        drawn = levels_of(config, stage.first)
        style = {"color": (0.85 - 0.75 * i / len(shown), 0.3, 0.15 + 0.75 * i / len(shown)), "label": f"N = {stage.n}"}
        if isinstance(drawn, Grid):
            levels.plot(np.linspace(0, 1, stage.n), drawn.sigmas, ".-", markersize=3, linewidth=0.8, **style)
            middle = np.sqrt(drawn.sigmas[:-1] * drawn.sigmas[1:])
            law.step(middle, drawn.probabilities / np.diff(np.log(drawn.sigmas)), where="mid", **style)
            weights.plot(middle, drawn.weights, **style)
        else:
            _plot_gap(drawn, config, stage.n, levels, law, weights, style)
    if config.curriculum.has_grid:
        levels.set(title="Noise levels (EDM eq. 5)", xlabel="(i - 1) / (N - 1)", ylabel="sigma", yscale="log")
    else:
        levels.set(title="Gap to the teacher's level; dotted, a grid of N", xlabel="sigma", ylabel="sigma - r(sigma)")
        levels.set(xscale="log", yscale="log")
    law.set(title="Noise law", xlabel="sigma", ylabel="density of log sigma", xscale="log")
    weights.set(title=f"Loss weight, {config.loss.weighting}", xlabel="sigma", xscale="log", yscale="log")
    every = stages_of(config)
    steps = [s for stage in every for s in (stage.first, stage.last + 1)]
    curriculum.plot(steps, [stage.n for stage in every for _ in range(2)], color="black")
    curriculum.set(title="Curriculum", xlabel="training step", ylabel="N(k)", yscale="log")
    curriculum.locator_params(axis="x", nbins=5)
    curriculum.xaxis.set_major_formatter(lambda step, place: number(step))
    _label_few(curriculum.yaxis)
    levels.legend(fontsize="small")
    _save(figure, path)


def _plot_gap(drawn: Gap, config: Config, n: int, gaps: Axes, law: Axes, weights: Axes, style: dict[str, Any]) -> None:
    """Draw a stage of the gap rule: the gap over the level beside that of a grid of n levels, its law and weights."""
    normals = np.linspace(-3.5, 3.5, 400)
    found = drawn.levels(normals)
    gaps.plot(found.sigma_hi, found.sigma_hi - found.sigma_lo, **style)
    if n > 2:
        sigmas = config.noise.grid(n).sigmas
        gaps.plot(sigmas[1:], np.diff(sigmas), ":", color=style["color"])
    law.plot(found.sigma_hi, np.exp(-0.5 * normals**2) / (np.sqrt(2 * np.pi) * drawn.p_std), **style)
    weights.plot(found.sigma_hi, found.weight, **style)


def plot_search(curves: Sequence[Sequence[tuple[float, float]]], metric: str, path: Path) -> None:
    """Draw the metric over the noise levels that a search tried into a PNG.

    Args:
        curves: (level, metric) points, for each sampling step from the second on.

    Raises:
        UsageError: matplotlib is not installed.
    """
    figure = _new_figure(7, 4)
    axes = figure.subplots()
    for step, points in enumerate(curves, start=2):
        axes.plot(*zip(*sorted(points), strict=True), "o-", markersize=3, label=f"step {step}")
    axes.set(xscale="log", xlabel="noise level of the step", ylabel=metric)
    _label_few(axes.xaxis)
    axes.legend()
    _save(figure, path)


def check_matplotlib(what: str) -> None:
    """Raise UsageError if matplotlib is not installed; `what`, which begins the message, needs it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{what} needs matplotlib: pip install 'ict[plot]'")


def plot_ablation(plan: StudyPlan, summaries: Sequence[Summary], metric: str, path: Path) -> None:
    """Draw the results of each variant, a dot for each run and the mean with its spread, into a PNG.

    If the plan has an axis, the variants are placed along it: those that differ only in that setting are joined, and
    those that do not set it are horizontal lines. Otherwise each variant has a row.

    Raises:
        UsageError: matplotlib is not installed.
    """
    known = [summary for summary in summaries if summary.values]
    figure = _new_figure(7, 4 if plan.axis else 1 + 0.45 * len(summaries))
    axes = figure.subplots()
    if plan.axis:
        _along_axis(axes, plan.axis, known)
        axes.set(xlabel=plan.axis, ylabel=METRICS[metric].describe())
        if known:  # matplotlib warns of a legend of nothing
            axes.legend(fontsize="small")
    else:
        _in_rows(axes, plan, known)
        axes.set(xlabel=f"{METRICS[metric].describe()}; less is better")
        axes.margins(y=0.1)
    values = [value for summary in known for value in summary.values]
    if values and max(values) > 8 * min(values) > 0:
        axes.set(**{"yscale" if plan.axis else "xscale": "log"})
        _label_few(axes.yaxis if plan.axis else axes.xaxis)
    axes.set(title=plan.title)
    _save(figure, path)


def _along_axis(axes: Axes, axis: str, summaries: Sequence[Summary]) -> None:
    curves: dict[str, list[Summary]] = {}
    for summary in summaries:
        curves.setdefault(str(summary.variant.others(axis)), []).append(summary)
    for i, group in enumerate(curves.values()):
        color = f"C{i}"
        at = [(summary.variant.value(axis), summary) for summary in group if summary.variant.value(axis) is not None]
        if not at:
            (summary,) = group
            axes.axhline(summary.mean, color=color, label=summary.variant.name)
            if np.isfinite(summary.spread):
                axes.axhspan(summary.mean - summary.spread, summary.mean + summary.spread, color=color, alpha=0.15)
            continue
        at.sort(key=lambda pair: pair[0])
        x = [value for value, _ in at]
        errors = [0.0 if np.isnan(summary.spread) else summary.spread for _, summary in at]
        name = at[0][1].variant.name if len(at) == 1 else axis
        axes.errorbar(x, [f.mean for _, f in at], errors, fmt="o-", color=color, capsize=3, label=name)
        for value, summary in at:
            axes.plot([value] * len(summary.values), summary.values, ".", color=color, alpha=0.5, markersize=4)
        if min(x) > 0 and max(x) >= 8 * min(x):
            axes.set(xscale="log")
            _label_few(axes.xaxis)


def _in_rows(axes: Axes, plan: StudyPlan, summaries: Sequence[Summary]) -> None:
    for row, summary in enumerate(summaries):
        error = 0.0 if np.isnan(summary.spread) else summary.spread
        color = "black" if summary.variant.name == plan.reference else "C0"
        axes.errorbar(summary.mean, row, xerr=error, fmt="o", color=color, capsize=3)
        axes.plot(summary.values, [row] * len(summary.values), ".", color=color, alpha=0.5, markersize=4)
        axes.annotate(
            f"{summary.mean:.3g}",
            (summary.mean, row),
            color=color,
            textcoords="offset points",
            xytext=(0, 6),
            ha="center",
            fontsize="small",
            zorder=3,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )
        if summary.variant.name == plan.reference:
            axes.axvline(summary.mean, color=color, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(summaries)), [summary.variant.name for summary in summaries])
    axes.invert_yaxis()


def plot_rows(rows: Mapping[str, np.ndarray], path: Path) -> None:
    """Draw rows of images into a PNG: for each name a row, [n, h, w, c] uint8. Without rows, nothing is written."""
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
    """An empty figure, of a size in inches. Raises UsageError if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'ict[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _label_few(axis: Axis) -> None:
    """Label a logarithmic axis at 1, 2 and 5 of each decade, or at powers of ten, so that the labels stay apart."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axis.set_major_formatter(lambda value, place: number(value))
    axis.set_minor_formatter(NullFormatter())


def _save(figure: Figure, path: Path) -> None:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100, metadata={"Software": PICTURE_SOFTWARE})
    write_atomically(path, stream.getvalue())
