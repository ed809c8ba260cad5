"""Layers that are computed in an unusual way against the plain way, and in their gradients."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchmem.models import deferred
from torchmem.models.layers import BlockLinear, ConcatLinear, Linear, RMSNorm, UpsampleConv, cast_once


def leaves(*modules: torch.nn.Module) -> list[Tensor]:
    return [p for module in modules for p in module.parameters()]


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(4, 4), (5, 3)])
def test_upsampling_convolution_equals_upsampling_then_convolving(kernel: int, size: tuple[int, int]):
    layer = UpsampleConv(3, 4, kernel).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, *size, 3, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    plain = F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="nearest")
    plain = F.conv2d(plain, layer.weight, layer.bias, padding="same").permute(0, 2, 3, 1)
    assert y.shape == (2, 2 * size[0], 2 * size[1], 4)
    torch.testing.assert_close(y, plain, rtol=0, atol=1e-12)
    weight = torch.randn_like(y)
    ours = torch.autograd.grad((y * weight).sum(), [x, *leaves(layer)])
    theirs = torch.autograd.grad((plain * weight).sum(), [x, *leaves(layer)])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


def test_block_linear_is_block_diagonal():
    layer = BlockLinear(6, 9, 3).double()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(4, 6, dtype=torch.float64)
    full = torch.block_diag(*layer.weight.mT)
    expected = x @ full + layer.bias
    torch.testing.assert_close(layer(x), expected)
    grouped = x.unflatten(-1, (3, -1)).transpose(0, 1)
    torch.testing.assert_close(layer(grouped), expected)


def test_concat_linear_is_a_linear_over_both():
    layer = ConcatLinear(3, 4, 5).double()
    x, y = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    expected = F.linear(torch.cat([x, y], -1), layer.weight, layer.bias)
    torch.testing.assert_close(layer(x, layer.second(y)), expected)


def test_norm_has_no_shift_and_works_in_float32():
    norm = RMSNorm(4).requires_grad_(False)
    x = torch.tensor([[3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(norm(x), torch.tensor([[1.0] * 4, [0.0] * 4]), rtol=0, atol=1e-4)
    low = norm(torch.full((1, 4), 300.0, dtype=torch.bfloat16))
    assert low.dtype == torch.bfloat16 and float(low[0, 0]) == 1.0


class Cell(torch.nn.Module):
    """A recurrent cell with both kinds of product, the second layer used twice per step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.twice = Linear(5, 6), BlockLinear(6, 6, 2), Linear(6, 6)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        h = torch.tanh(self.first(x) + self.block(h))
        return torch.tanh(self.twice(torch.tanh(self.twice(h))))


def scan(cell: Cell, x: Tensor, h: Tensor, defer: bool) -> Tensor:
    with deferred.deferred_weight_gradients() if defer else contextlib.nullcontext():
        outputs = []
        for t in range(x.shape[1]):
            h = cell(x[:, t], h)
            outputs.append(h)
    return torch.stack(outputs, 1)


def test_deferred_gradients_of_a_scan():
    cell = Cell().double()
    x = torch.randn(3, 7, 5, dtype=torch.float64, requires_grad=True)
    h = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 7, 6, dtype=torch.float64)
    found = {}
    for defer in (False, True):
        out = scan(cell, x, h, defer)
        # a weight that is used outside the block too keeps both shares
        total = (out * weight).sum() + cell.first.weight.square().sum()
        found[defer] = (out, *torch.autograd.grad(total, [x, h, *leaves(cell)], retain_graph=True))
        again = torch.autograd.grad(total, leaves(cell))  # the ledgers were emptied: the same once more
        for a, b in zip(again, found[defer][3:], strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    for plain, late in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(plain, late, rtol=0, atol=1e-12)


def test_deferring_is_off_outside_without_gradients_and_for_frozen_weights():
    cell = Cell()
    x, h = torch.randn(3, 4, 5), torch.randn(3, 6)
    with torch.no_grad():
        assert not scan(cell, x, h, True).requires_grad
    cell.requires_grad_(False)
    assert not scan(cell, x, h, True).requires_grad
    x.requires_grad_()
    (grad,) = torch.autograd.grad(scan(cell, x, h, True).sum(), x)
    assert grad.isfinite().all()
    assert cell(x[:, 0], h).grad_fn is not None


def test_casts_are_shared_inside_the_block_only():
    layer = Linear(3, 4)
    x = torch.randn(2, 3, dtype=torch.bfloat16)
    with cast_once(layer):
        assert layer.param("weight", x) is layer.param("weight", x)
        layer(x).float().sum().backward()
    assert layer.param("weight", x) is not layer.param("weight", x)
    assert layer.weight.grad.dtype == torch.float32
