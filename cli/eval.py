"""`ict eval`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ict_backends.errors import DataError, LostProcessError, UsageError
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
    solver_option,
    steps_options,
    weights_option,
)
from ict_core import Config

if TYPE_CHECKING:
    from ict_backends.measuring.comparison import Comparison, Drawing
    from ict_backends.measuring.metrics import Result
    from ict_backends.protocols import Processes
    from ict_backends.runs.folder import RunDir


_FID_IMAGES = 50_000


@click.command(
    "eval",
    epilog=examples(
        "ict eval runs/mine",
        "ict eval runs/mine --fid50k --json fid.json",
        "ict eval samples.npz --data my-images/ --metrics kid",
    ),
)
@click.argument("what", metavar="RUN|FOLDER|NPZ", type=PATH)
@click.option(
    "--fid50k",
    is_flag=True,
    help="The figure of papers, FID of 50,000 images: short for --metrics fid --num 50000 --features "
    "inception-2015-12-05.",
)
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
@solver_option
@guidance_option
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
    fid50k: bool,
    data: str | None,
    metrics: str | None,
    features: str | None,
    trust_features: bool,
    num: int | None,
    resize: bool,
    halves: bool,
    json_file: Path | None,
    labels: str | None,
    solver: str | None,
    guidance: float,
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

    A run's samples are drawn on all devices. Under torchrun, or wherever RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
    are set, processes share the work.
    """
    from ict_backends.environment import share_of_work
    from ict_backends.measuring.comparison import measure_model
    from ict_backends.runs.folder import open_run

    if fid50k:
        metrics, num, features = _fid50k(metrics, num, features, trust_features)
    rank, world = share_of_work()
    if json_file is not None and rank == 0:
        check_replaceable("--json", json_file)
    run = open_run(what)
    config = run.load_config() if run.config_file.is_file() else None
    _check_source(what, config, data)
    if config is None and rank:
        return  # what is there already is measured by the first process
    if config is None:
        comparison = _compare_images(what, data, metrics, features, num, device, trust=trust_features, resize=resize)
    else:
        with _together(backend, device, world) as processes:
            comparison = measure_model(
                lambda: open_backend(backend, device, joins=world > 1).load_model(
                    _checkpoint(run, weights, processes), weights=weights, device=device
                ),
                run,
                config,
                data=data,
                metrics=metrics,
                features=features,
                trust_features=trust_features,
                num=num,
                resize=resize,
                labels=labels,
                steps=steps,
                sigmas=sigmas,
                clip_steps=clip_steps,
                truncate=truncate,
                guidance=guidance,
                solver=solver,
                seed=seed,
                batch_size=batch_size,
                device=device,
                processes=processes,
            )
    if not rank:
        _report(comparison, halves, json_file)


@contextlib.contextmanager
def _together(backend: str, device: str, world: int) -> Iterator[Processes | None]:
    """A context with the processes that share the work, joined; None where there is only one."""
    if world == 1:
        yield None
        return
    try:
        with open_backend(backend, device, joins=True).joined(device) as processes:
            yield processes
    except LostProcessError as error:
        raise LostProcessError(error.rank, error.world, error.reason, "give the command again") from error


def _checkpoint(run: RunDir, weights: str, processes: Processes | None) -> Path:
    """The checkpoint that the weights are from: that of the first process, since a run may have a newer one by now."""
    folder = run.checkpoint_of(weights)
    return folder if processes is None else Path(processes.exchange(str(folder))[0])


def _report(comparison: Comparison, halves: bool, json_file: Path | None) -> None:
    """Print the figures, and write them into a file if there is one."""
    from ict_backends.files import write_atomically

    perfect = None
    for result in comparison.results:
        click.echo(_line(result, comparison))
        if halves and result.metric.name == "pixel-fd" and (perfect := comparison.perfect()) is not None:
            click.echo(f"  a perfect model would show about {perfect:.2g} with as many samples")
    if json_file is not None:
        write_atomically(json_file, (json.dumps(comparison.record(perfect), indent=2) + "\n").encode())


def _fid50k(metrics: str | None, num: int | None, features: str | None, trust: bool) -> tuple[str, int, str]:
    """The values of --metrics, --num and --features that --fid50k stands for. Raises UsageError beside other ones."""
    from ict_backends.measuring.inception import INCEPTION

    given = {"--metrics": metrics, "--num": num, "--trust-features": trust or None}
    if features in ("pixels", ""):
        given["--features"] = features
    for option, value in given.items():
        if value is not None:
            asked = option if value is True else f"{option} {value}"
            raise UsageError(
                f"--fid50k and {asked} exclude each other: --fid50k is short for --metrics fid --num {_FID_IMAGES} "
                f"--features {INCEPTION}"
            )
    return "fid", _FID_IMAGES, features or INCEPTION


def _compare_images(
    what: Path,
    data: str | None,
    metrics: str | None,
    features: str | None,
    num: int | None,
    device: str,
    *,
    trust: bool,
    resize: bool,
) -> Comparison:
    """Measure the images of a folder or file."""
    from ict_backends.measuring.comparison import compare_batches
    from ict_backends.measuring.evaluation import read_metrics
    from ict_backends.measuring.inception import feature_network
    from ict_backends.measuring.reference import check_sizes, data_of, find_samples, read_reference

    network = feature_network(features, device, trust=trust)
    names = read_metrics(metrics, network)
    reference = read_reference(data_of(None, data), names)
    samples = find_samples(what, num, reference.shape, resize=resize)
    check_sizes(names, samples, reference, network)
    assert samples.batches is not None
    return compare_batches(samples.batches, samples.num, names, reference, network)


# The values of --labels in words; None is the default for data whose classes are not known.
_CLASSES = {"data": "classes in the data's proportions", "balanced": "all classes in turn", None: "all classes in turn"}


def _kind(drawing: Drawing | None) -> str:
    if drawing is None:
        return "images"
    steps = len(drawing.sigmas)
    kind = "one-step samples" if steps == 1 else f"{steps}-step samples"
    kind += " by Heun's method" if drawing.solver == "heun" else ""
    if not drawing.is_conditional:
        return kind
    labels = None if drawing.labels is None else str(drawing.labels)
    guidance = "" if drawing.guidance == 1 else f" with guidance {drawing.guidance:g}"
    return f"{kind} of {_CLASSES.get(labels, f'classes {labels}')}{guidance}"


def _line(result: Result, comparison: Comparison) -> str:
    network, reference, num = comparison.network, comparison.reference, comparison.num
    kind = _kind(comparison.drawing)
    features = "pixels" if network is None else f"features of {network.name}"
    against = "" if result.metric.of_samples_only else f" against {reference.describe(result.metric)}"
    if result.recall is not None:  # the amount names the metric
        return f"{result.amount()}, of the {features} of {num} {kind}{against}"
    return f"{result.metric.describe(features)}, {num} {kind}{against}: {result.amount()}"


# Options that only say how a model draws its samples.
_OF_RUNS = (
    "labels",
    "solver",
    "guidance",
    "steps",
    "sigmas",
    "clip_steps",
    "truncate",
    "seed",
    "weights",
    "backend",
    "batch_size",
)


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
