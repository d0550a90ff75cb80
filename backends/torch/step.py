"""One training step, in torch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from array_api_compat import torch as xp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ict_backends.networks.families import dropped_numbers, mask_shapes
from ict_backends.torch.device import compiled_on_gpu, upload
from ict_backends.torch.flat import flatten, in_memory_order, unflatten
from ict_backends.torch.networks import Network, make_network
from ict_backends.torch.parallel import Processes, accumulating, full, local
from ict_backends.training.step_plan import StepPlan
from ict_core import (
    Config,
    ConsistencyLoss,
    LossScale,
    consistency_loss,
    consistency_output,
    dropout_bytes,
    huber_constant,
    key_words,
    next_loss_scale,
    normal_noise,
)
from ict_core.loss import ConsistencyFunction
from ict_core.loss_scale import FIRST_FACTOR

# train.precision -> what the network computes in; None for the dtype of its weights.
PRECISIONS = {"float32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
        step: steps done; the next one to do, counted from 0.
        params: the network with the weights in training.
        ema: the same network with their moving average, for sampling only.
        optimizer: RAdam over `trained`.
        student: what a step evaluates: `params`, or what makes its gradient that of all processes.
        trained, averaged: all weights of `params` and of `ema` as one vector, which they are views of. Where each
            process holds a part of every array: the arrays.
        loss_scale: where the network computes in float16; on the host.
        teacher: the network with the teacher's weights, where they are not the student's own.
        taught: they, as `averaged` is of `ema`.
    """

    step: int
    params: Network
    ema: Network
    optimizer: torch.optim.RAdam
    student: nn.Module
    trained: list[nn.Parameter]
    averaged: list[Tensor]
    loss_scale: LossScale | None
    teacher: Network | None
    taught: list[Tensor]

    def moments(self, key: str) -> Mapping[str, Tensor]:
        """The optimiser's "exp_avg" or "exp_avg_sq" by the name of the parameter; who changes them changes it."""
        found = [self.optimizer.state[p][key] for p in self.trained]
        if isinstance(self.trained[0], DTensor):
            names = (name for name, _ in self.params.named_parameters())
            return dict(zip(names, found, strict=True))
        return unflatten(found[0], self.params)


def init_state(config: Config, processes: Processes) -> TrainState:
    """The state before the first step: weights from the seed, EMA equal to them."""
    params = init_network(config)
    teacher = copy.deepcopy(params) if config.teacher.averaged else None
    return make_state(config, 0, params, copy.deepcopy(params), processes, teacher)


def init_network(config: Config) -> Network:
    """A network with the weights of the seed, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return make_network(config)


def make_state(
    config: Config, step: int, params: Network, ema: Network, processes: Processes, teacher: Network | None = None
) -> TrainState:
    """The state after `step` steps that led to these weights; all moments are zero.

    Args:
        teacher: the teacher's network where its weights are not the student's (`teacher.decay` > 0).
    """
    followers = [network for network in (ema, teacher) if network is not None]
    for network in (params, *followers):
        network.to(processes.device).requires_grad_(network is params)
        if config.train.compile and network is not ema:
            network.compile(dynamic=False)
    sharded = config.train.shard_weights and processes.world > 1
    flat = None if sharded else nn.Parameter(flatten(params))
    student = processes.share(params, shard=sharded)
    trained = [*params.parameters()] if flat is None else [flat]
    averaged, taught = (
        [] if network is None else _weights(network, processes, shard=sharded) for network in (ema, teacher)
    )
    optimizer = torch.optim.RAdam(trained, lr=config.train.learning_rate, betas=config.train.betas, foreach=True)
    for parameter in trained:
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    scale = first_loss_scale(config)
    return TrainState(step, params, ema, optimizer, student, trained, averaged, scale, teacher, taught)


def _weights(network: Network, processes: Processes, *, shard: bool) -> list[Tensor]:
    """All weights of a network that follows another, as one vector or as this process's part of each array."""
    if not shard:
        return [flatten(network)]
    processes.share(network, shard=True)
    return [local(p) for p in network.parameters()]


def first_loss_scale(config: Config) -> LossScale | None:
    """What a run in float16 begins with."""
    if config.train.precision != "fp16":
        return None
    return LossScale(torch.tensor(FIRST_FACTOR), torch.tensor(0, dtype=torch.int32))


def consistency_function(
    network: nn.Module, config: Config, labels: Tensor | None = None, masks: Sequence[Tensor] | None = None
) -> ConsistencyFunction:
    """f(x, sigma) of a network, with labels and dropout masks given, the network in `train.precision`."""
    dtype = PRECISIONS[config.train.precision]

    def f(x: Tensor, sigma: Tensor) -> Tensor:
        return consistency_output(
            lambda x_in, c_noise, y: network(x_in if dtype is None else x_in.to(dtype), c_noise, y, masks),
            x,
            sigma,
            labels,
            sigma_data=config.noise.sigma_data,
            sigma_min=config.noise.sigma_min,
            xp=xp,
        )

    return f


_normal_noise, _dropout_bytes = compiled_on_gpu(normal_noise), compiled_on_gpu(dropout_bytes)


def draw_noise(config: Config, keys: Tensor) -> tuple[Tensor, list[Tensor] | None, list[Tensor] | None]:
    """The noise of one step, [b, c, h, w], and the dropout masks of student and teacher, each bool [b, c, h, w], or
    None without dropout.

    Each image has those of its key, [b, 2] int32, in both backends. The masks are drawn once and handed to both passes,
    so that student and teacher share them on every device, unless `teacher.share_dropout` is false.
    """
    rate, shapes = config.network.dropout, mask_shapes(config)
    drawn = shapes if config.teacher.share_dropout else shapes * 2
    channels, height, width = config.data.shape
    z = _normal_noise(keys, config.data.dim, xp=xp).view(-1, height, width, channels).permute(0, 3, 1, 2)
    if not rate:
        return z, None, None
    sizes = [c * h * w for c, h, w in drawn]
    kept = _draw_bytes(keys, sum(sizes), dropped_numbers(rate)).view(torch.bool)[:, : sum(sizes)]
    # Like the activations that they are for, the masks have their channels last in memory.
    masks = [m.view(-1, h, w, c) for m, (c, h, w) in zip(kept.split(sizes, dim=1), drawn, strict=True)]
    masks = [m.permute(0, 3, 1, 2) for m in masks]
    return z, masks[: len(shapes)], masks[-len(shapes) :]


# Words of the masks drawn at a time on the CPU: what its caches hold.
_MOST_WORDS = 2**18


def _draw_bytes(keys: Tensor, count: int, dropped: int) -> Tensor:
    """`dropout_bytes` of all images: on a GPU at once, on the CPU in groups."""
    group = len(keys) if keys.device.type != "cpu" else max(1, 4 * _MOST_WORDS // count)
    parts = [_dropout_bytes(part, count, dropped=dropped, xp=xp) for part in keys.split(group)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Draw(NamedTuple):
    """The plan of a batch as the device needs it.

    Attributes:
        indices: [b] int64.
        flips: [b] bool.
        sigma_lo, sigma_hi, weight: [b] float32.
        keys: [b, 2] int32.
    """

    indices: Tensor
    flips: Tensor
    sigma_lo: Tensor
    sigma_hi: Tensor
    weight: Tensor
    keys: Tensor

    def parts(self, count: int) -> list[Draw]:
        """The draws of `count` equal parts of the batch, which it divides by."""
        return [Draw(*rows) for rows in zip(*(a.chunk(count) for a in self), strict=True)]


def to_device(plan: StepPlan, device: torch.device) -> Draw:
    """The plan of a step on the device; nothing waits for the copy."""
    levels = upload(np.stack(plan.levels).astype(np.float32), device)
    indices, flips, keys = (upload(a, device) for a in (plan.indices, plan.flips, key_words(plan.row_seeds)))
    return Draw(indices, flips, *levels, keys)


class Batch(NamedTuple):
    """What one step computes its loss from, on the device.

    Attributes:
        x: [b, c, h, w] float32 in [-1, 1].
        z: [b, c, h, w] standard normal noise, the same for student and teacher.
        sigma_lo, sigma_hi, weight: [b] float32.
        labels: [b] int64, or None.
        masks, teacher_masks: dropout masks, the same for student and teacher unless asked otherwise, or None.
    """

    x: Tensor
    z: Tensor
    sigma_lo: Tensor
    sigma_hi: Tensor
    weight: Tensor
    labels: Tensor | None
    masks: list[Tensor] | None
    teacher_masks: list[Tensor] | None


def make_batch(config: Config, draw: Draw, images: Tensor, labels: Tensor | None) -> Batch:
    """Turn the draw of a step and the data set, [n, c, h, w] uint8 and [n], into a batch."""
    chosen = images[draw.indices]
    x = torch.where(draw.flips[:, None, None, None], chosen.flip(3), chosen).float() / 127.5 - 1.0
    z, *masks = draw_noise(config, draw.keys)
    chosen_labels = None if labels is None else labels[draw.indices]
    return Batch(x, z, draw.sigma_lo, draw.sigma_hi, draw.weight, chosen_labels, *masks)


def batch_loss(network: nn.Module, config: Config, batch: Batch, teacher: nn.Module | None = None) -> ConsistencyLoss:
    """The objective: the teacher is the student itself, with the same masks and without gradient.

    Args:
        teacher: the network of a teacher with other weights (`teacher.decay` > 0).
    """
    student = consistency_function(network, config, batch.labels, batch.masks)
    target = consistency_function(network if teacher is None else teacher, config, batch.labels, batch.teacher_masks)
    c, distance = huber_constant(config.data.dim, factor=config.loss.huber_factor), config.loss.distance
    return consistency_loss(student, torch.no_grad()(target), *batch[:5], c=c, distance=distance, xp=xp)


class StepResult(NamedTuple):
    """What a step leaves for the log, on the device.

    Attributes:
        losses: [b] weighted losses of this process's images.
        grad_norm: [] norm of the gradient, that of all processes.
    """

    losses: Tensor
    grad_norm: Tensor


def train_step(
    state: TrainState, config: Config, batches: Iterable[Batch], *, parts: int = 1, teacher_decay: float = 0.0
) -> StepResult:
    """Advance `state` in place by one step over `parts` equally large batches, whose gradients add up.

    The teacher's weights, where it has its own, follow the student's by `teacher_decay`.

    Nothing waits for the device, unless `train.on_nonfinite` is "skip" or the loss is scaled: then the weights stay as
    they are where a loss or the gradient is not finite.
    """
    state.params.zero_grad(set_to_none=True)
    losses, scale = [], state.loss_scale
    factor = 1.0 if scale is None else float(scale.factor)
    for i, batch in enumerate(batches, start=1):
        with accumulating(state.student, last=i == parts):
            loss = batch_loss(state.student, config, batch, state.teacher)
            (loss.mean * (factor / parts)).backward()
        losses.append(loss.per_sample.detach())
    result = StepResult(torch.cat(losses), take_gradient(state, factor))
    finite = (config.train.on_nonfinite == "stop" and scale is None) or bool(result.grad_norm.isfinite())
    if finite:
        state.optimizer.step()
        update_ema(state.averaged, state.trained, config.train.ema_decay)
        update_ema(state.taught, state.trained, teacher_decay)
    else:
        for moments in state.optimizer.state.values():  # a step it is all the same
            moments["step"] += 1
    if scale is not None:
        state.loss_scale = next_loss_scale(scale, torch.tensor(finite), xp=xp)
    state.step += 1
    return result


def take_gradient(state: TrainState, factor: float) -> Tensor:
    """Hand the gradient, divided by the loss's factor, to the optimiser. Returns its norm, [].

    A loss that is not finite makes the norm so, too.
    """
    if not isinstance(state.trained[0], DTensor):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in state.params.parameters()]
        state.trained[0].grad = torch.cat([in_memory_order(g) for g in gradients])
    gradients = [p.grad for p in state.trained if p.grad is not None]
    if factor != 1.0:
        torch._foreach_div_(gradients, factor)
    return full(nn.utils.get_total_norm(gradients))


def update_ema(averaged: list[Tensor], trained: list[nn.Parameter], decay: float) -> None:
    """averaged <- decay averaged + (1 - decay) trained; nothing where there is no average."""
    if averaged:
        torch._foreach_lerp_(averaged, [local(p) for p in trained], 1.0 - decay)
