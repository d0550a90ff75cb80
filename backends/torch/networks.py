"""The network of a configuration, in torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ict_backends.torch.adm import ADM
from ict_backends.torch.ncsnpp import NCSNpp
from ict_core import ADMConfig, Config, MaskedNetwork

UNet = NCSNpp | ADM
# train.precision -> the dtype that the network computes in; None for the dtype of its weights.
PRECISIONS = {"float32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_network(config: Config) -> UNet:
    """A new network of the configuration, initialised as its authors do, from torch's generator."""
    if isinstance(config.network, ADMConfig):
        return ADM(config.network, config.data.shape)
    return NCSNpp(config.network, config.data.shape)


def in_precision(network: nn.Module, config: Config) -> MaskedNetwork:
    """The network as a function F(x_in, c_noise, labels, masks) that computes in `train.precision`.

    Its arguments are x_in [b, c, h, w], c_noise [b], labels [b] or None, and masks bool [b, *shape] for each of
    `mask_shapes` or None; its result is [b, c, h, w] in the dtype of the weights.
    """
    dtype = PRECISIONS[config.train.precision]

    def call(x_in: Tensor, c_noise: Tensor, labels: Tensor | None, masks: Sequence[Tensor] | None, /) -> Tensor:
        output: Tensor = network(x_in if dtype is None else x_in.to(dtype), c_noise, labels, masks)
        return output

    return call
