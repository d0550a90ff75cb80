"""The pictures of `--plot`: what a configuration's method is, and what a search for levels tried."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ict_backends.errors import UsageError
from ict_backends.files import write_atomically

from ict_core import Config, make_grid, stages

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_method(config: Config, path: Path) -> None:
    """Draw into a PNG. Raises UsageError where matplotlib is not installed."""
    noise = config.noise
    found = stages(config.train.total_steps, s0=config.curriculum.s0, s1=config.curriculum.s1)
    figure = _new_figure(11, 8)
    levels, law, weights, curriculum = figure.subplots(2, 2).flat
    for i, stage in enumerate(found):
        grid = make_grid(
            stage.n,
            sigma_min=noise.sigma_min,
            sigma_max=noise.sigma_max,
            rho=noise.rho,
            p_mean=noise.noise_mean,
            p_std=noise.noise_std,
        )
        style = {"color": (0.85 - 0.75 * i / len(found), 0.3, 0.15 + 0.75 * i / len(found)), "label": f"N = {stage.n}"}
        middle = np.sqrt(grid.sigmas[:-1] * grid.sigmas[1:])
        levels.plot(np.linspace(0, 1, stage.n), grid.sigmas, ".-", markersize=3, linewidth=0.8, **style)
        law.step(middle, grid.probabilities / np.diff(np.log(grid.sigmas)), where="mid", **style)
        weights.plot(middle, grid.weights, **style)
    levels.set(title="Noise levels (EDM eq. 5)", xlabel="(i - 1) / (N - 1)", ylabel="sigma", yscale="log")
    law.set(title="Noise law", xlabel="sigma", ylabel="density of log sigma", xscale="log")
    weights.set(title="Loss weight 1 / (sigma_hi - sigma_lo)", xlabel="sigma", xscale="log", yscale="log")
    steps = [s for stage in found for s in (stage.first, stage.last + 1)]
    curriculum.plot(steps, [stage.n for stage in found for _ in range(2)], color="black")
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
