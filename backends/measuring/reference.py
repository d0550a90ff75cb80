"""The reference that samples are compared with, a data set's images or only their moments; checks that both match."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ict_backends.console import warn
from ict_backends.data.dataset import Dataset, load_data, load_data_of
from ict_backends.data.decode import describe_shape, fit_image
from ict_backends.data.npz import npz_names, read_member
from ict_backends.errors import DataError, UsageError
from ict_backends.files import cache_folder, write_atomically
from ict_backends.images import encode_npz
from ict_backends.measuring.distances import Moments, moments
from ict_backends.measuring.evaluation import check_counts, gather, images_needed, in_batches
from ict_backends.measuring.metrics import METRICS, Gathered, Metric, Need
from ict_backends.protocols import FeatureNetwork
from ict_backends.randomness import random_subset
from ict_core import Config, DataConfig


class Reference(NamedTuple):
    """The reference that samples are compared with: images, their moments, or both.

    Attributes:
        source: the data's source, as in `data.source`.
        images: [n, c, h, w] uint8, or None if no metric needs them.
        moments: the moments that the source holds, of features or pixels; None if it holds none.
        labels: [n] the classes of the images, or None; None, too, if `moments` are known, which may be of other images.
    """

    source: str
    images: np.ndarray | None
    moments: Moments | None
    labels: np.ndarray | None = None

    @property
    def num(self) -> int:
        """Number of images; 0 if it is not known."""
        if self.images is not None:
            return len(self.images)
        return 0 if self.moments is None else self.moments.num

    @property
    def shape(self) -> tuple[int, ...] | None:
        """[channels, height, width] of the images; None if there are none."""
        return None if self.images is None else self.images.shape[1:]

    def known(self, metric: Metric) -> Moments | None:
        """The moments that a metric takes as they are; None if it is computed from the images.

        Those of pixels are told from those of features by their size where there are images to compute them from.
        """
        if self.moments is None or not metric.of_covariance:
            return None
        of_pixels = self.shape is None or len(self.moments.mean) == int(np.prod(self.shape))
        return self.moments if metric.need is Need.MOMENTS or of_pixels else None

    def describe(self, metric: Metric) -> str:
        """What a metric compares with, in words."""
        known = self.known(metric)
        num = self.num if known is None else known.num
        return f"{num} images" if num else f"the statistics of {self.source}"

    def gather(self, metrics: Sequence[str], network: FeatureNetwork | None) -> Gathered:
        """The input that metrics, given by their names, need of the reference.

        Moments are those that the source holds, or come from the cache.
        """
        if self.images is None:
            return Gathered(self.num, moments=self.moments, pixel_moments=self.moments)
        images, needs = self.images, {METRICS[name].need for name in metrics}
        fid, pixel_fd = (self.known(METRICS[name]) for name in ("fid", "pixel-fd"))
        held = [name for name in metrics if not METRICS[name].of_covariance and not METRICS[name].of_samples_only]
        gathered = gather(in_batches(images), held, network) if held else Gathered(self.num)

        def of_features() -> Moments:
            if gathered.features is not None:  # features need not be computed twice
                return moments(gathered.features)
            return _only(gather(in_batches(images), ["fid"], network).moments)

        def of_pixels() -> Moments:
            return _only(gather(in_batches(images), ["pixel-fd"], None).pixel_moments)

        if Need.MOMENTS in needs and network is not None:
            gathered = gathered._replace(moments=fid or cached_moments(images, network.digest, of_features))
        if Need.PIXEL_MOMENTS in needs:
            gathered = gathered._replace(pixel_moments=pixel_fd or cached_moments(images, "pixels", of_pixels))
        return gathered


def _only(gathered: Moments | None) -> Moments:
    assert gathered is not None  # a metric that needs moments was asked for
    return gathered


class Samples(NamedTuple):
    """The images that are measured.

    Attributes:
        name: the name in messages.
        num: the number of images that there are, or will be.
        shape: [channels, height, width].
        batches: images [b, c, h, w] uint8 each; None if a model is still to draw them.
    """

    name: str
    num: int
    shape: tuple[int, ...]
    batches: Iterator[np.ndarray] | None


def data_of(config: Config | None, source: str | None) -> DataConfig:
    """The data to compare with: a run's own, or those of another source, prepared in the same way."""
    data = config.data if config else DataConfig()
    return dataclasses.replace(data, source=source or data.source)


def read_reference(data: DataConfig, metrics: Sequence[str], *, shape: tuple[int, ...] | None = None) -> Reference:
    """Read the reference: the moments of a source that has them, and its images if a metric needs them.

    Args:
        data: the source, and how its images are prepared.
        metrics: names of `METRICS`.
        shape: [channels, height, width] that images are resampled to, if given.

    Raises:
        DataError: the source cannot be read, or has only moments and a metric needs images.
    """
    path = Path(data.source)
    known = read_moments(path) if path.suffix == ".npz" and path.is_file() else None
    if known is None:
        dataset = load_whole(data, shape)
        return Reference(data.source, dataset.images, None, dataset.labels)
    metric = next((m for name in metrics if not ((m := METRICS[name]).of_covariance or m.of_samples_only)), None)
    if metric is None and "pixel-fd" not in metrics:
        return Reference(data.source, None, known)
    try:
        dataset = load_data_of(data)  # ADM's reference batches hold both
    except DataError as error:
        if metric is None:
            return Reference(data.source, None, known)
        raise DataError(f"data {data.source} holds mu and sigma only; {metric.describe()} needs images") from error
    return Reference(data.source, dataset.images, known)


def class_counts_of(reference: Reference, classes: int, of_training: np.ndarray | None) -> np.ndarray | None:
    """How many images of each class the reference has, [classes].

    Args:
        classes: the number of the model's classes; 0 for an unconditional model.
        of_training: how many images of each class the model's training data have, which is returned if the reference
            has no labels, or not images of each of the model's classes and of no other; None if that is not known.
    """
    if not classes or reference.labels is None or not np.array_equal(np.unique(reference.labels), np.arange(classes)):
        return of_training
    return np.bincount(reference.labels)


def load_whole(data: DataConfig, shape: tuple[int, ...] | None) -> Dataset:
    """Read the data set of a source, with its images resampled to `shape`, [channels, height, width], if given.

    Files that cannot be read are left out, with a warning that names them.
    """

    def fit(image: np.ndarray) -> np.ndarray:
        assert shape is not None
        return fit_image(image, shape, resize=True, what=data.source)

    unreadable: list[str] = []
    dataset = load_data(data.source, size=data.size, crop=data.crop, unreadable=unreadable, fit=fit if shape else None)
    if unreadable:
        names = ", ".join(unreadable[:5]) + (", ..." if len(unreadable) > 5 else "")
        warn(f"{len(unreadable)} files of {data.source} are no images and are left out: {names}")
    return dataset


def find_samples(path: Path, num: int | None, shape: tuple[int, ...] | None, *, resize: bool) -> Samples:
    """Read the images of a folder or file that are to be measured.

    Args:
        path: the folder or file.
        num: number of images, a random subset (`random_subset`); None for all.
        shape: [channels, height, width] of the reference; None if not known.
        resize: resample the images to `shape`.

    Raises:
        UsageError: there are fewer than `num` images.
        DataError: the images have another shape, and are not resampled.
    """
    images = load_whole(DataConfig(source=str(path)), shape if resize else None).images
    if num is not None and num > len(images):
        raise UsageError(f"--num {num} is more than the {len(images)} images of {path}")
    if num is not None:
        images = images[random_subset(len(images), num)]
    if shape is not None and images.shape[1:] != shape:
        raise DataError(
            f"the images of {path} are {describe_shape(images.shape[1:])}, but those of the data "
            f"{describe_shape(shape)}; --resize makes them fit"
        )
    return Samples(str(path), len(images), images.shape[1:], in_batches(images))


def samples_of_model(
    config: Config, num: int | None, metrics: Sequence[str], network: FeatureNetwork | None
) -> Samples:
    """The samples that a model is to draw.

    Args:
        config: the settings of the model's run.
        num: number of samples; by default 2,000, or more if the metrics need more.
        metrics: names of `METRICS`.
        network: the feature network, if one is given.
    """
    if num is None:
        features, pixels = _dimensions(network, config.data.shape), int(np.prod(config.data.shape))
        num = max(2000, *(images_needed(name, features, pixels) for name in metrics))
    return Samples("--num", num, config.data.shape, None)


def check_shape(config: Config, shape: tuple[int, ...] | None) -> None:
    """Raise DataError if the model's images have another shape than the data, [channels, height, width] or unknown."""
    if shape is not None and shape != config.data.shape:
        ours, theirs = describe_shape(config.data.shape), describe_shape(shape)
        raise DataError(f"the model's images are {ours}, but those of the data {theirs}; --resize makes them fit")


def check_sizes(metrics: Sequence[str], samples: Samples, reference: Reference, network: FeatureNetwork | None) -> None:
    """Raise DataError if the comparison would fail after all work: too few images, or moments of another size."""
    pixels, features = int(np.prod(samples.shape)), _dimensions(network, samples.shape)
    check_counts(metrics, samples.num, features, pixels, samples.name)
    for name in metrics:
        known, needed = reference.known(METRICS[name]), features if METRICS[name].need is Need.MOMENTS else pixels
        if known is None and not METRICS[name].of_samples_only:
            check_counts([name], reference.num, features, pixels, f"data {reference.source}")
        elif known is not None and len(known.mean) != needed:
            size = len(known.mean)
            raise DataError(f"data {reference.source} has statistics of {size} values; {name} needs {needed}")


def _dimensions(network: FeatureNetwork | None, shape: tuple[int, ...]) -> int | None:
    """The number of features that a network gives for images of a shape; None without a network."""
    return None if network is None else network.features(np.zeros((2, *shape), np.uint8)).shape[1]


def read_moments(path: Path) -> Moments | None:
    """Read moments from an .npz with `mu` [d] and `sigma` [d, d], as in ADM's reference batches and in our cache.

    Returns None if the file has no moments. Raises DataError if it cannot be read, the moments are not finite, their
    shapes do not match, or `sigma` is no covariance (not symmetric, or with a negative eigenvalue).
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
    if not _is_covariance(cov):
        raise DataError(f"data {path}: sigma must be a covariance: symmetric, without negative eigenvalues")
    return Moments(count, mean, cov)


def _is_covariance(matrix: np.ndarray) -> bool:
    """True if a matrix, [d, d], is symmetric and has no negative eigenvalue, to the rounding of float32."""
    slack = 1e-6 * float(np.abs(np.diag(matrix)).sum())
    if not np.allclose(matrix, matrix.T, rtol=0.0, atol=slack):
        return False
    # The factorisation fails at a negative eigenvalue; for 2,048 features, to compute the eigenvalues takes seconds.
    try:
        np.linalg.cholesky(matrix + (slack or 1e-300) * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        return False
    return True


def cached_moments(images: np.ndarray, kind: str, compute: Callable[[], Moments]) -> Moments:
    """The moments of a data set's features, from the cache if they have been computed before.

    CACHE/reference-KEY.npz holds `mu` [d], `sigma` [d, d] (float64) and `count`; it can be given as `--data`.

    Args:
        images: [n, c, h, w] uint8.
        kind: "pixels", or the digest of the feature network.
        compute: computes the moments if the cache has none.
    """
    key = hashlib.sha256(np.ascontiguousarray(images).data)
    key.update(f"{images.shape} {kind}".encode())
    path = cache_folder() / f"reference-{key.hexdigest()[:32]}.npz"
    with contextlib.suppress(DataError):  # a damaged file is computed again
        known = read_moments(path) if path.is_file() else None
        if known is not None:
            return known
    computed = compute()
    with contextlib.suppress(OSError):  # a cache that cannot be written saves no time and loses nothing
        write_atomically(path, encode_npz(mu=computed.mean, sigma=computed.cov, count=np.array(computed.num)))
    return computed
