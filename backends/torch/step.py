"""One training step, in torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from array_api_compat import torch as xp
from ict_backends.networks import mask_shapes
from ict_backends.plan import StepPlan
from ict_backends.torch.networks import Network, make_network
from torch import Tensor

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
    """

    step: int
    params: Network
    ema: Network
    optimizer: torch.optim.RAdam


def init_state(config: Config, device: torch.device) -> TrainState:
    """The state before the first step: weights from the seed, EMA equal to them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        params = make_network(config)
    params = params.to(device)
    ema = copy.deepcopy(params).requires_grad_(False)
    # foreach: on the CPU, where it is not the default, the step takes a third of the time.
    optimizer = torch.optim.RAdam(
        params.parameters(), lr=config.train.learning_rate, betas=config.train.betas, foreach=True
    )
    return TrainState(0, params, ema, optimizer)


def consistency_function(
    network: Network, config: Config, labels: Tensor | None = None, masks: Sequence[Tensor] | None = None
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


def draw_masks(config: Config, batch: int, generator: torch.Generator) -> list[Tensor] | None:
    """Dropout masks for one step, or None without dropout: bool [b, c, h, w], channels_last in memory.

    They are drawn once and handed to both passes, so that student and teacher share them on every device.
    """
    rate = config.network.dropout
    if rate == 0:
        return None
    return [
        (torch.rand(batch, h, w, c, generator=generator, device=generator.device) >= rate).permute(0, 3, 1, 2)
        for c, h, w in mask_shapes(config)
    ]


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
    generator = torch.Generator(device).manual_seed(plan.device_seed)
    flips = torch.from_numpy(plan.flips).to(device)[:, None, None, None]
    x = torch.where(flips, images.flip(3), images).float() / 127.5 - 1.0
    z = torch.randn(x.shape, generator=generator, device=device)
    levels = (torch.from_numpy(values).float().to(device) for values in plan.levels)
    return Batch(x, z, *levels, labels, draw_masks(config, len(x), generator))


def batch_loss(network: Network, config: Config, batch: Batch) -> ConsistencyLoss:
    """The objective: the teacher is the student itself, with the same masks and without gradient."""
    f = consistency_function(network, config, batch.labels, batch.masks)
    c = huber_constant(config.data.dim, factor=config.loss.huber_factor)
    return consistency_loss(f, torch.no_grad()(f), *batch[:5], c=c, xp=xp)


def train_step(state: TrainState, config: Config, batch: Batch) -> Tensor:
    """Advance `state` in place by one step. Returns the [b] weighted losses, on the device: nothing waits for it."""
    loss = batch_loss(state.params, config, batch)
    state.optimizer.zero_grad(set_to_none=True)
    loss.mean.backward()
    state.optimizer.step()
    update_ema(state, config.train.ema_decay)
    state.step += 1
    return loss.per_sample.detach()


def update_ema(state: TrainState, decay: float) -> None:
    """ema <- decay ema + (1 - decay) params."""
    torch._foreach_lerp_(list(state.ema.parameters()), [p.detach() for p in state.params.parameters()], 1.0 - decay)
