"""Linear, BlockLinear, Conv, RMSNorm and their stacks, as DreamerV3 defines them (embodied/jax/nets.py).

Every layer keeps float32 parameters and computes in the dtype of its input. Images travel as (..., H, W, C), so that a
norm over the last axis is a norm over channels; inside a convolution the same memory is seen as channels-last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models import deferred
from torchmem.models.fused import rms_norm

TRUNCATION_FIX = 1.1368  # std of a unit normal cut at +-2 is 0.8796; this undoes it (original: nets.py, Initializer)


def trunc_normal_in_(weight: Tensor, fan_in: float, scale: float = 1.0) -> Tensor:
    """Fill with a normal cut at two deviations, std about scale / sqrt(fan_in)."""
    nn.init.trunc_normal_(weight, 0.0, 1.0, -2.0, 2.0)
    with torch.no_grad():
        return weight.mul_(TRUNCATION_FIX * math.sqrt(1.0 / fan_in) * scale)


class Layer(nn.Module):
    """Holds float32 parameters and hands them out in the dtype of the computation."""

    casts: dict[tuple[str, torch.dtype], Tensor] | None = None

    def param(self, name: str, like: Tensor) -> Tensor:
        """The parameter in `like`'s dtype; inside `cast_once` each is cast a single time."""
        value = getattr(self, name)
        if value.dtype == like.dtype:
            return value
        if self.casts is None:
            return value.to(like.dtype)
        key = (name, like.dtype)
        if key not in self.casts:
            with torch.enable_grad():  # the first use may be in imagination, without gradient; later ones need it
                self.casts[key] = value.to(like.dtype)
        return self.casts[key]


@contextmanager
def cast_once(module: nn.Module) -> Iterator[None]:
    """Share one low-precision copy of each parameter between all its uses inside the block (64 time steps, say)."""
    layers = [m for m in module.modules() if isinstance(m, Layer)]
    for layer in layers:
        layer.casts = {}
    try:
        yield
    finally:
        for layer in layers:
            layer.casts = None


class Linear(Layer):
    """y = x W^T + b. x (..., in) -> (..., out)."""

    def __init__(self, size_in: int, size_out: int, outscale: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(trunc_normal_in_(torch.empty(size_out, size_in), size_in, outscale))
        self.bias = nn.Parameter(torch.zeros(size_out))

    def forward(self, x: Tensor) -> Tensor:
        return deferred.linear(x, self.param("weight", x), self.param("bias", x))


class ConcatLinear(Linear):
    """A Linear over [x; y] whose y part can be computed for all time steps at once.

    forward(x, y_part) == Linear([x; y]) where y_part = self.second(y).
    """

    def __init__(self, size_x: int, size_y: int, size_out: int) -> None:
        super().__init__(size_x + size_y, size_out)
        self.size_x = size_x

    def second(self, y: Tensor) -> Tensor:
        return F.linear(y, self.param("weight", y)[:, self.size_x :])

    def forward(self, x: Tensor, y_part: Tensor) -> Tensor:
        return deferred.linear(x, self.param("weight", x)[:, : self.size_x], self.param("bias", x)) + y_part


class BlockLinear(Layer):
    """Block-diagonal linear map: x is cut into `blocks` groups, each with its own matrix.

    x (B, in) or (blocks, B, in / blocks) -> (B, out), groups side by side. The weight is (blocks, out / blocks,
    in / blocks), as in Linear: for one row, as when acting, that reads twice as fast as the transposed layout.
    fan_in is the *full* input width, as in the original.
    """

    def __init__(self, size_in: int, size_out: int, blocks: int) -> None:
        super().__init__()
        self.blocks = blocks
        shape = (blocks, size_out // blocks, size_in // blocks)
        self.weight = nn.Parameter(trunc_normal_in_(torch.empty(shape), size_in))
        self.bias = nn.Parameter(torch.zeros(size_out))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            x = x.unflatten(-1, (self.blocks, -1)).transpose(0, 1)
        y = deferred.bmm(x, self.param("weight", x))  # (blocks, B, out / blocks)
        return y.transpose(0, 1).flatten(1) + self.param("bias", x)


class Conv(Layer):
    """Stride-1 convolution with same padding. x (B, H, W, in) -> (B, H, W, out)."""

    def __init__(self, size_in: int, size_out: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            trunc_normal_in_(torch.empty(size_out, size_in, kernel, kernel), kernel * kernel * size_in)
        )
        self.bias = nn.Parameter(torch.zeros(size_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x.permute(0, 3, 1, 2), self.param("weight", x), self.param("bias", x), padding="same")
        return y.permute(0, 2, 3, 1)


class UpsampleConv(Conv):
    """Nearest-neighbour upsampling by two, then a convolution: x (B, H, W, in) -> (B, 2 H, 2 W, out).

    Computed without ever building the upsampled map: an output pixel of one parity sees only few distinct input pixels,
    so the k x k kernel collapses into four smaller ones (for k = 5: 3 x 3, 9 instead of 25 products a pixel) by adding
    the taps that fall on the same input pixel. Same sum, other order: equal up to rounding (tested).
    """

    def __init__(self, size_in: int, size_out: int, kernel: int) -> None:
        super().__init__(size_in, size_out, kernel)
        half = kernel // 2
        reach = (half + 1) // 2  # input pixels to each side that any parity can see
        fold = torch.zeros(2, 2 * reach + 1, kernel)  # parity, input offset, kernel tap
        for parity in range(2):
            for tap in range(kernel):
                fold[parity, (parity + tap - half) // 2 + reach, tap] = 1.0
        self.register_buffer("fold", fold, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.param("weight", x)
        fold = self.fold.to(weight.dtype)
        # (p, q: parities; u, v: input offsets) -> (p, q, out) stacked as output channels
        folded = torch.einsum("puh,oihw,qvw->pqoiuv", fold, weight, fold).flatten(0, 2)
        y = F.conv2d(x.permute(0, 3, 1, 2), folded, self.param("bias", x).repeat(4), padding="same")
        y = y.permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))  # (B, H, W, p, q, out)
        return y.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


class RMSNorm(Layer):
    """x / rms(x) * scale over the last axis, in float32, no shift. eps 1e-4: DreamerV3 'rms'."""

    def __init__(self, size: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.scale, self.eps)


class Dense(nn.Module):
    """Linear, RMSNorm, SiLU."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.linear = Linear(size_in, size_out)
        self.norm = RMSNorm(size_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.linear(x)))


class MLP(nn.Sequential):
    """`layers` Dense layers."""

    def __init__(self, size_in: int, units: int, layers: int) -> None:
        super().__init__(*(Dense(size_in if i == 0 else units, units) for i in range(layers)))


class Tap(nn.Identity):
    """Names a value that is not a module's output, so that surgery can read and write it."""
