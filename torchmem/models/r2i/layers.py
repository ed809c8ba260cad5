"""Layers of R2I, which are those of DreamerV3's January 2023 version: LayerNorm, and initial weights by both fans.

Parameters are float32; every layer computes in the dtype of its input, norms in float32. Images travel as
(..., H, W, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.fused import widen
from torchmem.models.layers import Layer, trunc_normal_in_


class Plain(Layer):
    """y = x W^T (+ b). x (..., in) -> (..., out). Weights: cut normal of variance outscale^2 * 2 / (in + out)."""

    def __init__(self, size_in: int, size_out: int, *, bias: bool = True, outscale: float = 1.0) -> None:
        super().__init__()
        fan = (size_in + size_out) / 2
        self.weight = nn.Parameter(trunc_normal_in_(torch.empty(size_out, size_in), fan, outscale))
        self.bias = nn.Parameter(torch.zeros(size_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.param("weight", x), None if self.bias is None else self.param("bias", x))


class LayerNorm(Layer):
    """Zero mean and unit variance over the last axis, then scale and shift. In float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.shift = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(widen(x), self.scale.shape, self.scale, self.shift, self.eps).to(x.dtype)


class Dense(nn.Module):
    """Linear without bias, LayerNorm (eps 1e-3), SiLU."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.linear = Plain(size_in, size_out, bias=False)
        self.norm = LayerNorm(size_out, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.linear(x)))


class MLP(nn.Sequential):
    """`layers` Dense layers."""

    def __init__(self, size_in: int, units: int, layers: int) -> None:
        super().__init__(*(Dense(size_in if i == 0 else units, units) for i in range(layers)))


class HalvingConv(Layer):
    """4 x 4 convolution of stride 2, without bias: x (B, H, W, in) -> (B, H / 2, W / 2, out)."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(trunc_normal_in_(torch.empty(size_out, size_in, 4, 4), 8 * (size_in + size_out)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.permute(0, 3, 1, 2), self.param("weight", x), stride=2, padding=1).permute(0, 2, 3, 1)


class DoublingConv(Layer):
    """4 x 4 transposed convolution of stride 2: x (B, H, W, in) -> (B, 2 H, 2 W, out)."""

    def __init__(self, size_in: int, size_out: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(trunc_normal_in_(torch.empty(size_in, size_out, 4, 4), 8 * (size_in + size_out)))
        self.bias = nn.Parameter(torch.zeros(size_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.param("bias", x)
        y = F.conv_transpose2d(x.permute(0, 3, 1, 2), self.param("weight", x), bias, stride=2, padding=1)
        return y.permute(0, 2, 3, 1)
