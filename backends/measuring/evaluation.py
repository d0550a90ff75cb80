"""Measuring sets of images against each other: the input of the metrics is gathered batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from ict_backends.errors import DataError, UsageError
from ict_backends.images import to_float
from ict_backends.measuring.distances import MomentsSum
from ict_backends.measuring.metrics import METRICS, Gathered, Need, Result
from ict_backends.protocols import FeatureNetwork

_BATCH = 256
_FEATURES, _PIXELS = {Need.MOMENTS, Need.FEATURES}, {Need.PIXEL_MOMENTS, Need.PIXELS}


def read_metrics(text: str | None, network: FeatureNetwork | None) -> list[str]:
    """The names of the metrics in a comma-separated list.

    Args:
        text: the list; by default fid, kid and pr with a network, else pixel-fd.
        network: the feature network, if one is given.

    Raises:
        UsageError: a metric is unknown, or needs a network that is not given or gives no probabilities.
    """
    asked = [name.strip() for name in text.split(",")] if text else ["fid", "kid", "pr"] if network else ["pixel-fd"]
    for name in asked:
        if name not in METRICS:
            raise UsageError(f"--metrics {name} is unknown; there are {', '.join(METRICS)}")
        metric = METRICS[name]
        if metric.of_network and network is None:
            raise UsageError(f"--metrics {name} is of Inception features: give their network with --features FILE")
        if network is not None and metric.need is Need.PROBABILITIES and not network.has_probabilities:
            raise UsageError(
                f"--metrics {name} needs class probabilities, which --features {network.name} does not give"
            )
    return asked


def gather(
    batches: Iterable[np.ndarray],
    metrics: Sequence[str],
    network: FeatureNetwork | None,
    *,
    on_batch: Callable[[int], object] = lambda done: None,
) -> Gathered:
    """Compute from images everything that some metrics need.

    Args:
        batches: images [b, c, h, w] uint8 each; without any, nothing is gathered.
        metrics: names of `METRICS`.
        network: the feature network; without one, the features are the pixels.
        on_batch: called with the number of images of each batch.

    Raises:
        DataError: the network gives a NaN or an infinity.
    """
    needs = {METRICS[name].need for name in metrics}
    moments, pixel_moments = MomentsSum(), MomentsSum()
    held: dict[Need, list[np.ndarray]] = {Need.FEATURES: [], Need.PROBABILITIES: [], Need.PIXELS: []}
    count = 0
    for images in batches:
        count += len(images)
        pixels_needed = needs & (_PIXELS if network is not None else _PIXELS | _FEATURES)
        pixels = to_float(images).reshape(len(images), -1) if pixels_needed else np.empty(0)
        if needs & _FEATURES:
            features = pixels if network is None else _finite(network, network.features(images), "features")
            if Need.MOMENTS in needs:
                moments.add(features)
            if Need.FEATURES in needs:
                held[Need.FEATURES].append(features)
        if Need.PROBABILITIES in needs and network is not None:
            held[Need.PROBABILITIES].append(_finite(network, network.probabilities(images), "probabilities"))
        if Need.PIXEL_MOMENTS in needs:
            pixel_moments.add(pixels)
        if Need.PIXELS in needs:
            held[Need.PIXELS].append(pixels)
        on_batch(len(images))
    whole = {need: np.concatenate(parts) if parts else None for need, parts in held.items()}
    return Gathered(
        count,
        moments.result() if count and Need.MOMENTS in needs else None,
        whole[Need.FEATURES],
        whole[Need.PROBABILITIES],
        pixel_moments.result() if count and Need.PIXEL_MOMENTS in needs else None,
        whole[Need.PIXELS],
    )


def _finite(network: FeatureNetwork, values: np.ndarray, what: str) -> np.ndarray:
    """The values of a network, [b, d]. Raises DataError unless all of them are finite."""
    if not np.isfinite(values).all():
        raise DataError(f"--features {network.name} gives {what} that are NaN or infinite")
    return values


def in_batches(images: np.ndarray, size: int = _BATCH) -> Iterator[np.ndarray]:
    """Split images, [n, c, h, w], into batches of `size`; the last one may be smaller."""
    return (images[i : i + size] for i in range(0, len(images), size))


def compare(metrics: Sequence[str], samples: Gathered, reference: Gathered) -> list[Result]:
    """The values of metrics, given by their names in `METRICS`, in the same order."""
    return [Result(METRICS[name], *METRICS[name].compute(samples, reference)) for name in metrics]


def check_counts(metrics: Sequence[str], count: int, dims: int | None, pixels: int, what: str) -> None:
    """Raise DataError, with the number that is needed, unless a set has enough images for the metrics.

    Args:
        metrics: names of `METRICS`.
        count: number of images of the set.
        dims: number of features of an image; None if not known yet.
        pixels: number of values of an image, c h w.
        what: names the set in the message: "--num 12" or "data x.npz".
    """
    for name in metrics:
        needed = images_needed(name, dims, pixels)
        if count < needed:
            reason = f" (a covariance of {needed - 1} values)" if METRICS[name].of_covariance else ""
            raise DataError(f"{what} gives {count} images; {name} needs {needed} at least{reason}")


def images_needed(metric: str, dims: int | None, pixels: int) -> int:
    """The number of images of each set that a metric needs.

    Args:
        metric: a name of `METRICS`.
        dims: number of features of an image; None if not known yet.
        pixels: number of values of an image, c h w.
    """
    return METRICS[metric].images(dims, pixels)
