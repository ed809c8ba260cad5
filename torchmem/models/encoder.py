"""Observations to tokens: convolutions for images, an MLP for everything else (spec section 4)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.fused import max_pool
from torchmem.models.inputs import concat_keys, split_spaces
from torchmem.models.layers import MLP, Conv, RMSNorm
from torchmem.types import Space


class ImageStage(nn.Module):
    """Convolution, 2 x 2 max-pooling, RMSNorm, SiLU: (B, H, W, in) -> (B, H / 2, W / 2, out)."""

    def __init__(self, size_in: int, size_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = Conv(size_in, size_out, kernel)
        self.norm = RMSNorm(size_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(max_pool(self.conv(x))))


class Encoder(nn.Module):
    """obs[key] (B, ...) -> tokens (B, E): the vector part first, then the image part flattened as (H, W, C)."""

    def __init__(self, spaces: Mapping[str, Space], config: DreamerConfig) -> None:
        super().__init__()
        self.images, self.vectors = split_spaces(spaces)
        self.size = 0
        if self.vectors:
            self.mlp = MLP(sum(s.one_hot_size for s in self.vectors.values()), config.units, config.vector_layers)
            self.size += config.units
        if self.images:
            height, width = check_resolution(self.images, len(config.mults))
            channels = [sum(s.shape[2] for s in self.images.values()), *(config.depth * m for m in config.mults)]
            self.cnn = nn.Sequential(
                *(ImageStage(i, o, config.kernel) for i, o in itertools.pairwise(channels))
            )
            self.size += height * width * channels[-1]
        if not self.size:
            raise ValueError("the world offers no observation that the agent may see")

    def forward(self, obs: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        parts = []
        if self.vectors:
            parts.append(self.mlp(concat_keys(obs, self.vectors, squash=True).to(dtype)))
        if self.images:
            image = torch.cat([obs[key] for key in self.images], -1)
            parts.append(self.cnn(image.to(dtype) / 255 - 0.5).flatten(1))
        return torch.cat(parts, -1)


def check_resolution(images: Mapping[str, Space], stages: int) -> tuple[int, int]:
    """Height and width after all stages; raises where the keys disagree or the rest is not 3 to 16 pixels."""
    sides = {space.shape[:2] for space in images.values()}
    if len(sides) != 1:
        raise ValueError(f"image keys {list(images)} differ in size: {sorted(sides)}")
    (side,) = sides
    rest = tuple(s // 2**stages for s in side)
    if any(s % 2**stages for s in side) or not all(3 <= r <= 16 for r in rest):
        raise ValueError(f"images of {side} pixels leave {rest} after {stages} halvings; 3 to 16 each are needed")
    return rest
