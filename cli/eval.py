"""`ict eval`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import numpy as np

from ict_backends.errors import DataError, UsageError
from ict_cli.options import (
    backend_option,
    batch_option,
    debug_option,
    device_option,
    open_backend,
    resolve_labels,
    resolve_sigmas,
    seed_option,
    steps_options,
    weights_option,
)
from ict_core import Config, DataConfig

if TYPE_CHECKING:
    from ict_backends.measuring.distances import Moments
    from ict_backends.measuring.evaluation import Gathered, Network, Result


@click.command("eval")
@click.argument("what", metavar="RUN|FOLDER|NPZ", type=click.Path(path_type=Path))
@click.option(
    "--data", help="Images to compare with, or an .npz of mu and sigma.  [default: those the run was trained on]"
)
@click.option("--metrics", help="Of fid, kid, is, pr, pixel-fd, sw, such as fid,kid.  [default: pixel-fd; fid,kid,pr]")
@click.option(
    "--features",
    help="Network of fid, kid, is, pr: a TorchScript or .pt2 file, or inception-2015-12-05, which is downloaded "
    "once.  [default: pixels]",
)
@click.option(
    "--num",
    type=click.IntRange(min=2),
    help="How many images; the field's figures take 50,000.  [default: 2000 or as many as are needed; all]",
)
@click.option(
    "--resize", is_flag=True, help="Resample images of other sizes or kinds: to the model's, or to the data's."
)
@click.option(
    "--halves/--no-halves",
    default=True,
    show_default=True,
    help="Say beside pixel-fd how far random halves of the data are apart: minutes, for thousands of pixels.",
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures into a file, too.")
@steps_options
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
    num: int | None,
    resize: bool,
    halves: bool,
    json_file: Path | None,
    steps: int | None,
    sigmas: str | None,
    seed: int,
    weights: str,
    backend: str,
    batch_size: int,
    device: str,
) -> None:
    """Measure how far images are from the data: a model's, or those of a folder or an .npz file.

    Images are rounded to uint8 first, as in files. Without --features, kid and pr are of the pixels, and pixel-fd is
    the Frechet distance in pixel space, of values in [-1, 1]; beside it stand the distances between random halves of
    the data, which no model can be expected to beat by much.
    """

    from ict_backends.console import progress_bar
    from ict_backends.measuring.evaluation import compare, gather, read_metrics
    from ict_backends.runs.folder import RunDir

    config = RunDir(what).load_config() if (what / "config.toml").is_file() else None
    levels = resolve_sigmas(config, steps, sigmas, run=what) if config else None
    _check_source(what, config, data)
    network = load_network(features, device)
    names = read_metrics(metrics, network)
    shape = config.data.shape if config and resize else None
    reference = read_reference(data_of(config, data), names, network, shape=shape)
    samples = _find_samples(what, num, config, reference.shape, resize, names, network)
    check_sizes(names, samples, reference, network)
    batches = samples.batches
    if config is not None:
        batches = _draw(what, config, samples.count, levels, seed, weights, backend, device, batch_size)
    with progress_bar(samples.count, unit="image", leave=False) as bar:
        gathered = gather(batches, names, network, on_batch=bar.update)
    results = compare(names, gathered, reference.gather(names, network))
    kind = "images" if levels is None else f"{_kind(levels)} samples"
    for result in results:
        click.echo(_line(result, samples.count, kind, reference, network))
        if halves and result.name == "pixel-fd" and reference.images is not None:
            click.echo(_halves(reference.images))
    if json_file is not None:
        _write_json(json_file, results, samples.count, reference.count, levels, network)


def data_of(config: Config | None, source: str | None) -> DataConfig:
    """The data to compare with: a run's own, or others, prepared as the run's are."""
    data = config.data if config else DataConfig()
    return dataclasses.replace(data, source=source or data.source)


def _kind(levels: Sequence[float]) -> str:
    return "one-step" if len(levels) == 1 else f"{len(levels)}-step"


def _line(result: Result, count: int, kind: str, reference: Reference, network: Network | None) -> str:
    features = "pixels" if network is None else f"features of {network.name}"
    head, colon, value = str(result).replace("of features", f"of {features}").partition(":")
    against = "" if result.name == "is" else f" against {reference.describe()}"
    if not colon:  # precision and recall say both
        return f"{head}, of the {features} of {count} {kind}{against}"
    return f"{head}, {count} {kind}{against}:{value}"


class Reference(NamedTuple):
    """What is compared with: images, or moments alone."""

    source: str
    images: np.ndarray | None
    moments: object | None

    @property
    def count(self) -> int:
        """Number of images; 0 where it is not known."""
        return len(self.images) if self.images is not None else self.moments.count

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of an image, where there are images."""
        return None if self.images is None else self.images.shape[1:]

    def describe(self) -> str:
        """In words."""
        return f"{self.count} images" if self.count else f"the statistics of {self.source}"

    def gather(self, names: Sequence[str], network: Network | None) -> Gathered:
        """What the metrics need of it."""
        from ict_backends.measuring.distances import moments
        from ict_backends.measuring.evaluation import Gathered, cached_moments, gather, in_batches

        if self.images is None:
            return Gathered(self.count, moments=self.moments, pixel_moments=self.moments)
        held = [name for name in names if name in ("kid", "pr", "sw")]
        found = gather(in_batches(self.images), held, network) if held else Gathered(self.count)

        def of_features() -> Moments:
            if found.features is not None:  # they need not be computed twice
                return moments(found.features)
            return gather(in_batches(self.images), ["fid"], network).moments

        def of_pixels() -> Moments:
            return gather(in_batches(self.images), ["pixel-fd"], None).pixel_moments

        if "fid" in names:
            found = found._replace(moments=cached_moments(self.images, network.digest, of_features))
        if "pixel-fd" in names:
            found = found._replace(pixel_moments=cached_moments(self.images, "pixels", of_pixels))
        return found


class Samples(NamedTuple):
    """What is measured: how many images, and, where they are there already, they."""

    name: str
    count: int
    shape: tuple[int, ...]
    batches: Iterator[np.ndarray] | None


# What only says how a model draws.
_OF_RUNS = ("steps", "sigmas", "seed", "weights", "backend", "batch_size")


def _check_source(what: Path, config: Config | None, data: str | None) -> None:
    """Refuse a source that is none, and options that would do nothing for it."""
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


def load_network(features: str | None, device: str) -> Network | None:
    """The feature network that --features names; None for pixels."""
    from ict_backends import load_features
    from ict_backends.measuring.inception import INCEPTION, fetch_inception

    if features in (None, "pixels"):
        return None
    path = fetch_inception() if features == INCEPTION else Path(features)
    return load_features(path, device=device)


def read_reference(
    data: DataConfig, names: Sequence[str], network: Network | None, *, shape: tuple[int, ...] | None = None
) -> Reference:
    """What --data names: images, resampled to a shape where one is given, or statistics where they are enough."""
    from ict_backends.data.dataset import load_data_of
    from ict_backends.measuring.evaluation import METRICS, read_moments

    source, path = data.source, Path(data.source)
    moments = read_moments(path) if path.suffix == ".npz" and path.is_file() else None
    if moments is not None:
        wrong = [name for name in names if name not in ("fid", "pixel-fd", "is")]
        if not wrong:
            return Reference(source, None, moments)
        try:
            images = load_data_of(data).images  # ADM's reference batches hold both
        except DataError as error:
            raise DataError(f"data {source} holds mu and sigma only; {METRICS[wrong[0]]} needs images") from error
        return Reference(source, images, None)
    return Reference(source, _load_images(data, shape), None)


def _load_images(data: DataConfig, shape: tuple[int, ...] | None) -> np.ndarray:
    """The images of a source, resampled to a shape where one is given; what cannot be read is named and left out."""
    from ict_backends.data.dataset import load_data
    from ict_backends.data.decode import fit_image

    def fit(image: np.ndarray) -> np.ndarray:
        return fit_image(image, shape, resize=True, what=data.source)

    unreadable: list[str] = []
    prepared = {"size": data.size, "crop": data.crop}
    images = load_data(data.source, **prepared, unreadable=unreadable, fit=fit if shape else None).images
    if unreadable:
        names = ", ".join(unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
        click.echo(
            f"Warning: {len(unreadable)} files of {data.source} are no images and are left out: {names}", err=True
        )
    return images


def _find_samples(
    what: Path,
    num: int | None,
    config: Config | None,
    shape: tuple[int, ...] | None,
    resize: bool,
    names: Sequence[str],
    network: Network | None,
) -> Samples:
    from ict_backends.data.decode import describe_shape
    from ict_backends.measuring.evaluation import in_batches

    if config is not None:
        check_shape(config, shape)
        return Samples("--num", num or default_number(names, network, config.data.shape), config.data.shape, None)
    images = _load_images(DataConfig(source=str(what)), shape if resize else None)[:num]
    if num is not None and num > len(images):
        raise UsageError(f"--num {num} is more than the {len(images)} images of {what}")
    if shape is not None and images.shape[1:] != shape:
        raise DataError(
            f"the images of {what} are {describe_shape(images.shape[1:])}, but those of the data "
            f"{describe_shape(shape)}; --resize makes them fit"
        )
    return Samples(str(what), len(images), images.shape[1:], in_batches(images))


def check_shape(config: Config, shape: tuple[int, ...] | None) -> None:
    """Raise DataError unless the model's images have the shape of the data, where that has one."""
    from ict_backends.data.decode import describe_shape

    if shape not in (None, config.data.shape):
        found, needed = describe_shape(config.data.shape), describe_shape(shape)
        raise DataError(f"the model's images are {found}, but those of the data {needed}; --resize makes them fit")


def default_number(names: Sequence[str], network: Network | None, shape: tuple[int, ...]) -> int:
    """How many samples are drawn where it is not said: 2,000, or as many as the metrics need."""
    from ict_backends.measuring.evaluation import images_needed

    features, pixels = _dimensions(network, shape), int(np.prod(shape))
    return max(2000, *(images_needed(name, features, pixels) for name in names))


def _dimensions(network: Network | None, shape: tuple[int, ...]) -> int | None:
    """The number of features that a network gives of images of a shape."""
    return None if network is None else network.features(np.zeros((2, *shape), np.uint8)).shape[1]


def check_sizes(names: Sequence[str], samples: Samples, reference: Reference, network: Network | None) -> None:
    """Refuse now what would fail after the work: too few images, statistics of another number of values."""
    from ict_backends.measuring.evaluation import check_counts

    pixels, features = int(np.prod(samples.shape)), _dimensions(network, samples.shape)
    check_counts(names, samples.count, features, pixels, samples.name)
    if reference.images is not None:
        check_counts([n for n in names if n != "is"], reference.count, features, pixels, f"data {reference.source}")
        return
    found = len(reference.moments.mean)
    for name, needed in (("pixel-fd", pixels), ("fid", features)):
        if name in names and found != needed:
            raise DataError(f"data {reference.source} has statistics of {found} values; {name} needs {needed}")


def _draw(
    run: Path,
    config: Config,
    num: int,
    levels: Sequence[float],
    seed: int,
    weights: str,
    backend: str,
    device: str,
    batch_size: int,
) -> Iterator[np.ndarray]:
    """The model's images in batches, uint8."""
    from ict_backends.images import to_uint8
    from ict_backends.sampling.batches import sample_batches

    model = open_backend(backend, device).load_model(run, weights=weights, device=device)
    labels = resolve_labels(config, None, num)
    batches = sample_batches(model, range(num), sigmas=levels, seed=seed, labels=labels, batch=batch_size)
    return (to_uint8(images) for images in batches)


def _halves(images: np.ndarray) -> str:
    from ict_backends.images import to_float
    from ict_backends.measuring.distances import halves_distances

    flat = to_float(images).reshape(len(images), -1)
    # Each takes a root of a matrix of that size, which of thousands of pixels is many seconds.
    halves = halves_distances(flat, 8 if flat.shape[1] <= 256 else 2)
    return f"  between two random halves of the data: {min(halves):.2f} to {max(halves):.2f}"


def _write_json(
    path: Path,
    results: Sequence[Result],
    count: int,
    reference: int,
    levels: Sequence[float] | None,
    network: Network | None,
) -> None:
    from ict_backends.files import write_atomically

    record: dict[str, object] = {"num": count, "reference": reference, "sigmas": levels}
    record["features"] = None if network is None else {"name": network.name, "sha256": network.digest}
    for result in results:
        if result.recall is not None:
            record |= {"precision": result.value, "recall": result.recall}
        else:
            record[result.name] = result.value
            if result.error is not None:
                record[f"{result.name}_error"] = result.error
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())
