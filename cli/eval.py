"""`ict eval`."""

from __future__ import annotations

from pathlib import Path

import click
from ict_cli.options import (
    backend_option,
    batch_option,
    debug_option,
    device_option,
    resolve_labels,
    resolve_sigmas,
    seed_option,
    steps_options,
    weights_option,
)


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", help="The images to compare with.  [default: those the run was trained on]")
@backend_option
@click.option("--num", type=click.IntRange(min=2), default=2000, show_default=True, help="How many samples.")
@steps_options
@seed_option
@weights_option
@batch_option
@device_option
@debug_option
def eval_command(
    run: Path,
    data: str | None,
    backend: str,
    num: int,
    steps: int | None,
    sigmas: str | None,
    seed: int,
    weights: str,
    batch_size: int,
    device: str,
) -> None:
    """Measure how far a model's images are from the data.

    Prints the Frechet distance in pixel space, of samples clipped to [-1, 1] and images scaled to [-1, 1], and
    beside it the distances between random halves of the data, which no model can be expected to beat by much.
    """
    from ict_backends import load_backend
    from ict_backends.data import load_data
    from ict_backends.errors import DataError
    from ict_backends.images import to_float
    from ict_backends.metrics import frechet_distance, halves_distances
    from ict_backends.rundir import RunDir
    from ict_backends.sampling import sample_images

    config = RunDir(run).load_config()
    levels = resolve_sigmas(config, steps, sigmas)
    dataset = load_data(data or config.data.source)
    if dataset.shape != config.data.shape:
        raise DataError(f"data has images of {list(dataset.shape)}, but the run's are {list(config.data.shape)}")
    if len(dataset.images) < 4:
        raise DataError(f"data has {len(dataset.images)} images; a covariance of each half needs 4 at least")
    model = load_backend(backend).load_model(run, weights=weights, device=device)
    labels = resolve_labels(config, None, num)
    samples = sample_images(model, num, sigmas=levels, seed=seed, labels=labels, batch=batch_size)
    reference = to_float(dataset.images).reshape(len(dataset.images), -1)
    distance = frechet_distance(samples.reshape(num, -1), reference)
    halves = halves_distances(reference)
    kind = "one-step" if len(levels) == 1 else f"{len(levels)}-step"
    click.echo(f"Frechet distance in pixel space, {num} {kind} samples against {len(reference)} images: {distance:.3f}")
    click.echo(f"  between two random halves of the data: {min(halves):.2f} to {max(halves):.2f}")
