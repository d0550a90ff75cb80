"""The metrics: one record for each, with its words, what it needs of a set of images, and how its value is computed."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, TypeVar

import numpy as np

from ict_backends.measuring.distances import (
    Estimate,
    Moments,
    frechet_distance,
    inception_score,
    kernel_distance,
    precision_recall,
    sliced_wasserstein,
)

_Part = TypeVar("_Part")
_NEIGHBOURS, _SPLITS = 3, 10


class Need(Enum):
    """What a metric needs of a set of images. Moments are summed; of all else something is held for each image."""

    MOMENTS = "moments of features"
    FEATURES = "features"
    PROBABILITIES = "probabilities of classes"
    PIXEL_MOMENTS = "moments of pixels"
    PIXELS = "pixels"


class Gathered(NamedTuple):
    """What was gathered of a set of `num` images: a member for each `Need`, None where no metric has it.

    Attributes:
        moments, pixel_moments: of [n, d] features, and of pixels in [-1, 1].
        features, probabilities, pixels: [n, d], [n, k] and [n, c h w].
    """

    num: int
    moments: Moments | None = None
    features: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    pixel_moments: Moments | None = None
    pixels: np.ndarray | None = None


class Value(NamedTuple):
    """A metric's value: with an error where it has one; precision has recall beside it."""

    value: float
    error: float | None = None
    recall: float | None = None


class Metric(NamedTuple):
    """A metric.

    Attributes:
        name: on the command line, in settings and in JSON.
        words: what it is, with {features} for what the features are.
        need: what it needs of both sets of images.
        compute: from what was gathered of the samples and of the reference to the value.
        images: how many images it needs of each set, from the numbers of features (None: not known yet) and of pixels.
        of_network: whether a feature network must be given; without one, the features are the pixels.
        is_distance: whether a smaller value is better, and 0 is best.
        of_samples_only: whether the reference does not matter.
    """

    name: str
    words: str
    need: Need
    compute: Callable[[Gathered, Gathered], Value]
    images: Callable[[int | None, int], int]
    of_network: bool = False
    is_distance: bool = True
    of_samples_only: bool = False

    @property
    def of_covariance(self) -> bool:
        """Whether the number of images that it needs is that of a covariance, d + 1 for d values."""
        return self.need in (Need.MOMENTS, Need.PIXEL_MOMENTS)

    def describe(self, features: str = "features") -> str:
        """Its words for these features."""
        return self.words.format(features=features)


def _known(part: _Part | None) -> _Part:
    """A part of what was gathered, which the metric's `need` has put there."""
    assert part is not None
    return part


def _value(estimate: Estimate) -> Value:
    return Value(estimate.value, estimate.error)


def _fid(samples: Gathered, reference: Gathered) -> Value:
    return Value(frechet_distance(_known(reference.moments), _known(samples.moments)))


def _pixel_fd(samples: Gathered, reference: Gathered) -> Value:
    return Value(frechet_distance(_known(reference.pixel_moments), _known(samples.pixel_moments)))


def _kid(samples: Gathered, reference: Gathered) -> Value:
    return _value(kernel_distance(_known(reference.features), _known(samples.features)))


def _inception_score(samples: Gathered, reference: Gathered) -> Value:
    return _value(inception_score(_known(samples.probabilities), splits=_SPLITS))


def _precision_recall(samples: Gathered, reference: Gathered) -> Value:
    both = precision_recall(_known(reference.features), _known(samples.features), neighbours=_NEIGHBOURS)
    return Value(both.precision, recall=both.recall)


def _sliced_wasserstein(samples: Gathered, reference: Gathered) -> Value:
    return Value(sliced_wasserstein(_known(reference.pixels), _known(samples.pixels)))


_ALL = (
    Metric("fid", "Frechet distance of {features}", Need.MOMENTS, _fid, lambda d, _: (d or 1) + 1, of_network=True),
    Metric("kid", "kernel distance of {features}", Need.FEATURES, _kid, lambda d, _: 2),
    Metric(
        "is",
        "inception score",
        Need.PROBABILITIES,
        _inception_score,
        lambda d, _: _SPLITS,
        of_network=True,
        is_distance=False,
        of_samples_only=True,
    ),
    Metric(
        "pr",
        "precision, recall",
        Need.FEATURES,
        _precision_recall,
        lambda d, _: _NEIGHBOURS + 1,
        is_distance=False,
    ),
    Metric("pixel-fd", "Frechet distance in pixel space", Need.PIXEL_MOMENTS, _pixel_fd, lambda d, pixels: pixels + 1),
    Metric("sw", "sliced Wasserstein distance of pixels", Need.PIXELS, _sliced_wasserstein, lambda d, _: 1),
)
# All metrics, by name.
METRICS = {metric.name: metric for metric in _ALL}


class Result(NamedTuple):
    """The value that a metric has."""

    metric: Metric
    value: float
    error: float | None = None
    recall: float | None = None

    def amount(self) -> str:
        """The value in figures, with its error, or precision and recall."""
        if self.recall is not None:
            return f"precision {self.value:.4f}, recall {self.recall:.4f}"
        return f"{self.value:.5g}" + ("" if self.error is None else f" +- {self.error:.2g}")

    def __str__(self) -> str:
        return self.amount() if self.recall is not None else f"{self.metric.describe()}: {self.amount()}"

    def figures(self) -> dict[str, float]:
        """The figures by their names in JSON."""
        if self.recall is not None:
            return {"precision": self.value, "recall": self.recall}
        name = self.metric.name
        return {name: self.value} | ({} if self.error is None else {f"{name}_error": self.error})
