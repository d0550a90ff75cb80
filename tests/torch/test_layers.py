"""What the torch networks compute in another way than it is written in the papers, for speed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ict_backends.torch.layers import CastConv, CastGroupNorm, Conv, sum_of_branches


def conv(in_channels: int, out_channels: int, kernel_size: int = 3) -> CastConv:
    """With weights and a bias that are not zero, in float64; 1x1 ones as a matrix product or not."""
    layer = Conv(in_channels, out_channels, kernel_size).double()
    torch.nn.init.normal_(layer.bias)
    return layer


def images(channels: int) -> Tensor:
    return torch.randn(3, channels, 4, 4, dtype=torch.float64).requires_grad_()


def gradients(value: Tensor, *inputs: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
    return [value.detach().clone(), *torch.autograd.grad((value * weights).sum(), inputs)]


def assert_all_close(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("channels", [(4, 6), (16, 32)])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_a_bias_that_joins_the_shift_is_the_same(channels: tuple[int, int], kernel_size: int) -> None:
    torch.manual_seed(0)
    layer, x = conv(*channels, kernel_size), images(channels[0])
    shift = torch.randn(3, channels[1], dtype=torch.float64).requires_grad_()
    norm = CastGroupNorm(2, channels[1], eps=1e-5).double()
    mask = torch.rand(3, channels[1], 4, 4) > 0.3
    inputs = (x, shift, layer.weight, layer.bias, *norm.parameters())
    for dropped, factor in ((None, 1.0), (mask, mask.double() / 0.7)):
        plain = torch.nn.functional.group_norm(layer(x) + shift[:, :, None, None], 2, norm.weight, norm.bias, 1e-5)
        expected = gradients(torch.nn.functional.silu(plain) * factor, *inputs)
        found = norm.activated(layer.with_bias(x, None), shift + layer.bias, dropped, kept=0.7)
        assert_all_close(gradients(found, *inputs), expected)


@pytest.mark.parametrize("channels", [4, 16])
def test_branches_share_a_bias(channels: int) -> None:
    torch.manual_seed(0)
    main, shortcut = conv(channels, 2 * channels), conv(channels, 2 * channels, 1)
    h, x = images(channels), images(channels)
    inputs = (h, x, *main.parameters(), *shortcut.parameters())
    expected = gradients((main(h) + shortcut(x)) * math.sqrt(0.5), *inputs)
    assert_all_close(gradients(sum_of_branches(main, h, shortcut, x, rescale=True), *inputs), expected)


def test_a_branch_without_a_shortcut_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    main, h, x = conv(4, 4), images(4), images(4)
    before = x.detach().clone()
    inputs = (h, x, *main.parameters())
    expected = gradients(main(h) + x, *inputs)
    assert_all_close(gradients(sum_of_branches(main, h, None, x, rescale=False), *inputs), expected)
    assert torch.equal(x, before)
