"""Layers of NM512/dreamerv3-torch: a LayerNorm (eps 1e-3) after every bias-free product, SiLU, strided convolutions."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.dists import symexp

EPS = 1e-3


class Dense(nn.Module):
    """Linear without bias, LayerNorm, SiLU."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size_in, size_out, bias=False)
        self.norm = nn.LayerNorm(size_out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.linear(x)))


class MLP(nn.Sequential):
    """`layers` Dense layers."""

    def __init__(self, size_in: int, units: int, layers: int) -> None:
        super().__init__(*(Dense(size_in if i == 0 else units, units) for i in range(layers)))


class DownStage(nn.Module):
    """Stride-2 convolution with same padding (the odd pixel behind), LayerNorm over channels, SiLU; channels last."""

    def __init__(self, size_in: int, size_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(size_in, size_out, kernel, 2, bias=False)
        self.norm = nn.LayerNorm(size_out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv.kernel_size[0]
        pads = [max((math.ceil(side / 2) - 1) * 2 + kernel - side, 0) for side in (x.shape[2], x.shape[1])]
        both = [part for pad in pads for part in (pad // 2, pad - pad // 2)]
        y = self.conv(F.pad(x.permute(0, 3, 1, 2), both)).permute(0, 2, 3, 1)
        return F.silu(self.norm(y))


class ImageEncoder(nn.Sequential):
    """(N, H, W, C) in -0.5..0.5 -> (N, E), flattened channels first."""

    def __init__(self, side: int, channels: int, depth: int, kernel: int, minres: int) -> None:
        stages = int(math.log2(side) - math.log2(minres))
        sizes = [channels, *(depth * 2**i for i in range(stages))]
        super().__init__(*(DownStage(a, b, kernel) for a, b in itertools.pairwise(sizes)))
        self.size = sizes[-1] * (side // 2**stages) ** 2

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).permute(0, 3, 1, 2).flatten(1)


class UpStage(nn.Module):
    """Transposed convolution that doubles the side, LayerNorm over channels, SiLU; the last is bare, with a bias."""

    def __init__(self, size_in: int, size_out: int, kernel: int, last: bool) -> None:
        super().__init__()
        total = kernel - 1 - 2 + 1
        pad = math.ceil(total / 2)
        self.conv = nn.ConvTranspose2d(
            size_in, size_out, kernel, 2, padding=pad, output_padding=pad * 2 - total, bias=last
        )
        self.norm = None if last else nn.LayerNorm(size_out, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return y if self.norm is None else F.silu(self.norm(y))


class ImageDecoder(nn.Module):
    """feat (N, F) -> image means (N, H, W, C), about 0..1."""

    def __init__(
        self, size_in: int, side: int, channels: int, depth: int, kernel: int, minres: int, squash: bool
    ) -> None:
        super().__init__()
        stages = int(math.log2(side) - math.log2(minres))
        sizes = [*(depth * 2**i for i in reversed(range(stages))), channels]
        self.minres, self.squash = minres, squash
        self.linear = nn.Linear(size_in, minres**2 * sizes[0])
        self.stages = nn.Sequential(
            *(UpStage(a, b, kernel, i == stages - 1) for i, (a, b) in enumerate(itertools.pairwise(sizes)))
        )

    def forward(self, feat: Tensor) -> Tensor:
        x = self.stages(self.linear(feat).unflatten(-1, (self.minres, self.minres, -1)))
        return torch.sigmoid(x) if self.squash else x + 0.5


class SymlogBins(nn.Module):
    """feat (..., F) -> logits (..., bins) over values that are even in symlog."""

    points: Tensor

    def __init__(self, size_in: int, units: int, layers: int, bins: int) -> None:
        super().__init__()
        self.mlp = MLP(size_in, units, layers)
        self.out = nn.Linear(units, bins)
        self.register_buffer("points", torch.linspace(-20.0, 20.0, bins), persistent=False)

    def forward(self, feat: Tensor) -> Tensor:
        return self.out(self.mlp(feat))

    def mean(self, logits: Tensor) -> Tensor:
        """(...): symexp of the expectation, which is taken in symlog."""
        return symexp((torch.softmax(logits, -1) * self.points).sum(-1))
