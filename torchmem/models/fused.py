"""Two image-sized operations with backward passes of their own: they keep less and touch memory less often.

torch's versions are the reference (tests/models/test_fused.py) and what torch.compile sees, which fuses by itself.
Saved for the backward pass of one convolution stage with P pooled values: 4 P + 2 P x 8 bytes by max_pool2d and
12 P bytes by a composed RMSNorm; here P x 1 byte and 4 P.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

native: Any = torch._C


def widen(x: Tensor) -> Tensor:
    """At least float32: half-precision types go up, float32 and float64 stay."""
    return x.float() if x.element_size() < 4 else x


class _RMSNorm(torch.autograd.Function):
    """x * rsqrt(mean(x^2) + eps) * scale over the last axis, in float32, returned in x's dtype."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        wide = widen(x)
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, inverse)
        return (wide * inverse).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, scale, inverse = ctx.saved_tensors
        grad = widen(grad)
        unit = widen(x) * inverse
        weighted = grad * unit
        # d unit / d x projects out the direction of x: grad_x = (g s - unit * mean(g s unit)) / rms
        mean = (weighted @ scale).unsqueeze(-1).div_(scale.shape[0])
        grad_scale = weighted.reshape(-1, weighted.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None
        grad_x = torch.mul(grad, scale, out=weighted) if grad_scale is not None else grad * scale
        grad_x.addcmul_(unit, mean, value=-1).mul_(inverse)
        return grad_x.to(x.dtype), grad_scale, None


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """x (..., F), scale (F) -> (..., F). Gradients of gradients are not offered."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        wide = widen(x)
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * scale).to(x.dtype)
    return _RMSNorm.apply(x, scale, eps)


class _MaxPool(torch.autograd.Function):
    """2 x 2 maxima of (B, H, W, C); remembers the winner as one byte. Ties go to the first, as in max_pool2d."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        cells = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, H / 2, 2, W / 2, 2, C)
        a, b, c, d = (cells[:, :, i, :, j] for i in range(2) for j in range(2))
        upper, lower = torch.maximum(a, b), torch.maximum(c, d)
        # Bytes in place of torch.where, which is not vectorised for them: 0, 1 in the upper row, 2, 3 in the lower.
        right, lower_right, below = ((p > q).view(torch.uint8) for p, q in ((b, a), (d, c), (lower, upper)))
        winner = lower_right.add_(2).mul_(below).add_(right.mul_(below.bitwise_xor_(1)))
        ctx.save_for_backward(winner)
        return torch.maximum(upper, lower)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (winner,) = ctx.saved_tensors
        rows, height, width, channels = grad.shape
        if native._functorch.is_legacy_batchedtensor(grad):  # is_grads_batched, which cannot write in place
            parts = [torch.stack([grad * (winner == 2 * i + j) for j in range(2)], 3) for i in range(2)]
            return torch.stack(parts, 2).reshape(rows, 2 * height, 2 * width, channels)
        out = torch.empty((rows, height, 2, width, 2, channels), dtype=grad.dtype, device=grad.device)
        won = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)  # mixed types would take ten times as long
        for i in range(2):
            for j in range(2):
                torch.mul(grad, torch.eq(winner, 2 * i + j, out=won), out=out[:, :, i, :, j])
        return out.flatten(3, 4).flatten(1, 2)


def max_pool(x: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H / 2, W / 2, C), the maximum of each 2 x 2 cell."""
    if torch.compiler.is_compiling():
        return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    if not torch.is_grad_enabled():  # two maxima of whole rows take a fifth of max_pool2d's time on CPU
        rows = torch.maximum(*x.unflatten(1, (-1, 2)).unbind(2))
        return torch.maximum(*rows.unflatten(2, (-1, 2)).unbind(3))
    return _MaxPool.apply(x)
