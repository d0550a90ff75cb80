"""`ict eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from ict_backends.errors import DataError, UsageError
from ict_cli.options import (
    PATH,
    SOURCE,
    backend_option,
    batch_option,
    check_reference,
    check_replaceable,
    debug_option,
    device_option,
    examples,
    labels_option,
    labels_to_compare,
    open_backend,
    released_options,
    resolve_sigmas,
    seed_option,
    steps_options,
    weights_option,
)
from ict_core import Config

if TYPE_CHECKING:
    from ict_backends.measuring.metrics import Result
    from ict_backends.measuring.reference import Reference, Samples
    from ict_backends.protocols import FeatureNetwork


@click.command(
    "eval",
    epilog=examples(
        "ict eval runs/mine",
        "ict eval runs/mine --features inception-2015-12-05 --num 50000 --json fid.json",
    ),
)
@click.argument("what", metavar="RUN|FOLDER|NPZ", type=PATH)
@click.option(
    "--data",
    type=SOURCE,
    help="Images to compare with, or an .npz of mu and sigma.  [default: the run's training images]",
)
@click.option(
    "--metrics",
    help="Some of fid, kid, is, pr, pixel-fd, sw, such as fid,kid.  [default: pixel-fd; fid,kid,pr with --features]",
)
@click.option(
    "--features",
    type=SOURCE,
    help="Network for fid, kid, is, pr: a TorchScript or .pt2 file, or inception-2015-12-05, which is downloaded "
    "once.  [default: none; kid and pr use pixels]",
)
@click.option(
    "--trust-features",
    is_flag=True,
    help="Run a --features file that is not the known Inception network: such files are programs.",
)
@click.option(
    "--num",
    type=click.IntRange(min=2),
    help="Images to measure; published figures use 50,000. Of a folder or file, a random subset, always the same.  "
    "[default: 2000 of a run, or more if a metric needs them; all of a folder or file]",
)
@click.option(
    "--resize",
    is_flag=True,
    help="Fit images of other sizes or colours: the data's to the model's; those of a folder or file to the data's.",
)
@click.option(
    "--halves/--no-halves",
    default=True,
    show_default=True,
    help="With pixel-fd, print what a perfect model would show, from random halves of the data: minutes for thousands "
    "of pixels.",
)
@click.option("--json", "json_file", type=PATH, help="Also write the figures into this file.")
@labels_option
@steps_options
@released_options
@seed_option
@weights_option
@backend_option
@batch_option
@device_option
@debug_option
def eval_command(
    what: Path,
    data: str | None,
    metrics: str | None,
    features: str | None,
    trust_features: bool,
    num: int | None,
    resize: bool,
    halves: bool,
    json_file: Path | None,
    labels: str | None,
    steps: int | None,
    sigmas: str | None,
    clip_steps: bool,
    truncate: bool,
    seed: int,
    weights: str,
    backend: str,
    batch_size: int,
    device: str,
) -> None:
    """Measure how far images are from the data: those of a model, a folder or an .npz file.

    Images are rounded to uint8 first, as in files. Without --features, kid and pr compare pixels. pixel-fd is the
    Frechet distance in pixel space, of values in [-1, 1]; below it is what a perfect model with as many samples would
    show, since a distance of finite sets is never 0.
    """
    from ict_backends.console import progress_bar
    from ict_backends.images import to_uint8
    from ict_backends.measuring.evaluation import compare, gather, read_metrics
    from ict_backends.measuring.inception import feature_network
    from ict_backends.measuring.reference import check_sizes, data_of, read_reference
    from ict_backends.runs.folder import open_run
    from ict_backends.sampling.batches import sample_batches

    if json_file is not None:
        check_replaceable("--json", json_file)
    run = open_run(what)
    config = run.load_config() if run.config_file.is_file() else None
    levels = resolve_sigmas(config, steps, sigmas, run=what) if config else None
    _check_source(what, config, data)
    network = feature_network(features, device, trust=trust_features)
    names = read_metrics(metrics, network)
    shape = config.data.shape if config and resize else None
    reference = read_reference(data_of(config, data), names, shape=shape)
    if config is not None and data is None:
        check_reference(run, config, reference)
    samples = _find_samples(what, num, config, reference, names, network, resize=resize)
    check_sizes(names, samples, reference, network)
    batches, kind, record = samples.batches, "images", dict[str, object]()
    if config is not None and levels is not None:
        chosen, classes = labels_to_compare(run, config, reference, labels, samples.num, seed=seed)
        kind = _kind(levels) + ("" if classes is None else f" of {_CLASSES.get(chosen, f'classes {chosen}')}")
        record = {"clip_steps": clip_steps, "truncate": truncate, "labels": None if classes is None else chosen}
        model = open_backend(backend, device).load_model(what, weights=weights, device=device)
        drawn = sample_batches(
            model,
            range(samples.num),
            sigmas=levels,
            seed=seed,
            labels=classes,
            batch=batch_size,
            clip_steps=clip_steps,
        )
        batches = (to_uint8(images, truncate=truncate) for images in drawn)
    assert batches is not None
    with progress_bar(samples.num, unit="image", leave=False) as bar:
        gathered = gather(batches, names, network, on_batch=bar.update)
    results = compare(names, gathered, reference.gather(names, network))
    for result in results:
        click.echo(_line(result, samples.num, kind, reference, network))
        record |= result.figures()
        if halves and result.metric.name == "pixel-fd" and reference.images is not None:
            record["pixel-fd_perfect"] = perfect = _perfect(reference.images, samples.num)
            click.echo(f"  a perfect model would show about {perfect:.2g} with as many samples")
    if json_file is not None:
        _write_json(json_file, record, samples.num, reference.num, levels, network)


# The values of --labels in words; None is the default for data whose classes are not known.
_CLASSES = {"data": "classes in the data's proportions", "balanced": "all classes in turn", None: "all classes in turn"}


def _kind(levels: Sequence[float]) -> str:
    return "one-step samples" if len(levels) == 1 else f"{len(levels)}-step samples"


def _line(result: Result, count: int, kind: str, reference: Reference, network: FeatureNetwork | None) -> str:
    features = "pixels" if network is None else f"features of {network.name}"
    against = "" if result.metric.of_samples_only else f" against {reference.describe(result.metric)}"
    if result.recall is not None:  # the amount names the metric
        return f"{result.amount()}, of the {features} of {count} {kind}{against}"
    return f"{result.metric.describe(features)}, {count} {kind}{against}: {result.amount()}"


# Options that only say how a model draws its samples.
_OF_RUNS = ("labels", "steps", "sigmas", "clip_steps", "truncate", "seed", "weights", "backend", "batch_size")


def _check_source(what: Path, config: Config | None, data: str | None) -> None:
    """Raise unless `what` exists and fits the other options. DataError or UsageError say what is wrong."""
    if config is not None:
        return
    if not what.exists():
        raise DataError(f"{what} does not exist; give a run, a folder of images or an .npz file")
    if data is None:
        raise UsageError(f"{what} is no run: say by --data what to compare with")
    context = click.get_current_context()
    for name in _OF_RUNS:
        if context.get_parameter_source(name) != click.core.ParameterSource.DEFAULT:
            option = name.replace("_", "-")
            raise UsageError(f"{what} is no run: --{option} is of samples that a model draws")


def _find_samples(
    what: Path,
    num: int | None,
    config: Config | None,
    reference: Reference,
    names: Sequence[str],
    network: FeatureNetwork | None,
    *,
    resize: bool,
) -> Samples:
    """The images to measure: the samples that a model is to draw, or the images of a folder or file."""
    from ict_backends.measuring.reference import check_shape, find_samples, samples_of_model

    if config is None:
        return find_samples(what, num, reference.shape, resize=resize)
    check_shape(config, reference.shape)
    return samples_of_model(config, num, names, network)


def _perfect(images: np.ndarray, num: int) -> float:
    from ict_backends.images import to_float
    from ict_backends.measuring.distances import perfect_distance

    flat = to_float(images).reshape(len(images), -1)
    # Each distance takes the root of a matrix with a row per pixel: many seconds for thousands of pixels.
    return perfect_distance(flat, num, splits=8 if flat.shape[1] <= 256 else 2).value


def _write_json(
    path: Path,
    measured: dict[str, object],
    count: int,
    reference: int,
    levels: Sequence[float] | None,
    network: FeatureNetwork | None,
) -> None:
    from ict_backends.files import write_atomically

    record: dict[str, object] = {"num": count, "reference": reference, "sigmas": levels}
    record["features"] = None if network is None else {"name": network.name, "sha256": network.digest}
    write_atomically(path, (json.dumps(record | measured, indent=2) + "\n").encode())
