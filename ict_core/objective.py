"""The objective of a training step, the same for every array library: from a network and a batch to the loss.

What differs between frameworks comes as an argument: how a gradient is stopped, and the array namespace.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol

from ict_core._arrays import Array, Namespace
from ict_core.config import Config, NoiseConfig
from ict_core.loss import DISTANCES, ConsistencyFunction, ConsistencyLoss, Distance, consistency_loss, huber_constant
from ict_core.teacher import teacher_of


class MaskedNetwork(Protocol[Array]):
    """The free network F, with dropout where it is given masks."""

    def __call__(self, x_in: Array, c_noise: Array, labels: Any, masks: Any, /) -> Array:
        """F(x_in, c_noise, labels) with these dropout masks; None for no dropout."""
        ...


class Batch(NamedTuple, Generic[Array]):
    """The input of one step's loss, on the device, in the backend's own layout of images.

    Attributes:
        x: [b, *event] clean images, in [-1, 1].
        z: [b, *event] standard normal noise, the same for student and teacher.
        sigma_lo, sigma_hi, weight: [b] the teacher's and the student's levels, and the weight of their interval.
        labels: [b] integers, or another condition that the network takes; None for an unconditional one.
        masks, teacher_masks: the dropout masks of student and teacher, which share them unless
            `teacher.share_dropout` is false; None without dropout.
    """

    x: Array
    z: Array
    sigma_lo: Array
    sigma_hi: Array
    weight: Array
    labels: Any
    masks: Any
    teacher_masks: Any


def consistency_function(
    network: MaskedNetwork[Array],
    noise: NoiseConfig,
    labels: Any = None,
    masks: Any = None,
    *,
    xp: Namespace | None = None,
) -> ConsistencyFunction[Array]:
    """The consistency function f(x, sigma) of a network, for given labels and dropout masks.

    Args:
        network: F(x_in, c_noise, labels, masks), returning the shape of x_in.
        noise: the noise levels and `sigma_data` of the model.
        labels: [b] integers, or another condition that the network takes.
        masks: dropout masks, or None for no dropout.
        xp: array namespace; inferred from x when omitted.
    """

    def masked(x_in: Array, c_noise: Array, condition: Any, /) -> Array:
        return network(x_in, c_noise, condition, masks)

    return noise.consistency_function(masked, labels, xp=xp)


def distance_of(config: Config, *, xp: Namespace | None = None) -> Distance[Any]:
    """The distance d(a, b) that the settings of a run name.

    Args:
        config: `data.shape` and `loss` decide the distance and its constant.
        xp: array namespace; inferred from a when omitted.
    """
    c = huber_constant(config.data.dim, factor=config.loss.huber_factor)
    return partial(DISTANCES[config.loss.distance](c), xp=xp)


def _given(x: Array, sigma: Array, /) -> Array:
    """The teacher at sigma_min, f(x, sigma_min) = x: no network is needed."""
    return x


def batch_loss(
    student: MaskedNetwork[Array],
    config: Config,
    batch: Batch[Array],
    *,
    without_gradient: Callable[[ConsistencyFunction[Array]], ConsistencyFunction[Array]] = teacher_of,
    teacher: MaskedNetwork[Array] | None = None,
    distance: Distance[Array] | None = None,
    xp: Namespace | None = None,
) -> ConsistencyLoss[Array]:
    """The loss of a batch: `consistency_loss` of a network, which teaches itself unless there is another teacher.

    With `curriculum.schedule` = "diffusion", the target is x + sigma_min z itself: one pass less, and the loss of a
    diffusion model.

    Args:
        student: the network in training, F(x_in, c_noise, labels, masks).
        config: its `noise`, `loss` and `data.shape` decide the scalings and the distance.
        batch: each network is given its labels; the student its `masks`, the teacher its `teacher_masks`.
        without_gradient: turns a consistency function into one that no gradient passes through; a cheaper one than
            `teacher_of` where the network draws nothing by itself.
        teacher: the network of a teacher that has weights of its own (`teacher.decay` > 0).
        distance: d(a, b) -> [b], in place of the one that the settings name: one of your own.
        xp: array namespace; inferred from `batch.x` when omitted.

    Returns:
        `ConsistencyLoss(mean [], per_sample [b])`.

    Raises:
        TypeError, ValueError: naming the argument.
    """
    other = student if teacher is None else teacher
    taught = without_gradient(consistency_function(other, config.noise, batch.labels, batch.teacher_masks, xp=xp))
    return consistency_loss(
        consistency_function(student, config.noise, batch.labels, batch.masks, xp=xp),
        taught if config.curriculum.has_teacher else _given,
        x=batch.x,
        z=batch.z,
        sigma_lo=batch.sigma_lo,
        sigma_hi=batch.sigma_hi,
        weight=batch.weight,
        distance=distance_of(config, xp=xp) if distance is None else distance,
        xp=xp,
    )
