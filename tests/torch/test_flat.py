"""All weights as one vector: the network's own weights are views of it, and RAdam over it is RAdam over them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from twins import small_adm_config, small_config, torch_network

from ict_backends.torch.flat import flatten, in_memory_order, unflatten

CONFIGS = {"ncsnpp": small_config(), "adm": small_adm_config()}


@pytest.fixture(params=CONFIGS)
def network(request: pytest.FixtureRequest) -> nn.Module:
    return torch_network(CONFIGS[request.param], "float32")


def test_values_names_shapes_and_strides_stay(network: nn.Module) -> None:
    before = copy.deepcopy(network)
    flat = flatten(network)
    assert flat.shape == (sum(p.numel() for p in before.parameters()),)
    assert not flat.requires_grad
    old, new = before.state_dict(), network.state_dict()
    assert list(old) == list(new)
    assert all(torch.equal(old[name], new[name]) for name in old)
    for (name, a), (other, b) in zip(before.named_parameters(), network.named_parameters(), strict=True):
        assert (name, a.requires_grad, isinstance(b, nn.Parameter)) == (other, b.requires_grad, True)
        if a.ndim == 4:
            assert b.is_contiguous(memory_format=torch.channels_last)
        else:
            assert a.stride() == b.stride()


def test_a_flattened_network_computes_the_same_and_has_the_same_gradient(network: nn.Module) -> None:
    before = copy.deepcopy(network)
    flatten(network)
    generator = torch.Generator().manual_seed(0)
    x, c_noise = torch.randn(2, 3, 4, 4, generator=generator), torch.tensor([-1.0, 1.0])
    found, gradients = [], []
    for each in (before, network):
        out = each(x, c_noise, torch.tensor([0, 2]))
        gradients.append(torch.autograd.grad(out.square().sum(), list(each.parameters())))
        found.append(out)
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-6)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-4)


def test_who_changes_the_vector_changes_the_weights_and_the_other_way_round(network: nn.Module) -> None:
    flat = flatten(network)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    flat += 1.0
    for name, p in network.named_parameters():
        assert torch.equal(p, before[name] + 1.0)
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p.fill_(float(i))
    parts = flat.split([p.numel() for p in network.parameters()])
    assert all(bool((part == float(i)).all()) for i, part in enumerate(parts))
    network.load_state_dict(network.state_dict() | before)
    assert torch.equal(flat, torch.cat([in_memory_order(p) for p in before.values()]))


def test_unflatten_inverts(network: nn.Module) -> None:
    flat = torch.randn(sum(p.numel() for p in network.parameters()))
    views = unflatten(flat, network)
    assert list(views) == [name for name, _ in network.named_parameters()]
    assert all(views[name].shape == p.shape for name, p in network.named_parameters())
    assert torch.equal(torch.cat([in_memory_order(view) for view in views.values()]), flat)
    next(iter(views.values())).zero_()
    assert flat[0] == 0.0


def test_radam_over_the_vector_is_radam_over_the_weights(network: nn.Module) -> None:
    """Bit for bit, before and after the rectification sets in at the sixth step."""
    alone = copy.deepcopy(network)
    flat = nn.Parameter(flatten(network))
    settings = {"lr": 1e-3, "betas": (0.9, 0.999)}
    ours, theirs = torch.optim.RAdam([flat], **settings), torch.optim.RAdam(alone.parameters(), **settings)
    generator = torch.Generator().manual_seed(0)
    start = flat.detach().clone()
    for _ in range(8):
        for p in alone.parameters():
            p.grad = torch.randn(p.shape, generator=generator).contiguous(
                memory_format=torch.channels_last if p.ndim == 4 else torch.contiguous_format
            )
        flat.grad = torch.cat([in_memory_order(p.grad) for p in alone.parameters()])
        ours.step()
        theirs.step()
        for a, b in zip(network.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    assert (flat - start).abs().max() > 1e-3
    moments = unflatten(ours.state[flat]["exp_avg_sq"], network)
    for name, p in alone.named_parameters():
        torch.testing.assert_close(moments[name], theirs.state[p]["exp_avg_sq"], rtol=1e-7, atol=1e-12)
