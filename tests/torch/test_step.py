"""The training step of the torch backend: each test stops one fault that public implementations have."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from ict_backends.data.dataset import Dataset
from ict_backends.torch.batch import make_batch, to_device
from ict_backends.torch.parallel import Processes
from ict_backends.torch.state import TrainState, init_state, make_state
from ict_backends.torch.step import batch_loss, consistency_function, train_step
from ict_backends.training.step_plan import plan_step
from ict_core import Batch, Config, pseudo_huber

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]


def randomize(network: torch.nn.Module) -> None:
    """Give every weight a value, those too that start at zero and would hide a difference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.dim() == 1))


def make(config: Config, data: Dataset, device: str = "cpu", step: int = 0) -> tuple[TrainState, Batch]:
    state = init_state(config, Processes(torch.device(device)))
    randomize(state.params.network)
    plan = plan_step(config, step, len(data.images))
    images = torch.from_numpy(data.images).to(device)
    return state, make_batch(config, to_device(plan, torch.device(device)), images, None)


@pytest.mark.parametrize("device", DEVICES)
def test_student_and_teacher_share_their_dropout_masks(
    tiny_config: Callable[..., Config], tiny_data: Dataset, device: str
) -> None:
    config = tiny_config(network={"dropout": 0.5})
    state, batch = make(config, tiny_data, device)
    f = consistency_function(state.params.network, config, None, batch.masks)
    x = batch.x + batch.sigma_hi[:, None, None, None] * batch.z
    y_hi, y_lo = f(x, batch.sigma_hi), torch.no_grad()(f)(x, batch.sigma_hi)
    assert torch.equal(y_hi, y_lo)
    assert not torch.equal(y_hi, consistency_function(state.params.network, config)(x, batch.sigma_hi)), (
        "dropout did nothing"
    )


@pytest.mark.parametrize("device", DEVICES)
def test_equal_levels_give_no_loss_and_no_gradient(
    tiny_config: Callable[..., Config], tiny_data: Dataset, device: str
) -> None:
    config = tiny_config(network={"dropout": 0.5})
    state, batch = make(config, tiny_data, device)
    equal = batch._replace(sigma_lo=batch.sigma_hi)
    loss = batch_loss(state.params.network, config, equal)
    loss.mean.backward()
    assert torch.count_nonzero(loss.per_sample) == 0
    assert all(torch.count_nonzero(p.grad) == 0 for p in state.params.network.parameters())
    assert torch.count_nonzero(batch_loss(state.params.network, config, batch).per_sample) > 0


def test_masks_keep_the_right_share_and_differ_between_blocks_and_samples(
    tiny_config: Callable[..., Config], tiny_data: Dataset
) -> None:
    config = tiny_config(network={"dropout": 0.3}, train={"batch_size": 64})
    _, batch = make(config, tiny_data)
    kept = torch.cat([mask.flatten().float() for mask in batch.masks])
    assert kept.mean().item() == pytest.approx(0.7, abs=5 * (0.21 / len(kept)) ** 0.5)
    assert not torch.equal(batch.masks[0][0], batch.masks[0][1])
    same_shape = [m for m in batch.masks if m.shape == batch.masks[0].shape]
    assert len(same_shape) > 1
    assert not torch.equal(same_shape[0], same_shape[1])


def test_dropout_keeps_the_mean(tiny_config: Callable[..., Config], tiny_data: Dataset) -> None:
    """E[mask / share kept] = 1: the average over many masks approaches the network without dropout."""
    config = tiny_config(network={"dropout": 0.3})
    state, _ = make(config, tiny_data)
    block = state.params.network.middle.block_0
    x, embedding = torch.randn(1, 16, 4, 4), torch.randn(1, 32)
    masks = torch.rand(4000, 16, 4, 4) >= 0.3
    with torch.no_grad():
        many = block(x.expand(4000, -1, -1, -1), embedding.expand(4000, -1), masks).mean(dim=0)
        none = block(x, embedding, None)[0]
    assert (many - none).norm() / none.norm() < 0.05


def test_the_gradient_does_not_pass_through_the_teacher(tiny_config: Callable[..., Config], tiny_data: Dataset) -> None:
    config = tiny_config()
    state, batch = make(config, tiny_data, step=9)  # of the last stage: in the first, the teacher is the identity
    params = list(state.params.network.parameters())
    ours = torch.autograd.grad(batch_loss(state.params.network, config, batch).mean, params)

    f = consistency_function(state.params.network, config, None, batch.masks)
    lo, hi = (s[:, None, None, None] for s in (batch.sigma_lo, batch.sigma_hi))
    y_lo = f(batch.x + lo * batch.z, batch.sigma_lo)
    c = 0.00054 * (3 * 8 * 8) ** 0.5
    for target, same in ((torch.tensor(y_lo.detach().numpy()), True), (y_lo, False)):
        distance = pseudo_huber(f(batch.x + hi * batch.z, batch.sigma_hi), target, c=c)
        theirs = torch.autograd.grad((batch.weight * distance).mean(), params, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)) == same


def test_the_update_is_radam_without_clipping_or_decay_and_the_ema_follows(
    tiny_config: Callable[..., Config], tiny_data: Dataset
) -> None:
    """Ten steps against RAdam (Liu et al. 2020, algorithm 2) and the EMA, written out in float64."""
    config = tiny_config(train={"learning_rate": 1e-2})
    state, _ = make(config, tiny_data)
    network = state.params.network.double()
    state = make_state(config, 0, network, copy.deepcopy(network), Processes(torch.device("cpu")))
    lr, (b1, b2), decay = 1e-2, config.train.betas, config.train.ema_decay
    theta = [p.detach().clone() for p in state.params.network.parameters()]
    average, m, v = list(theta), [0.0] * len(theta), [0.0] * len(theta)
    rho_inf, rectified = 2 / (1 - b2) - 1, 0
    for t in range(1, 11):
        plan = plan_step(config, t - 1, len(tiny_data.images))
        batch = make_batch(config, to_device(plan, torch.device("cpu")), torch.from_numpy(tiny_data.images), None)
        batch = batch._replace(**{k: getattr(batch, k).double() for k in batch._fields[:5]})
        grads = torch.autograd.grad(
            batch_loss(state.params.network, config, batch).mean, list(state.params.network.parameters())
        )
        rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
        for i, g in enumerate(grads):
            m[i], v[i] = b1 * m[i] + (1 - b1) * g, b2 * v[i] + (1 - b2) * g**2
            step = m[i] / (1 - b1**t)
            if rho > 5:
                r = ((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho)) ** 0.5
                step = step * r * (1 - b2**t) ** 0.5 / (v[i].sqrt() + 1e-8)
                rectified += 1
            theta[i] = theta[i] - lr * step
            average[i] = decay * average[i] + (1 - decay) * theta[i]
        train_step(state, config, [batch])
    assert rectified > 0
    for actual, expected in zip(state.params.network.parameters(), theta, strict=True):
        torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-12)
    for actual, expected in zip(state.ema.network.parameters(), average, strict=True):
        torch.testing.assert_close(actual.detach(), expected, rtol=1e-9, atol=1e-12)


def test_the_ema_has_no_part_in_training(tiny_config: Callable[..., Config], tiny_data: Dataset) -> None:
    config = tiny_config()
    results = []
    for spoil in (False, True):
        state, batch = make(config, tiny_data)
        if spoil:
            for p in state.ema.network.parameters():
                p.data.fill_(float("nan"))
        train_step(state, config, [batch])
        results.append([p.detach().clone() for p in state.params.network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_one_batch_can_be_overfitted(tiny_config: Callable[..., Config], tiny_data: Dataset) -> None:
    config = tiny_config(network={"dropout": 0.0}, train={"learning_rate": 1e-2})
    state = init_state(config, Processes(torch.device("cpu")))
    plan = plan_step(config, 0, len(tiny_data.images))
    batch = make_batch(config, to_device(plan, torch.device("cpu")), torch.from_numpy(tiny_data.images), None)
    losses = [train_step(state, config, [batch]).losses.mean().item() for _ in range(300)]
    assert losses[-1] < 0.1 * losses[0]


def test_images_become_pixels_in_minus_one_to_one_and_flips_mirror_them(
    tiny_config: Callable[..., Config], tiny_data: Dataset
) -> None:
    config = tiny_config()
    plan = plan_step(config, 0, 10)._replace(flips=np.array([True, False] * 3))
    images = torch.from_numpy(tiny_data.images)[plan.indices]
    x = make_batch(config, to_device(plan, images.device), torch.from_numpy(tiny_data.images), None).x
    assert x.dtype == torch.float32
    torch.testing.assert_close(x[1::2], images[1::2] / 127.5 - 1, rtol=0, atol=1e-6)
    torch.testing.assert_close(x[::2], images[::2].flip(3) / 127.5 - 1, rtol=0, atol=1e-6)


def test_labels_reach_the_network(tiny_config: Callable[..., Config], tiny_data: Dataset) -> None:
    config = tiny_config(network={"num_classes": 4, "dropout": 0.0})
    state, batch = make(config, tiny_data)
    losses = [
        batch_loss(state.params.network, config, batch._replace(labels=torch.full((6,), label))).mean.item()
        for label in (0, 1)
    ]
    assert losses[0] != losses[1]
