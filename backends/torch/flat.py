"""One vector of all weights of a network, so that an optimiser's step is a few operations, not a few for each array."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def in_memory_order(tensor: Tensor) -> Tensor:
    """A tensor of any shape as a vector, [n]; kernels [out, in, h, w] in the order of channels_last, as in memory."""
    return (tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor).reshape(-1)


def flatten(network: nn.Module) -> Tensor:
    """Move all weights of a network into one vector, [n]. The weights become views of it and change with it."""
    with torch.no_grad():
        flat = torch.cat([in_memory_order(p) for p in network.parameters()])
    for name, view in unflatten(flat, network).items():
        network.get_parameter(name).data = view
    return flat


def unflatten(flat: Tensor, network: nn.Module) -> Mapping[str, Tensor]:
    """Views of a vector, [n], in the shapes of a network's weights, by their names."""
    named = dict(network.named_parameters())
    parts = flat.split([p.numel() for p in named.values()])
    return {name: _view(part, named[name]) for name, part in zip(named, parts, strict=True)}


def _view(part: Tensor, like: Tensor) -> Tensor:
    if like.ndim != 4:
        return part.view(like.shape)
    out, channels, *kernel = like.shape
    return part.view(out, *kernel, channels).permute(0, 3, 1, 2)
