"""The original's eyes and brush for one 64 x 64 colour image (spec 3.2). Images come as (N, 64, 64, 3) in [0, 1].

All widths are the original's and no option: who wants others takes vision=shared, Dreamer's encoder and decoder.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 64
EMBED = (3, 32, 64, 128, 256)  # channels of the image encoder; 2 x 2 pixels remain
RESNET = (3, 64, 64, 64, 128)  # of the start encoder; 4 x 4 remain
PAINT, KERNELS = (1536, 192, 96, 48, 3), (5, 5, 6, 6)  # of the decoder: 1, 5, 13, 30, 64 pixels a side


def channels_first(image: Tensor) -> Tensor:
    return image.permute(0, 3, 1, 2)


class ImageEncoder(nn.Sequential):
    """Four strided convolutions: (N, 64, 64, 3) -> (N, 1024)."""

    size = 4 * EMBED[-1]

    def __init__(self) -> None:
        layers = []
        for size_in, size_out in itertools.pairwise(EMBED):
            layers += [nn.Conv2d(size_in, size_out, 4, 2), nn.ELU()]
        super().__init__(*layers, nn.Flatten())

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(channels_first(input))


class DownBlock(nn.Module):
    """Residual block that halves the sides; a norm over channels and pixels before each convolution."""

    def __init__(self, size_in: int, size_out: int, side: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm([size_in, side, side]), nn.LayerNorm([size_out, side, side])
        self.conv1 = nn.Conv2d(size_in, size_out, 3, padding=1)
        self.conv2 = nn.Conv2d(size_out, size_out, 3, padding=1)
        self.shortcut = nn.Conv2d(size_in, size_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.leaky_relu(self.norm1(x)))
        y = self.conv2(F.leaky_relu(self.norm2(y)))
        return F.max_pool2d(y + self.shortcut(x), 2)


class ResNet(nn.Sequential):
    """(N, 64, 64, 3) -> (N, 2048)."""

    size = 16 * RESNET[-1]

    def __init__(self) -> None:
        sides = [SIDE >> i for i in range(len(RESNET) - 1)]
        blocks = [DownBlock(i, o, side) for (i, o), side in zip(itertools.pairwise(RESNET), sides, strict=True)]
        super().__init__(*blocks, nn.Flatten())

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(channels_first(input))


class ImageDecoder(nn.Module):
    """Features (N, F) -> (N, 64, 64, 3) in [0, 1]; beyond the ends the gradient goes on as if there were none."""

    def __init__(self, size_in: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size_in, PAINT[0])
        layers: list[nn.Module] = []
        for (i, o), kernel in zip(itertools.pairwise(PAINT), KERNELS, strict=True):
            layers += [nn.ConvTranspose2d(i, o, kernel, 2), nn.ELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, feat: Tensor) -> Tensor:
        image = self.layers(self.linear(feat)[..., None, None]).permute(0, 2, 3, 1) + 0.5
        return image + (image.clamp(0, 1) - image).detach()


class Head(nn.Sequential):
    """Features (..., F) -> (...): hidden layers with LayerNorm and ELU, then one number."""

    def __init__(self, size_in: int, units: int, layers: int) -> None:
        parts: list[nn.Module] = []
        for i in range(layers):
            parts += [nn.Linear(size_in if i == 0 else units, units), nn.LayerNorm(units, 1e-3), nn.ELU()]
        super().__init__(*parts, nn.Linear(units, 1))

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = super().forward(input)
        return out.squeeze(-1)


def converter(size_in: int, size_out: int) -> nn.Sequential:
    """Two hidden layers, as wide as the middle between input and output."""
    width = (size_in + size_out) // 2
    sizes = [size_in, width, width, size_out]
    layers: list[nn.Module] = []
    for i, o in itertools.pairwise(sizes):
        layers += [nn.Linear(i, o), nn.ELU()]
    return nn.Sequential(*layers[:-1])


def unit(vector: Tensor) -> Tensor:
    """(..., L) -> the same direction, length 1."""
    return vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True).clamp(min=1e-12)
