"""Measuring sets of images against each other: what each metric needs of them, gathered batch by batch."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ict_backends.data.npz import npz_names, read_member
from ict_backends.errors import DataError, UsageError
from ict_backends.files import cache_folder, write_atomically
from ict_backends.images import encode_npz, to_float
from ict_backends.measuring.distances import (
    Estimate,
    Moments,
    MomentsSum,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    sliced_wasserstein,
)

# name -> what is said of it
METRICS = {
    "fid": "Frechet distance of features",
    "kid": "kernel distance of features",
    "is": "inception score",
    "pr": "precision, recall",
    "pixel-fd": "Frechet distance in pixel space",
    "sw": "sliced Wasserstein distance of pixels",
}
_BATCH = 256
_NEIGHBOURS, _SPLITS = 3, 10


class Network(Protocol):
    """What gives features: `ict_backends.torch.features.FeatureNetwork`."""

    name: str
    digest: str
    has_probabilities: bool

    def features(self, images: np.ndarray) -> np.ndarray:
        """[b, c, h, w] uint8 to [b, d]."""
        ...

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """[b, c, h, w] uint8 to [b, k]."""
        ...


class Gathered(NamedTuple):
    """What the metrics need of a set of images; None where none asked for it."""

    count: int
    moments: Moments | None = None
    features: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    pixel_moments: Moments | None = None
    pixels: np.ndarray | None = None


def read_metrics(text: str | None, network: Network | None) -> list[str]:
    """The metrics of a comma-separated list; without one, those that can be had.

    Raises:
        UsageError: one is unknown, or needs a network that is not given.
    """
    asked = [name.strip() for name in text.split(",")] if text else ["fid", "kid", "pr"] if network else ["pixel-fd"]
    for name in asked:
        if name not in METRICS:
            raise UsageError(f"--metrics {name} is unknown; there are {', '.join(METRICS)}")
        if name in ("fid", "is") and network is None:
            raise UsageError(f"--metrics {name} is of Inception features: give their network with --features FILE")
        if name == "is" and not network.has_probabilities:
            raise UsageError(f"--metrics is needs class probabilities, which --features {network.name} does not give")
    return asked


def gather(
    batches: Iterable[np.ndarray],
    metrics: Sequence[str],
    network: Network | None,
    *,
    on_batch: Callable[[int], object] = lambda done: None,
) -> Gathered:
    """Take from images, uint8 [b, c, h, w] a batch, what the metrics need.

    Moments are summed, so that only kid, pr, is and sw hold something for each image. Without a network, the
    features are the pixels.
    """
    wanted = set(metrics)
    moments, pixel_moments = MomentsSum(), MomentsSum()
    features, probabilities, pixels, count = [], [], [], 0
    for images in batches:
        count += len(images)
        pixels_wanted = wanted & {"pixel-fd", "sw"} or (network is None and wanted & {"kid", "pr"})
        flat = to_float(images).reshape(len(images), -1) if pixels_wanted else np.empty(0)
        if wanted & {"fid", "kid", "pr"}:
            found = flat if network is None else network.features(images)
            if "fid" in wanted:
                moments.add(found)
            if wanted & {"kid", "pr"}:
                features.append(found)
        if "is" in wanted:
            probabilities.append(network.probabilities(images))
        if "pixel-fd" in wanted:
            pixel_moments.add(flat)
        if "sw" in wanted:
            pixels.append(flat)
        on_batch(len(images))
    return Gathered(
        count,
        moments.result() if "fid" in wanted else None,
        np.concatenate(features) if features else None,
        np.concatenate(probabilities) if probabilities else None,
        pixel_moments.result() if "pixel-fd" in wanted else None,
        np.concatenate(pixels) if pixels else None,
    )


def in_batches(images: np.ndarray, size: int = _BATCH) -> Iterator[np.ndarray]:
    """[n, c, h, w] images, `size` at a time."""
    return (images[i : i + size] for i in range(0, len(images), size))


class Result(NamedTuple):
    """A metric's value: with an error, or two values."""

    name: str
    value: float
    error: float | None = None
    recall: float | None = None

    def __str__(self) -> str:
        if self.recall is not None:
            return f"precision {self.value:.4f}, recall {self.recall:.4f}"
        return f"{METRICS[self.name]}: {self.value:.5g}" + ("" if self.error is None else f" +- {self.error:.2g}")


def compare(metrics: Sequence[str], samples: Gathered, reference: Gathered) -> list[Result]:
    """The metrics, in the order asked for. The inception score is of the samples alone."""
    return [_compare(name, samples, reference) for name in metrics]


def _compare(name: str, samples: Gathered, reference: Gathered) -> Result:
    def estimate(found: Estimate) -> Result:
        return Result(name, found.value, error=found.error)

    match name:
        case "fid":
            return Result(name, frechet_distance(reference.moments, samples.moments))
        case "pixel-fd":
            return Result(name, frechet_distance(reference.pixel_moments, samples.pixel_moments))
        case "kid":
            return estimate(kernel_distance(reference.features, samples.features))
        case "is":
            return estimate(inception_score(samples.probabilities, splits=_SPLITS))
        case "pr":
            found = precision_recall(reference.features, samples.features, neighbours=_NEIGHBOURS)
            return Result(name, found.precision, recall=found.recall)
        case _:
            return Result(name, sliced_wasserstein(reference.pixels, samples.pixels))


def check_counts(metrics: Sequence[str], count: int, dims: int | None, pixels: int, what: str) -> None:
    """Raise DataError, saying how many are needed, unless a set of images is large enough for the metrics.

    Args:
        dims: number of features; None where it is not known yet.
        pixels: number of values of an image.
        what: names the set: "--num 12" or "data x.npz".
    """
    for name in metrics:
        needed = images_needed(name, dims, pixels)
        if count < needed:
            reason = f" (a covariance of {needed - 1} values)" if name in ("fid", "pixel-fd") else ""
            raise DataError(f"{what} gives {count} images; {name} needs {needed} at least{reason}")


def images_needed(metric: str, dims: int | None, pixels: int) -> int:
    """How many images a metric needs of each set: for a covariance of d values, d + 1."""
    needed = {"fid": (dims or 1) + 1, "pixel-fd": pixels + 1, "kid": 2, "pr": _NEIGHBOURS + 1, "is": _SPLITS, "sw": 1}
    return needed[metric]


def read_moments(path: Path) -> Moments | None:
    """Reference statistics from an .npz with `mu` and `sigma`, as ADM's reference batches and our cache have them.

    Returns None where the file has none. Raises DataError where they do not belong together.
    """
    try:
        names = npz_names(path)
        if not {"mu", "sigma"} <= set(names):
            return None
        mean, cov = (read_member(path, name).astype(np.float64) for name in ("mu", "sigma"))
        count = int(read_member(path, "count")) if "count" in names else 0
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"data {path} cannot be read: {error}") from error
    if (
        mean.ndim != 1
        or cov.shape != (len(mean), len(mean))
        or not (np.isfinite(mean).all() and np.isfinite(cov).all())
    ):
        raise DataError(f"data {path}: mu and sigma must be finite, [d] and [d, d], not {mean.shape} and {cov.shape}")
    return Moments(count, mean, cov)


def cached_moments(images: np.ndarray, kind: str, compute: Callable[[], Moments]) -> Moments:
    """Moments of a data set's features, from the cache where they were computed before.

    CACHE/reference-KEY.npz holds `mu` [d], `sigma` [d, d] (float64) and `count`; CACHE is $XDG_CACHE_HOME/ict, or
    ~/.cache/ict. It can be given as `--data`.

    Args:
        kind: "pixels", or the digest of the network.
    """
    key = hashlib.sha256(np.ascontiguousarray(images))
    key.update(f"{images.shape} {kind}".encode())
    path = cache_folder() / f"reference-{key.hexdigest()[:32]}.npz"
    with contextlib.suppress(DataError):  # what is damaged is computed again
        known = read_moments(path) if path.is_file() else None
        if known is not None:
            return known
    found = compute()
    with contextlib.suppress(OSError):  # a cache that cannot be written saves no time and loses nothing
        write_atomically(path, encode_npz(mu=found.mean, sigma=found.cov, count=np.array(found.count)))
    return found
