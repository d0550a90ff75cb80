"""All weights of a network as one vector, so that an optimiser's step is a few operations and not a few for each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def in_memory_order(tensor: Tensor) -> Tensor:
    """A tensor as a vector; convolutions in the order of channels_last, as the networks hold them."""
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).reshape(-1)


def flatten(network: nn.Module) -> Tensor:
    """A vector of all weights of a network, which become views of it: who changes it changes them."""
    with torch.no_grad():
        flat = torch.cat([in_memory_order(p) for p in network.parameters()])
    for name, view in unflatten(flat, network).items():
        network.get_parameter(name).data = view
    return flat


def unflatten(flat: Tensor, network: nn.Module) -> Mapping[str, Tensor]:
    """Views of a vector, in the shapes of a network's weights, by name."""
    named = dict(network.named_parameters())
    parts = flat.split([p.numel() for p in named.values()])
    return {name: _view(part, named[name]) for name, part in zip(named, parts, strict=True)}


def _view(part: Tensor, like: Tensor) -> Tensor:
    if like.ndim != 4:
        return part.view(like.shape)
    out, channels, *kernel = like.shape
    return part.view(out, *kernel, channels).permute(0, 3, 1, 2)
