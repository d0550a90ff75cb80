"""The state that training changes, in torch: the weights, their averages, and the optimiser's moments."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ict_backends.torch.flat import flatten, unflatten
from ict_backends.torch.networks import UNet, make_network
from ict_backends.torch.parallel import Processes, local
from ict_core import Config, LossScale
from ict_core.loss_scale import FIRST_FACTOR

_Array = TypeVar("_Array", bound=Tensor)


@dataclass(frozen=True)
class Weights(Generic[_Array]):
    """A network, and its weights in the form that an optimiser or an average takes.

    Attributes:
        network: the network.
        arrays: a list of one vector, [n], of all weights; the weights of `network` are views of it. If each process
            holds only a part of every weight: the list of this process's parts.
    """

    network: UNet
    arrays: list[_Array]


@dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
        step: number of steps done, which is also the number of the next step, counted from 0.
        params: the weights in training.
        forward: the network that a step evaluates: that of `params`, or its DDP or FSDP wrapper.
        ema: the moving average of the weights, used only for sampling.
        teacher: the teacher's weights; None if they are the student's own.
        optimizer: the optimiser over the arrays of `params`.
        loss_scale: the scale of the loss, on the host, if the network computes in float16, else None.
        averages: the averages of `train.ema_sigma_rel`, by their names.
    """

    step: int
    params: Weights[nn.Parameter]
    forward: nn.Module
    ema: Weights[Tensor]
    teacher: Weights[Tensor] | None
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale | None
    averages: dict[str, Weights[Tensor]]

    def optimizer_moments(self, key: str) -> Mapping[str, Tensor]:
        """The optimiser's moments, by name and in the shapes of the weights; writing into them changes the optimiser's.

        Args:
            key: "exp_avg" or "exp_avg_sq".
        """
        moments = [self.optimizer.state[p][key] for p in self.params.arrays]
        if isinstance(self.params.arrays[0], DTensor):
            names = (name for name, _ in self.params.network.named_parameters())
            return dict(zip(names, moments, strict=True))
        return unflatten(moments[0], self.params.network)


def init_state(config: Config, processes: Processes) -> TrainState:
    """The state before the first step: weights drawn by `train.seed`, and averages equal to them."""
    network = init_network(config)
    teacher = copy.deepcopy(network) if config.teacher.averaged else None
    averages = {name: copy.deepcopy(network) for name in config.train.average_exponents}
    return make_state(config, 0, network, copy.deepcopy(network), processes, teacher, averages)


def init_network(config: Config) -> UNet:
    """A new network on the CPU, with weights drawn by `train.seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        return make_network(config)


def make_state(
    config: Config,
    step: int,
    student: UNet,
    ema: UNet,
    processes: Processes,
    teacher: UNet | None = None,
    averages: Mapping[str, UNet] | None = None,
) -> TrainState:
    """The state after `step` steps that have led to these weights, except that all moments of the optimiser are zero.

    Args:
        step: number of steps done, >= 0.
        student, ema: networks with the weights and with their average; both are moved to the process's device.
        processes: the processes that train together.
        teacher: a network with the teacher's weights, if they are not the student's (`teacher.decay` > 0).
        averages: networks with the averages of `train.ema_sigma_rel`, by their names.
    """
    sharded = config.train.shard_weights and processes.world > 1
    student.to(processes.device).requires_grad_(True)
    if config.train.compile:
        student.compile(dynamic=False)
        if teacher is not None:
            teacher.compile(dynamic=False)
    flat = None if sharded else nn.Parameter(flatten(student))
    forward = processes.share(student, shard=sharded)
    params = Weights(student, [*student.parameters()] if flat is None else [flat])
    return TrainState(
        step,
        params,
        forward,
        _following(ema, processes, shard=sharded),
        None if teacher is None else _following(teacher, processes, shard=sharded),
        _make_optimizer(config, step, params.arrays),
        first_loss_scale(config),
        {name: _following(average, processes, shard=sharded) for name, average in (averages or {}).items()},
    )


def _following(network: UNet, processes: Processes, *, shard: bool) -> Weights[Tensor]:
    """The weights of a network that is not trained but follows the trained one, moved to the process's device."""
    network.to(processes.device).requires_grad_(False)
    if not shard:
        return Weights(network, [flatten(network)])
    processes.share(network, shard=True)
    return Weights(network, [local(p) for p in network.parameters()])


def _make_optimizer(config: Config, step: int, arrays: list[nn.Parameter]) -> torch.optim.Optimizer:
    """RAdam or Adam after `step` steps, with all moments zero."""
    train, (beta_1, beta_2) = config.train, config.train.betas
    optimizer = (torch.optim.RAdam if train.optimizer == "radam" else torch.optim.Adam)(
        arrays,
        lr=train.learning_rate,
        betas=(beta_1, beta_2),
        weight_decay=train.weight_decay,
        decoupled_weight_decay=True,
        foreach=True,
    )
    for parameter in arrays:
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def first_loss_scale(config: Config) -> LossScale | None:
    """The scale of the loss that a run in float16 begins with; None in every other precision."""
    if config.train.precision != "fp16":
        return None
    return LossScale(torch.tensor(FIRST_FACTOR), torch.tensor(0, dtype=torch.int32))
