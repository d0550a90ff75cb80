"""One training step, in torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from array_api_compat import torch as xp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ict_backends.torch.flat import in_memory_order
from ict_backends.torch.networks import in_precision
from ict_backends.torch.parallel import accumulating, full, local
from ict_backends.torch.state import TrainState, Weights
from ict_core import Batch, Config, ConsistencyLoss, next_loss_scale, objective
from ict_core.loss import ConsistencyFunction


class StepResult(NamedTuple):
    """The results of a step for the log, on the device.

    Attributes:
        losses: [b] float32 weighted losses of this process's images.
        grad_norm: [] norm of the gradient of the images of all processes.
    """

    losses: Tensor
    grad_norm: Tensor


def consistency_function(
    network: nn.Module, config: Config, labels: Tensor | None = None, masks: Sequence[Tensor] | None = None
) -> ConsistencyFunction:
    """The consistency function f(x, sigma) of a network that computes in `train.precision`.

    Args:
        network: the free network F.
        labels: [b] integers; None for an unconditional network.
        masks: dropout masks, as the network takes them; None for no dropout.
    """
    return objective.consistency_function(in_precision(network, config), config.noise, labels, masks, xp=xp)


def batch_loss(network: nn.Module, config: Config, batch: Batch, teacher: nn.Module | None = None) -> ConsistencyLoss:
    """The objective of a batch of b images: its mean, and [b] weighted losses.

    Args:
        network: the student's network, and the teacher's unless there is a `teacher`.
        batch: the images, noise, levels, weights, labels and masks.
        teacher: the network of a teacher that has weights of its own.
    """
    return objective.batch_loss(
        in_precision(network, config),
        config,
        batch,
        without_gradient=torch.no_grad(),
        teacher=None if teacher is None else in_precision(teacher, config),
        xp=xp,
    )


def train_step(
    state: TrainState,
    config: Config,
    batches: Iterable[Batch],
    *,
    parts: int = 1,
    teacher_decay: float = 0.0,
    learning_rate: float | None = None,
    average_decays: Mapping[str, float] | None = None,
) -> StepResult:
    """Advance `state` in place by one step over batches whose gradients add up.

    Nothing waits for the device, unless `train.on_nonfinite` is "skip" or the loss is scaled. In these two cases, the
    weights stay as they are if a loss or the gradient is not finite; the averages of `train.ema_sigma_rel`, which are
    of the weights after every step, count them once more.

    Args:
        batches: the micro-batches of the step, of equal size; their images are [b / parts, c, h, w].
        parts: number of `batches`.
        teacher_decay: the decay of the teacher's weights as an average of the student's, if it has weights of its own.
        learning_rate: the learning rate of this step; None for `train.learning_rate`.
        average_decays: the decays of the averages of `train.ema_sigma_rel`, by their names; None if there are none.
    """
    losses, scale = [], state.loss_scale
    factor = 1.0 if scale is None else float(scale.factor)
    teacher = None if state.teacher is None else state.teacher.network
    for i, batch in enumerate(batches, start=1):
        with accumulating(state.forward, last=i == parts):
            loss = batch_loss(state.forward, config, batch, teacher)
            (loss.mean * (factor / parts)).backward()
        losses.append(loss.per_sample.detach())
    result = StepResult(torch.cat(losses), take_gradient(state.params, factor, config.train.clip_norm))
    finite = (config.train.on_nonfinite == "stop" and scale is None) or bool(result.grad_norm.isfinite())
    if finite:
        for group in state.optimizer.param_groups:
            group["lr"] = config.train.learning_rate if learning_rate is None else learning_rate
        state.optimizer.step()
        update_ema(state.ema, state.params, config.train.ema_decay)
        if state.teacher is not None:
            update_ema(state.teacher, state.params, teacher_decay)
    else:
        for moments in state.optimizer.state.values():  # a skipped step counts as a step
            moments["step"] += 1
    for name, decay in (average_decays or {}).items():
        update_ema(state.averages[name], state.params, decay)
    state.optimizer.zero_grad()  # the next forward pass needs the memory
    if scale is not None:
        state.loss_scale = next_loss_scale(scale, torch.tensor(finite), xp=xp)
    state.step += 1
    return result


def take_gradient(params: Weights[nn.Parameter], factor: float, most: float = 0.0) -> Tensor:
    """Hand the gradient, divided by the loss's factor, to the optimiser, and return the gradient's norm, [].

    If a loss is not finite, neither is the norm. A gradient whose norm is larger than `most`, unless that is 0, is
    scaled down to it; the norm that is returned is that before.
    """
    if not isinstance(params.arrays[0], DTensor):
        params.arrays[0].grad = _as_vector(params.network)
        params.network.zero_grad()
    gradients = [p.grad for p in params.arrays if p.grad is not None]
    if factor != 1.0:
        torch._foreach_div_(gradients, factor)
    norm = nn.utils.get_total_norm(gradients)
    if most:
        nn.utils.clip_grads_with_norm_(params.arrays, most, norm)
    return full(norm)


def _as_vector(network: nn.Module) -> Tensor:
    """The gradient of all weights, [n], in the order of `flatten`."""
    gradients = (torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters())
    return torch.cat([in_memory_order(g) for g in gradients])


def update_ema(average: Weights[Tensor], params: Weights[nn.Parameter], decay: float) -> None:
    """Update the average in place: average <- decay average + (1 - decay) params."""
    torch._foreach_lerp_(average.arrays, [local(p) for p in params.arrays], 1.0 - decay)
