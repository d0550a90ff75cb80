"""From the plan of a step to its batch on the device, in torch: images, levels, noise and dropout masks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from array_api_compat import torch as xp
from torch import Tensor

from ict_backends.networks.families import mask_shapes
from ict_backends.networks.layers import dropped_numbers
from ict_backends.torch.device import compiled_on_gpu, upload
from ict_backends.training.step_plan import StepPlan
from ict_core import NO_CLASS, Batch, Config, dropout_bytes, key_words, normal_noise

_normal_noise, _dropout_bytes = compiled_on_gpu(normal_noise), compiled_on_gpu(dropout_bytes)
# Words of the masks that are drawn at a time on the CPU: as many as its caches hold.
_MOST_WORDS = 2**18


class Draw(NamedTuple):
    """The plan of a batch of b images, on the device.

    Attributes:
        indices: [b] int64, positions in the data set.
        flips: [b] bool, True to mirror the image left to right.
        sigma_lo, sigma_hi, weight: [b] float32, the levels of teacher and student, and the weight of the loss.
        keys: [b, 2] int32, the words of each image's random key (`ict_core.key_words`).
        unlabelled: [b] bool, True for the images whose label is dropped.
    """

    indices: Tensor
    flips: Tensor
    sigma_lo: Tensor
    sigma_hi: Tensor
    weight: Tensor
    keys: Tensor
    unlabelled: Tensor

    def parts(self, count: int) -> list[Draw]:
        """The draws of `count` equal parts of the batch, with [b / count] rows each; `count` divides b."""
        return [Draw(*rows) for rows in zip(*(a.chunk(count) for a in self), strict=True)]


def to_device(plan: StepPlan, device: torch.device) -> Draw:
    """Copy the plan of a step of b images to the device, without waiting for the copy."""
    sigma_lo, sigma_hi, weight = upload(np.stack(plan.levels).astype(np.float32), device)
    flips, unlabelled = upload(np.stack([plan.flips, plan.unlabelled]), device)
    indices, keys = (upload(a, device) for a in (plan.indices, key_words(plan.row_seeds)))
    return Draw(indices, flips, sigma_lo, sigma_hi, weight, keys, unlabelled)


def make_batch(config: Config, draw: Draw, images: Tensor, labels: Tensor | None) -> Batch:
    """The batch that a draw takes from a data set.

    Args:
        draw: the plan of the batch, on the device.
        images: [n, c, h, w] uint8.
        labels: [n] int64, or None.

    Returns:
        A `Batch` of images [b, c, h, w] float32 in [-1, 1], with their noise, levels, weights, labels and masks.
    """
    chosen = images[draw.indices]
    x = torch.where(draw.flips[:, None, None, None], chosen.flip(3), chosen).float() / 127.5 - 1.0
    z, masks, teacher_masks = draw_noise(config, draw.keys)
    chosen_labels = None if labels is None else labels[draw.indices].masked_fill(draw.unlabelled, NO_CLASS)
    return Batch(x, z, draw.sigma_lo, draw.sigma_hi, draw.weight, chosen_labels, masks, teacher_masks)


def draw_noise(config: Config, keys: Tensor) -> tuple[Tensor, list[Tensor] | None, list[Tensor] | None]:
    """The noise of a batch and the dropout masks of student and teacher; those of an image depend only on its key.

    The masks are drawn once and handed to both passes, so that student and teacher share them on every device, unless
    `teacher.share_dropout` is false. Both backends draw the same numbers.

    Args:
        keys: [b, 2] int32, the words of each image's key (`ict_core.key_words`).

    Returns:
        Standard normal noise, [b, c, h, w] float32, then for student and teacher the list of their masks, bool
        [b, *shape] for each of `mask_shapes`, or None without dropout.
    """
    rate, shapes = config.network.dropout, mask_shapes(config)
    drawn = shapes if config.teacher.share_dropout else shapes * 2
    channels, height, width = config.data.shape
    z = _normal_noise(keys, config.data.dim, xp=xp).view(-1, height, width, channels).permute(0, 3, 1, 2)
    if not rate:
        return z, None, None
    sizes = [c * h * w for c, h, w in drawn]
    kept = _draw_bytes(keys, sum(sizes), dropped_numbers(rate)).view(torch.bool)[:, : sum(sizes)]
    # Like the activations that the masks are for, they have their channels last in memory.
    masks = [m.view(-1, h, w, c) for m, (c, h, w) in zip(kept.split(sizes, dim=1), drawn, strict=True)]
    masks = [m.permute(0, 3, 1, 2) for m in masks]
    return z, masks[: len(shapes)], masks[-len(shapes) :]


def _draw_bytes(keys: Tensor, count: int, dropped: int) -> Tensor:
    """`dropout_bytes` of all images, [b, 2] int32 keys: at once on a GPU, in groups of images on the CPU."""
    group = len(keys) if keys.device.type != "cpu" else max(1, 4 * _MOST_WORDS // count)
    parts = [_dropout_bytes(part, count, dropped=dropped, xp=xp) for part in keys.split(group)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
