"""From the plan of a step to its batch on the devices, in JAX: images, levels, noise and dropout masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ict_backends.jax.device import put, replicated, split
from ict_backends.networks.families import mask_shapes
from ict_backends.networks.layers import dropped_numbers
from ict_backends.training.step_plan import StepPlan
from ict_core import NO_CLASS, Batch, Config, dropout_bytes, key_words, normal_noise


class Draw(NamedTuple):
    """The plan of a batch of b images, on the device.

    The draws of several steps in parts are one `Draw` with two axes more, [steps, parts, ...], in front of each array.

    Attributes:
        indices: [b] int32, positions in the data set.
        flips: [b] bool, True to mirror the image left to right.
        sigma_lo, sigma_hi, weight: [b] float32, the levels of teacher and student, and the weight of the loss.
        keys: [b, 2] int32, the words of each image's random key (`ict_core.key_words`).
        teacher_rate: [] float32, 1 - the decay of the teacher's average after the step. It is computed in float64: in
            float32, the difference of nearly equal numbers would have few digits.
        learning_rate: [] float32, the learning rate of the step.
        unlabelled: [b] bool, True for the images whose label is dropped.
        average_rates: [] float32 each, by name: 1 - the decays of the averages of `train.ema_sigma_rel` after the step,
            computed in float64.
    """

    indices: Array
    flips: Array
    sigma_lo: Array
    sigma_hi: Array
    weight: Array
    keys: Array
    teacher_rate: Array
    learning_rate: Array
    unlabelled: Array
    average_rates: dict[str, Array]


def to_device(plans: Sequence[StepPlan], mesh: Mesh, parts: int = 1) -> Draw:
    """Copy the plans of successive steps of b images to the devices, each part split over them.

    Args:
        plans: the plans of the steps, of equal batch size b.
        mesh: the devices.
        parts: number of micro-batches of a step; divides b.

    Returns:
        A `Draw` of arrays [steps, parts, b / parts, ...]; all rates are [steps, parts].
    """
    columns = [
        (
            plan.indices.astype(np.int32),
            plan.flips,
            *(a.astype(np.float32) for a in plan.levels),
            key_words(plan.row_seeds),
            plan.unlabelled,
        )
        for plan in plans
    ]
    arrays = (np.stack(column) for column in zip(*columns, strict=True))
    indices, flips, sigma_lo, sigma_hi, weight, keys, unlabelled = (
        put(a.reshape(len(plans), parts, -1, *a.shape[2:]), split(mesh, axis=2)) for a in arrays
    )

    def a_step(values: Sequence[float]) -> Array:
        return put(np.repeat(np.array(values, np.float32)[:, None], parts, axis=1), replicated(mesh))

    teacher_rate = a_step([1.0 - plan.teacher_decay for plan in plans])
    learning_rate = a_step([plan.learning_rate for plan in plans])
    averages = {name: a_step([1.0 - plan.average_decays[name] for plan in plans]) for name in plans[0].average_decays}
    return Draw(indices, flips, sigma_lo, sigma_hi, weight, keys, teacher_rate, learning_rate, unlabelled, averages)


def make_batch(config: Config, draw: Draw, images: Array, labels: Array | None) -> Batch:
    """The batch that a draw takes from a data set.

    Args:
        draw: the plan of the batch, on the device.
        images: [n, h, w, c] uint8.
        labels: [n] int32, or None.

    Returns:
        A `Batch` of images [b, h, w, c] float32 in [-1, 1], with their noise, levels, weights, labels and masks.
    """
    chosen = images[draw.indices]
    flipped = jnp.where(draw.flips[:, None, None, None], chosen[:, :, ::-1], chosen)
    x = flipped.astype(jnp.float32) / 127.5 - 1.0
    z, masks, teacher_masks = draw_noise(config, draw.keys)
    chosen_labels = None if labels is None else jnp.where(draw.unlabelled, NO_CLASS, labels[draw.indices])
    return Batch(x, z, draw.sigma_lo, draw.sigma_hi, draw.weight, chosen_labels, masks, teacher_masks)


def draw_noise(config: Config, keys: Array) -> tuple[Array, list[Array] | None, list[Array] | None]:
    """The noise of a batch and the dropout masks of student and teacher; those of an image depend only on its key.

    The masks are drawn once and handed to both passes, so that student and teacher share them on every device, unless
    `teacher.share_dropout` is false. Both backends draw the same numbers.

    Args:
        keys: [b, 2] int32, the words of each image's key (`ict_core.key_words`).

    Returns:
        Standard normal noise, [b, h, w, c] float32, then for student and teacher the list of their masks, bool
        [b, h, w, c] for each of `mask_shapes`, or None without dropout.
    """
    rate, shapes = config.network.dropout, mask_shapes(config)
    drawn = shapes if config.teacher.share_dropout else shapes * 2
    channels, height, width = config.data.shape
    z = normal_noise(keys, config.data.dim, xp=jnp).reshape(-1, height, width, channels)
    if not rate:
        return z, None, None
    sizes = [c * h * w for c, h, w in drawn]
    words = dropout_bytes(keys, sum(sizes), dropped=dropped_numbers(rate), xp=jnp)
    kept = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(len(keys), -1)[:, : sum(sizes)]
    parts = jnp.split(kept.astype(bool), np.cumsum(sizes)[:-1].tolist(), axis=1)
    masks = [m.reshape(-1, h, w, c) for m, (c, h, w) in zip(parts, drawn, strict=True)]
    return z, masks[: len(shapes)], masks[-len(shapes) :]
