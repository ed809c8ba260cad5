"""The IMPALA image trunk (Espeholt et al. 2018, arXiv:1802.01561, figure 3; the form Procgen agents use)."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImageConv(nn.Conv2d):
    """3x3 convolution of (N, H, W, in) -> (N, H, W, out); the same memory is channels-last inside."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__(size_in, size_out, 3, padding=1)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ImageConv(channels, channels), ImageConv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Stage(nn.Module):
    """Convolution, max-pool that halves the sides (rounded up), two residual blocks."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.conv = ImageConv(size_in, size_out)
        self.res1, self.res2 = Residual(size_out), Residual(size_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x).permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1)
        return self.res2(self.res1(x))


class Impala(nn.Module):
    """Images (N, H, W, C) in [0, 1] -> (N, units)."""

    def __init__(self, side: tuple[int, int], size_in: int, channels: list[int], units: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(*(Stage(i, o) for i, o in itertools.pairwise([size_in, *channels])))
        height, width = side
        for _ in channels:
            height, width = -(-height // 2), -(-width // 2)
        self.out = nn.Linear(height * width * channels[-1], units)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stages(x)).permute(0, 3, 1, 2).flatten(1)  # channel-major, as public checkpoints have it
        return torch.relu(self.out(x))
