"""An evaluation from the first check to the figures: samples of a model, or images that there are, against data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ict_backends.console import progress_bar
from ict_backends.data.dataset import Dataset
from ict_backends.data.decode import fit_image
from ict_backends.images import to_float, to_uint8
from ict_backends.measuring.distances import perfect_distance
from ict_backends.measuring.evaluation import compare, gather, read_metrics
from ict_backends.measuring.inception import feature_network
from ict_backends.measuring.metrics import Result
from ict_backends.measuring.reference import (
    Reference,
    check_shape,
    check_sizes,
    class_counts_of,
    data_of,
    read_reference,
    samples_of_model,
)
from ict_backends.measuring.sharing import exchange, stretch
from ict_backends.protocols import FeatureNetwork, Model, Processes
from ict_backends.runs.folder import RunDir, check_training_data, class_counts, class_names
from ict_backends.sampling.batches import sample_batches
from ict_backends.sampling.choices import Labels, check_guidance, resolve_labels, resolve_sigmas, resolve_solver
from ict_core import Config


class Drawing(NamedTuple):
    """How a model has drawn the samples that are compared.

    Attributes:
        sigmas: the falling noise levels, one a step.
        labels: the value of --labels or its default; None for the default where the data's classes are not known.
        is_conditional: True if the samples have classes.
        clip_steps, truncate, guidance, solver: as `ict eval` has them.
    """

    sigmas: list[float]
    labels: Labels | None
    is_conditional: bool
    clip_steps: bool
    truncate: bool
    guidance: float
    solver: str


class Comparison(NamedTuple):
    """The result of an evaluation.

    Attributes:
        results: a metric each; none in all but the first of several processes.
        num: the number of images that were measured.
        reference: what they were compared with.
        network: the feature network; None for pixels.
        drawing: how a model has drawn the images; None for images of a folder or file.
    """

    results: list[Result]
    num: int
    reference: Reference
    network: FeatureNetwork | None
    drawing: Drawing | None

    def perfect(self) -> float | None:
        """The pixel-fd that a perfect model would show with as many images, from random halves of the data.

        None where pixel-fd is no metric of the evaluation, or the data are known only by their statistics. This takes
        minutes for thousands of pixels.
        """
        images = self.reference.images
        if images is None or all(result.metric.name != "pixel-fd" for result in self.results):
            return None
        flat = to_float(images).reshape(len(images), -1)
        # Each distance takes the root of a matrix with a row per pixel: many seconds for thousands of pixels.
        return perfect_distance(flat, self.num, splits=8 if flat.shape[1] <= 256 else 2).value

    def record(self, perfect: float | None) -> dict[str, object]:
        """The figures and what they are of, by their names in JSON.

        Args:
            perfect: the value of `perfect()`, or None to leave it out.
        """
        drawing, network = self.drawing, self.network
        record: dict[str, object] = {"num": self.num, "reference": self.reference.num}
        record["sigmas"] = None if drawing is None else drawing.sigmas
        record["features"] = None if network is None else {"name": network.name, "sha256": network.digest}
        if drawing is not None:
            record |= {"clip_steps": drawing.clip_steps, "truncate": drawing.truncate, "guidance": drawing.guidance}
            record["solver"] = drawing.solver
            record["labels"] = drawing.labels if drawing.is_conditional else None
        for result in self.results:
            record |= result.figures()
        return record | ({} if perfect is None else {"pixel-fd_perfect": perfect})


def compare_batches(
    batches: Iterable[np.ndarray],
    num: int,
    names: Sequence[str],
    reference: Reference,
    network: FeatureNetwork | None,
    *,
    drawing: Drawing | None = None,
    processes: Processes | None = None,
) -> Comparison:
    """Measure images against a reference, with a progress bar where a command shows them.

    Args:
        batches: images [b, c, h, w] uint8 each, `num` in all, or the `stretch` of this process.
        num: the number of images, of all processes.
        names: names of `METRICS`.
        reference: what to compare with, which `check_sizes` has checked.
        network: the feature network; None for pixels.
        drawing: how a model draws the images.
        processes: those that share the images; every one of them must call this.
    """
    rank, world = (processes.rank, processes.world) if processes else (0, 1)
    with progress_bar(len(stretch(num, rank, world)), disable=rank > 0, unit="image", leave=False) as bar:
        gathered = gather(batches, names, network, on_batch=bar.update)
    if processes is not None:
        gathered = exchange(gathered, processes)
        processes.part()
    results = [] if rank else compare(names, gathered, reference.gather(names, network))
    return Comparison(results, num, reference, network, drawing)


def measure_model(
    load_model: Callable[[], Model],
    run: RunDir,
    config: Config,
    *,
    data: str | np.ndarray | None = None,
    metrics: str | None = None,
    features: str | Path | None = None,
    trust_features: bool = False,
    num: int | None = None,
    resize: bool = False,
    labels: Labels | None = None,
    steps: int | None = None,
    sigmas: str | Sequence[float] | None = None,
    clip_steps: bool = False,
    truncate: bool = False,
    guidance: float = 1.0,
    solver: str | None = None,
    seed: int = 0,
    batch_size: int = 256,
    device: str = "auto",
    processes: Processes | None = None,
) -> Comparison:
    """Measure how far a model's samples are from data: `ict eval` of a run, whose options have the same names.

    Args:
        load_model: returns the model; it is called after everything else is checked.
        run: the model's run.
        config: its settings.
        data: the source of the data, or their images [n, c, h, w] uint8; by default the run's training data.
        processes: those that share the drawing; every one of them must call this.

    Raises:
        DataError, UsageError: the data, the metrics and the model do not fit each other.
        CheckpointError: the levels of the run, or the feature network, cannot be read.
    """
    solver = resolve_solver(config, solver, clip_steps=clip_steps)
    levels = resolve_sigmas(config, steps, sigmas, run=run, solver=solver)
    check_guidance(config, guidance)
    network = feature_network(None if features is None else str(features), device, trust=trust_features)
    names = read_metrics(metrics, network)
    reference = _reference(config, data, names, resize=resize)
    if data is None:
        check_reference(run, config, reference)
    check_shape(config, reference.shape)
    samples = samples_of_model(config, num, names, network)
    check_sizes(names, samples, reference, network)
    chosen, classes = labels_to_compare(run, config, reference, labels, samples.num, seed=seed)
    drawn = sample_batches(
        load_model(),
        stretch(samples.num, *((processes.rank, processes.world) if processes else (0, 1))),
        sigmas=levels,
        seed=seed,
        labels=classes,
        batch=batch_size,
        clip_steps=clip_steps,
        guidance=guidance,
        solver=solver,
    )
    batches = (to_uint8(images, truncate=truncate) for images in drawn)
    drawing = Drawing(levels, chosen, classes is not None, clip_steps, truncate, guidance, solver)
    return compare_batches(batches, samples.num, names, reference, network, drawing=drawing, processes=processes)


def _reference(config: Config, data: str | np.ndarray | None, names: Sequence[str], *, resize: bool) -> Reference:
    shape = config.data.shape if resize else None
    if not isinstance(data, np.ndarray):
        return read_reference(data_of(config, data), names, shape=shape)
    fitted = data if shape is None else np.stack([fit_image(each, shape, resize=True, what="data") for each in data])
    return Reference("of the given array", fitted, None)


def check_reference(run: RunDir, config: Config, reference: Reference) -> None:
    """Raise DataError unless the images of a reference, if it has any, are those that the run was trained on."""
    if reference.images is not None and reference.moments is None:
        check_training_data(run, config, Dataset(reference.images, reference.labels))


def labels_to_compare(
    run: RunDir, config: Config, reference: Reference, labels: Labels | None, num: int, *, seed: int
) -> tuple[Labels | None, np.ndarray | None]:
    """The classes of samples that are compared with a reference, as `resolve_labels` returns them.

    Args:
        labels: the value of --labels; by default "data", if it is known how many images of each class the data have.

    Returns:
        The value of --labels, or its default; and the classes, [num] int64, or None for an unconditional model.
    """
    counts = class_counts_of(reference, config.network.num_classes, class_counts(run, config))
    chosen = "data" if labels is None and counts is not None else labels
    names = class_names(run, config)
    return chosen, resolve_labels(config, chosen, num, seed=seed, counts=counts, names=names)
