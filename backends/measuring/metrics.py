"""The metrics: a record for each, with its words, the input that it needs, and the function that computes its value."""

from __future__ import annotations

import math
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
    """The input that a metric needs of a set of images. Only moments take memory that does not grow with the set."""

    MOMENTS = "moments of features"
    FEATURES = "features"
    PROBABILITIES = "probabilities of classes"
    PIXEL_MOMENTS = "moments of pixels"
    PIXELS = "pixels"


class Gathered(NamedTuple):
    """The input of metrics from a set of n images: a member for each `Need`, None if no metric needs it.

    Attributes:
        num: the number of images, n; 0 if unknown.
        moments: the moments of the features, d values.
        features: [n, d].
        probabilities: [n, k] of k classes.
        pixel_moments: the moments of the pixels, c h w values in [-1, 1].
        pixels: [n, c h w] float32 in [-1, 1].
    """

    num: int
    moments: Moments | None = None
    features: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    pixel_moments: Moments | None = None
    pixels: np.ndarray | None = None


class Value(NamedTuple):
    """The value of a metric, with its error if it has one; with precision, the recall."""

    value: float
    error: float | None = None
    recall: float | None = None


class Metric(NamedTuple):
    """A metric.

    Attributes:
        name: the name on the command line, in settings and in JSON.
        words: the name in words, with {features} for the kind of features.
        need: the input that the metric needs of both sets of images.
        compute: computes the value from the inputs gathered from the samples and from the reference.
        images: computes the number of images needed of each set, from the number of features of an image (None: not
            known yet) and its number of values.
        of_network: True if a feature network must be given; if False, the features without one are the pixels.
        is_distance: True if a smaller value is better, and 0 is best.
        of_samples_only: True if the reference does not matter.
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
        """True if the metric needs as many images as a covariance does, d + 1 for d values."""
        return self.need in (Need.MOMENTS, Need.PIXEL_MOMENTS)

    def describe(self, features: str = "features") -> str:
        """The metric's name in words, for this kind of features."""
        return self.words.format(features=features)


def _known(part: _Part | None) -> _Part:
    """A member of `Gathered` that is not None, since the metric's `need` asks for it."""
    assert part is not None
    return part


def _value(estimate: Estimate) -> Value:
    return Value(estimate.value, None if math.isnan(estimate.error) else estimate.error)


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
    """A metric and its value, with the error or the recall as in `Value`."""

    metric: Metric
    value: float
    error: float | None = None
    recall: float | None = None

    def amount(self) -> str:
        """The value as text, with its error; or precision and recall."""
        if self.recall is not None:
            return f"precision {self.value:.4f}, recall {self.recall:.4f}"
        return f"{self.value:.5g}" + ("" if self.error is None else f" +- {self.error:.2g}")

    def __str__(self) -> str:
        return self.amount() if self.recall is not None else f"{self.metric.describe()}: {self.amount()}"

    def figures(self) -> dict[str, float]:
        """The value, and the error or the recall, by their names in JSON."""
        if self.recall is not None:
            return {"precision": self.value, "recall": self.recall}
        name = self.metric.name
        return {name: self.value} | ({} if self.error is None else {f"{name}_error": self.error})
