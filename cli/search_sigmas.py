"""`ict search-sigmas`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from ict_backends.console import say
from ict_backends.errors import UsageError
from ict_cli.options import (
    PATH,
    SOURCE,
    backend_option,
    batch_option,
    check_replaceable,
    debug_option,
    device_option,
    examples,
    guidance_option,
    labels_option,
    open_backend,
    released_options,
    seed_option,
    weights_option,
)
from ict_core import Config, DataConfig

if TYPE_CHECKING:
    from ict_backends.measuring.reference import Reference, Samples
    from ict_backends.protocols import FeatureNetwork
    from ict_backends.sampling.search_sigmas import Point, Step


@click.command(
    "search-sigmas",
    epilog=examples(
        "ict search-sigmas runs/mine",
        "ict search-sigmas runs/mine --steps 3 --plot levels.png",
    ),
)
@click.argument("run", type=PATH)
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=2,
    show_default=True,
    help="Sampling steps to find levels for, up to this number.",
)
@click.option(
    "--metric", help="Metric to minimise: pixel-fd, fid, kid or sw.  [default: pixel-fd; fid with --features]"
)
@click.option("--features", type=SOURCE, help="Network for fid and kid, as in `ict eval`.")
@click.option("--trust-features", is_flag=True, help="Run any --features file, as in `ict eval`.")
@click.option("--data", type=SOURCE, help="Images to compare with.  [default: those the run was trained on]")
@click.option(
    "--num",
    type=click.IntRange(min=2),
    help="Samples to draw for each level.  [default: 2000, or more if the metric needs them]",
)
@click.option("--plot", type=PATH, help="Draw the metric over the levels into this PNG.")
@labels_option
@guidance_option
@released_options
@seed_option
@weights_option
@backend_option
@batch_option
@device_option
@debug_option
def search_sigmas_command(
    run: Path,
    steps: int,
    metric: str | None,
    features: str | None,
    trust_features: bool,
    data: str | None,
    num: int | None,
    plot: Path | None,
    labels: str | None,
    guidance: float,
    clip_steps: bool,
    truncate: bool,
    seed: int,
    weights: str,
    backend: str,
    batch_size: int,
    device: str,
) -> None:
    """Find good noise levels for sampling in several steps, and save them in the run's folder.

    The second level is found first, then the third with the second kept, and so on, each by ternary search. From then
    on, `ict sample --steps N` and `ict eval --steps N` use these levels.
    """
    from ict_backends.measuring.comparison import check_reference, labels_to_compare
    from ict_backends.measuring.evaluation import read_metrics
    from ict_backends.measuring.inception import feature_network
    from ict_backends.measuring.reference import data_of, samples_of_model
    from ict_backends.runs.folder import open_run
    from ict_backends.sampling.choices import check_guidance, resolve_solver
    from ict_backends.sampling.search_sigmas import save_search, search_sigmas

    place = open_run(run)
    config = place.load_config()
    check_guidance(config, guidance)
    resolve_solver(config, "multistep")  # warns of a diffusion model
    if plot is not None:
        if plot.suffix.lower() != ".png":
            raise UsageError(f"--plot {plot} must end in .png")
        check_replaceable("--plot", plot)
    network = feature_network(features, device, trust=trust_features)
    name = metric or ("fid" if network else "pixel-fd")
    samples = samples_of_model(config, num, read_metrics(name, network), network)
    reference = _read_reference(name, network, data_of(config, data), samples, config)
    if data is None:
        check_reference(place, config, reference)
    num, measure = samples.num, _measure(name, network, reference)
    model = open_backend(backend, device).load_model(run, weights=weights, device=device)
    _, classes = labels_to_compare(place, config, reference, labels, num, seed=seed)

    def show(step: int, point: Point) -> None:
        click.echo(f"step {step}: sigma {point.sigma:<10.4g} {name} {point.value:.5g}")

    best = search_sigmas(
        model,
        steps,
        measure,
        num=num,
        seed=seed,
        labels=classes,
        batch=batch_size,
        clip_steps=clip_steps,
        truncate=truncate,
        guidance=guidance,
        on_point=show,
    )
    if place.sigmas_file.exists():
        say(f"{place.sigmas_file} was there already, and is replaced")
    save_search(place, best, metric=name, num=num, weights=weights, guidance=guidance)
    for i, step in enumerate(best, start=1):
        levels = ",".join(f"{s.sigma:.4g}" for s in best[:i])
        click.echo(f"{i} step{'s' * (i > 1)}: --sigmas {levels}   {name} {step.value:.5g}")
    if not config.curriculum.has_teacher:
        say("`ict sample` and `ict eval` use these levels of a diffusion model with --solver multistep only")
    if plot is not None:
        _plot(best, name, plot)
        click.echo(f"plot: {plot}")


def _read_reference(
    name: str, network: FeatureNetwork | None, data: DataConfig, samples: Samples, config: Config
) -> Reference:
    """The data to compare with, which fit the metric with this name and the model's images."""
    from ict_backends.measuring.evaluation import read_metrics
    from ict_backends.measuring.metrics import METRICS
    from ict_backends.measuring.reference import check_shape, check_sizes, read_reference

    if name in METRICS and not METRICS[name].is_distance:
        raise UsageError(f"--metric {name} is no distance; take pixel-fd, fid, kid or sw")
    names = read_metrics(name, network)
    if len(names) != 1:
        raise UsageError(f"--metric {name} must be one of pixel-fd, fid, kid, sw")
    reference = read_reference(data, names)
    check_shape(config, reference.shape)
    check_sizes(names, samples, reference, network)
    return reference


def _measure(name: str, network: FeatureNetwork | None, reference: Reference) -> Callable[[np.ndarray], float]:
    """A function that returns the metric of images, [n, c, h, w] uint8, against the reference."""
    from ict_backends.measuring.evaluation import compare, gather, in_batches

    gathered = reference.gather([name], network)
    return lambda images: compare([name], gather(in_batches(images), [name], network), gathered)[0].value


def _plot(steps: Sequence[Step], name: str, path: Path) -> None:
    from ict_backends.reports.figures import plot_search

    plot_search([[(p.sigma, p.value) for p in step.tried] for step in steps[1:]], name, path)
