"""The hand-written backward passes against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from torchmem.models.fused import max_pool, rms_norm, widen


def composed_norm(x, scale, eps):
    wide = widen(x)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * scale).to(x.dtype)


def gradients(function, *inputs):
    inputs = [i.detach().clone().requires_grad_() for i in inputs]
    out = function(*inputs)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator).to(out.dtype))
    return out.detach(), [i.grad for i in inputs]


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 4, 4, 6)])
def test_rms_norm_equals_the_composed_one(shape):
    torch.manual_seed(0)
    x, scale = torch.randn(shape, dtype=torch.float64) * 3, torch.randn(shape[-1], dtype=torch.float64)
    mine, mine_grads = gradients(lambda a, b: rms_norm(a, b, 1e-4), x, scale)
    torch_, torch_grads = gradients(lambda a, b: composed_norm(a, b, 1e-4), x, scale)
    torch.testing.assert_close(mine, torch_, rtol=1e-12, atol=1e-12)
    for a, b in zip(mine_grads, torch_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_rms_norm_of_zeros_has_finite_gradients():
    _, (grad, _) = gradients(lambda a, b: rms_norm(a, b, 1e-4), torch.zeros(2, 4), torch.ones(4))
    assert torch.isfinite(grad).all() and grad.abs().max() > 1  # 1 / sqrt(eps) = 100


def test_rms_norm_keeps_half_precision_outside_and_float32_inside():
    x = (torch.randn(4, 512) * 100).bfloat16()
    y = rms_norm(x.requires_grad_(), torch.ones(512), 1e-4)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), composed_norm(x.float(), torch.ones(512), 1e-4), rtol=1e-2, atol=1e-2)


def test_max_pool_equals_torch_with_ties():
    x = torch.randint(0, 3, (3, 6, 8, 5)).double()  # few values: ties everywhere
    mine, (mine_grad,) = gradients(max_pool, x)
    nchw = lambda a: F.max_pool2d(a.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)  # noqa: E731
    torch_, (torch_grad,) = gradients(nchw, x)
    assert torch.equal(mine, torch_) and torch.equal(mine_grad, torch_grad)
    with torch.no_grad():
        assert torch.equal(max_pool(x), torch_)
