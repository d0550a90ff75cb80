"""One training step, in torch."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from array_api_compat import torch as xp
from ict_backends.networks import mask_shapes
from ict_backends.plan import StepPlan
from ict_backends.torch.networks import Network, make_network
from ict_backends.torch.parallel import Processes, accumulating, full, local
from torch import Tensor, nn

from ict_core import Config, ConsistencyLoss, consistency_loss, consistency_output, huber_constant
from ict_core.loss import ConsistencyFunction


@dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
        step: steps done; the next one to do, counted from 0.
        params: the network with the weights in training.
        ema: the same network with their moving average, for sampling only.
        optimizer: RAdam over `params`.
        student: what a step evaluates: `params`, or what makes its gradient that of all processes.
    """

    step: int
    params: Network
    ema: Network
    optimizer: torch.optim.RAdam
    student: nn.Module


def init_state(config: Config, processes: Processes) -> TrainState:
    """The state before the first step: weights from the seed, EMA equal to them."""
    params = init_network(config)
    return make_state(config, 0, params, copy.deepcopy(params), processes)


def init_network(config: Config) -> Network:
    """A network with the weights of the seed, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return make_network(config)


def make_state(config: Config, step: int, params: Network, ema: Network, processes: Processes) -> TrainState:
    """The state after `step` steps that led to these weights; all moments are zero."""
    params, ema = params.to(processes.device), ema.to(processes.device)
    student = processes.share(params, shard=config.train.shard_weights)
    ema.requires_grad_(False)
    if config.train.shard_weights:
        processes.share(ema, shard=True)
    # foreach: on the CPU, where it is not the default, the step takes a third of the time.
    optimizer = torch.optim.RAdam(
        params.parameters(), lr=config.train.learning_rate, betas=config.train.betas, foreach=True
    )
    for parameter in params.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return TrainState(step, params, ema, optimizer, student)


def consistency_function(
    network: nn.Module, config: Config, labels: Tensor | None = None, masks: Sequence[Tensor] | None = None
) -> ConsistencyFunction:
    """f(x, sigma) of a network, with labels and dropout masks given."""

    def f(x: Tensor, sigma: Tensor) -> Tensor:
        return consistency_output(
            lambda x_in, c_noise, y: network(x_in, c_noise, y, masks),
            x,
            sigma,
            labels,
            sigma_data=config.noise.sigma_data,
            sigma_min=config.noise.sigma_min,
            xp=xp,
        )

    return f


def draw_noise(config: Config, row_seeds: Sequence[int], device: torch.device) -> tuple[Tensor, list[Tensor] | None]:
    """The noise of one step, [b, c, h, w], and its dropout masks, bool [b, c, h, w], or None without dropout.

    Each image has those of its seed. The masks are drawn once and handed to both passes, so that student and teacher
    share them on every device.
    """
    rate, shapes = config.network.dropout, mask_shapes(config)
    sizes = [c * h * w for c, h, w in shapes]
    z = torch.empty(len(row_seeds), *config.data.shape, device=device)
    kept = torch.empty(len(row_seeds), sum(sizes), dtype=torch.bool, device=device) if rate else None
    generator = torch.Generator(device)
    for i, seed in enumerate(row_seeds):
        generator.manual_seed(int(seed))
        torch.randn(config.data.shape, generator=generator, out=z[i])
        if kept is not None:
            torch.ge(torch.rand(sum(sizes), generator=generator, device=device), rate, out=kept[i])
    if kept is None:
        return z, None
    # Like the activations that they are for, the masks have their channels last in memory.
    masks = [m.view(-1, h, w, c) for m, (c, h, w) in zip(kept.split(sizes, dim=1), shapes, strict=True)]
    return z, [m.permute(0, 3, 1, 2) for m in masks]


class Batch(NamedTuple):
    """What one step computes its loss from, on the device.

    Attributes:
        x: [b, c, h, w] float32 in [-1, 1].
        z: [b, c, h, w] standard normal noise, the same for student and teacher.
        sigma_lo, sigma_hi, weight: [b] float32.
        labels: [b] int64, or None.
        masks: dropout masks, the same for student and teacher, or None.
    """

    x: Tensor
    z: Tensor
    sigma_lo: Tensor
    sigma_hi: Tensor
    weight: Tensor
    labels: Tensor | None
    masks: list[Tensor] | None


def make_batch(config: Config, plan: StepPlan, images: Tensor, labels: Tensor | None) -> Batch:
    """Turn the plan of a step and its images, [b, c, h, w] uint8 on the device, into a batch."""
    device = images.device
    flips = torch.from_numpy(plan.flips).to(device)[:, None, None, None]
    x = torch.where(flips, images.flip(3), images).float() / 127.5 - 1.0
    levels = (torch.from_numpy(values).float().to(device) for values in plan.levels)
    z, masks = draw_noise(config, plan.row_seeds, device)
    return Batch(x, z, *levels, labels, masks)


def batch_loss(network: nn.Module, config: Config, batch: Batch) -> ConsistencyLoss:
    """The objective: the teacher is the student itself, with the same masks and without gradient."""
    f = consistency_function(network, config, batch.labels, batch.masks)
    c = huber_constant(config.data.dim, factor=config.loss.huber_factor)
    return consistency_loss(f, torch.no_grad()(f), *batch[:5], c=c, xp=xp)


class StepResult(NamedTuple):
    """What a step leaves for the log, on the device.

    Attributes:
        losses: [b] weighted losses of this process's images.
        grad_norm: [] norm of the gradient, that of all processes.
    """

    losses: Tensor
    grad_norm: Tensor


def train_step(state: TrainState, config: Config, batches: Iterable[Batch], *, parts: int = 1) -> StepResult:
    """Advance `state` in place by one step over `parts` equally large batches, whose gradients add up.

    Nothing waits for the device, unless `train.on_nonfinite` is "skip": then the weights stay as they are where a
    loss or the gradient is not finite.
    """
    state.optimizer.zero_grad(set_to_none=True)
    losses = []
    for i, batch in enumerate(batches, start=1):
        with accumulating(state.student, last=i == parts):
            loss = batch_loss(state.student, config, batch)
            (loss.mean / parts).backward()
        losses.append(loss.per_sample.detach())
    result = StepResult(torch.cat(losses), gradient_norm(state.params))
    if config.train.on_nonfinite == "stop" or bool(result.grad_norm.isfinite()):
        state.optimizer.step()
        update_ema(state, config.train.ema_decay)
    else:
        for moments in state.optimizer.state.values():  # a step it is all the same
            moments["step"] += 1
    state.step += 1
    return result


def gradient_norm(network: Network) -> Tensor:
    """[] the norm of the whole gradient. A loss that is not finite makes it so, too."""
    return full(nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None], foreach=True))


def update_ema(state: TrainState, decay: float) -> None:
    """ema <- decay ema + (1 - decay) params."""
    ema, params = ([local(p) for p in network.parameters()] for network in (state.ema, state.params))
    torch._foreach_lerp_(ema, params, 1.0 - decay)
