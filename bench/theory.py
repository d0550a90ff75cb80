"""The figures and the table of docs/theory.md: python bench/theory.py [--backend torch --backend jax] [--out docs/img].

The first figure is the one-dimensional example of the EMA teacher (`ema_teacher.py`), the second is a mixture in the
plane (`mixture.py`) that each backend learns, in a folder that is removed afterwards.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import ema_teacher
import mixture
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ict_backends import load_backend
from ict_core import Config

XI, THETA, GAP = 0.0, 0.5, 0.1
SIZES = [10 * 2**k + 1 for k in range(12)]
LEVELS = np.geomspace(mixture.SIGMA_MIN, mixture.SIGMA_MAX, 10)[1:]
POINTS = 1000
COLORS = {"torch": "tab:red", "jax": "tab:blue"}
TRIVIAL = {
    "posterior mean D": {"marker": "s", "color": "grey", "linestyle": ":"},
    "f(x) = x": {"marker": "x", "color": "grey", "linestyle": "--"},
}
# Points drawn of those that the errors are means of.
DRAWN = 500
# What it is -> theta_bar. An average lags: where theta falls towards xi, it is above.
TEACHERS = {
    "the student itself (no EMA)": (THETA, "tab:green", "o-"),
    f"an average above, theta + {GAP}": (THETA + GAP, "tab:red", "^-"),
    f"an average below, theta - {GAP}": (THETA - GAP, "tab:blue", "v-"),
}


def plot_example(path: Path) -> None:
    """Draw loss and scaled gradient of the one-dimensional example over N."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    loss, gradient = figure.subplots(1, 2)
    for label, (theta_bar, color, style) in TEACHERS.items():
        found = [ema_teacher.example(n, XI, THETA, theta_bar) for n in SIZES]
        loss.plot(SIZES, [o.loss for o in found], style, color=color, label=label, markersize=4)
        gradient.plot(SIZES, [o.scaled_gradient for o in found], style, color=color, label=label, markersize=4)
    dotted = {"color": "black", "linestyle": ":", "linewidth": 1}
    loss.axhline(ema_teacher.loss_limit(THETA, THETA + GAP), label="limit with an EMA: does not know xi", **dotted)
    limit = gradient.axhline(ema_teacher.gradient_limit(XI, THETA), label="limit without, ~ theta - xi", **dotted)
    # Linear between -0.1 and 0.1, so that both signs are seen.
    gradient.set_yscale("symlog", linthresh=0.1)
    loss.set(xscale="log", yscale="log", xlabel="N", title="Loss, lambda = 1")
    gradient.set(xscale="log", xlabel="N", title=f"Scaled gradient at theta = {THETA}, data xi = {XI:g}")
    for axes in (loss, gradient):
        axes.grid(alpha=0.3)
    loss.legend(fontsize="small", title="teacher (in both pictures)", loc="lower left")
    gradient.legend(handles=[limit], fontsize="small", loc="upper left")
    figure.savefig(path, dpi=100)


def learn(name: str, config: Config, x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Train with a backend, print the time that it took, compilation included, and map points, [n, 2], by the model."""
    engine = load_backend(name)
    engine.tune_process("auto")
    with tempfile.TemporaryDirectory(prefix="ict-theory-") as folder:
        path, wall, cpu = Path(folder) / "run", time.perf_counter(), time.process_time()
        mixture.train(engine, config, path)
        click.echo(f"{name}: {time.perf_counter() - wall:.0f} s, {time.process_time() - cpu:.0f} s of CPU time")
        return mixture.learnt_consistency(engine.load_model(path), x, sigma)


def plot_maps(axes: Sequence[Axes], images: Mapping[str, np.ndarray], angle: np.ndarray, sigma: float) -> None:
    """Draw images of the same n points, [n, 2], under several maps; `angle`, [n], gives the colour of each point."""
    for panel, (title, points) in zip(axes, images.items(), strict=True):
        panel.scatter(*points.T, c=angle, cmap="hsv", s=4)
        panel.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), aspect="equal", title=f"{title}, sigma = {sigma:.3g}")


def plot_errors(axes: Axes, errors: Mapping[str, np.ndarray]) -> None:
    """Draw the mean errors over the noise levels."""
    styles = {name: {"marker": "o", "color": color} for name, color in COLORS.items()} | TRIVIAL
    for name, values in errors.items():
        axes.plot(LEVELS, values, markersize=4, label=name, **styles[name])
    axes.set(xscale="log", yscale="log", xlabel="sigma", title="Mean distance from the exact map")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def plot_mixture(path: Path, images: Mapping[str, np.ndarray], errors: Mapping[str, np.ndarray], x: np.ndarray) -> None:
    """Draw the maps at the highest and at a middle level, and the errors at all levels, into a PNG."""
    columns = len(images)
    figure = Figure(figsize=(4 * columns, 11), layout="constrained")
    grid = figure.add_gridspec(3, columns, height_ratios=(4, 4, 3.2))
    angle = np.arctan2(x[:, 1], x[:, 0])
    for row, level in enumerate((len(LEVELS) - 1, 3)):
        here = slice(level * POINTS, level * POINTS + DRAWN)
        panels = [figure.add_subplot(grid[row, i]) for i in range(columns)]
        plot_maps(panels, {name: points[here] for name, points in images.items()}, angle[here], LEVELS[level])
    plot_errors(figure.add_subplot(grid[2, :]), errors)
    figure.savefig(path, dpi=80)


def print_table(errors: Mapping[str, np.ndarray]) -> None:
    """Print the errors as a table in Markdown."""
    click.echo("| sigma | " + " | ".join(f"{s:.3g}" for s in LEVELS) + " |")
    click.echo("|" + "---|" * (len(LEVELS) + 1))
    for name, values in errors.items():
        click.echo(f"| {name} | " + " | ".join(f"{v:.2g}" if v < 1 else f"{v:.1f}" for v in values) + " |")


@click.command()
@click.option("--backend", "backends", type=click.Choice(list(COLORS)), multiple=True, default=list(COLORS))
@click.option("--out", type=click.Path(path_type=Path), default=Path("docs/img"), show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=mixture.make_config().train.total_steps, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--huber-factor", type=float, default=mixture.make_config().loss.huber_factor, show_default=True)
def main(backends: Sequence[str], out: Path, steps: int, seed: int, huber_factor: float) -> None:
    """Write theory-1d.png and theory-2d.png, and print the mean errors by level."""
    out.mkdir(parents=True, exist_ok=True)
    plot_example(out / "theory-1d.png")
    config = mixture.make_config(train={"total_steps": steps, "seed": seed}, loss={"huber_factor": huber_factor})
    x, sigma = mixture.noisy_points(LEVELS, POINTS)
    images = {"exact": mixture.exact_consistency(mixture.MIXTURE, x, sigma)}
    images |= {name: learn(name, config, x, sigma) for name in dict.fromkeys(backends)}
    trivial = {"posterior mean D": mixture.posterior_mean(mixture.MIXTURE, x, sigma), "f(x) = x": x}
    maps = {name: points for name, points in images.items() if name != "exact"} | trivial
    errors = {name: mixture.mean_errors(points, images["exact"], len(LEVELS)) for name, points in maps.items()}
    print_table(errors)
    plot_mixture(out / "theory-2d.png", images, errors, x)


if __name__ == "__main__":
    main()
