"""Latent state back to observations, and the reconstruction losses (spec section 6)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.dists import symlog
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.encoder import check_resolution
from torchmem.models.fused import widen
from torchmem.models.inputs import split_spaces
from torchmem.models.layers import MLP, BlockLinear, Dense, Linear, RMSNorm, UpsampleConv
from torchmem.types import Space


class UpStage(nn.Module):
    """Upsampling by two, convolution, RMSNorm, SiLU: (B, H, W, in) -> (B, 2 H, 2 W, out)."""

    def __init__(self, size_in: int, size_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = UpsampleConv(size_in, size_out, kernel)
        self.norm = RMSNorm(size_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class ImageDecoder(nn.Module):
    """deter (B, D) and stoch (B, S * K) -> image means (B, H, W, C) in [0, 1]."""

    def __init__(self, spaces: Mapping[str, Space], deter: int, stoch: int, config: DreamerConfig) -> None:
        super().__init__()
        depths = [config.depth * m for m in config.mults]
        height, width = check_resolution(spaces, len(depths))
        self.grid = (height, width)
        self.groups = config.decoder_blocks
        size = height * width * depths[-1]
        self.from_deter = BlockLinear(deter, size, config.decoder_blocks)
        self.from_stoch = nn.Sequential(Dense(stoch, 2 * config.units), Linear(2 * config.units, size))
        self.norm = RMSNorm(depths[-1])
        self.stages = nn.Sequential(
            *(UpStage(i, o, config.kernel) for i, o in zip(depths[:0:-1], depths[-2::-1], strict=True))
        )
        self.out = UpsampleConv(depths[0], sum(s.shape[2] for s in spaces.values()), config.kernel)

    def forward(self, deter: Tensor, stoch: Tensor) -> Tensor:
        height, width = self.grid
        x = self.from_deter(deter).unflatten(-1, (self.groups, height, width, -1))
        x = x.permute(0, 2, 3, 1, 4).flatten(3)  # groups side by side in the channels
        x = x + self.from_stoch(stoch).unflatten(-1, (height, width, -1))
        x = F.silu(self.norm(x))
        return torch.sigmoid(self.out(self.stages(x)))


class Decoder(nn.Module):
    """deter (N, D), stoch (N, S, K) -> for each key its prediction; `loss` scores predictions against observations."""

    def __init__(self, spaces: Mapping[str, Space], deter: int, stoch: int, config: DreamerConfig) -> None:
        super().__init__()
        images, self.vectors = split_spaces(spaces)
        self.images = {k: s for k, s in spaces.items() if k in images}  # channels in the world's order, not sorted
        if self.vectors:
            self.mlp = MLP(stoch + deter, config.units, config.vector_layers)
            self.heads = nn.ModuleDict({k: Linear(config.units, s.one_hot_size) for k, s in self.vectors.items()})
        if self.images:
            self.cnn = ImageDecoder(self.images, deter, stoch, config)

    def forward(self, deter: Tensor, stoch: Tensor) -> dict[str, Tensor]:
        """Raw predictions: image means in [0, 1], symlog means of float keys, logits (..., classes) of integer keys."""
        stoch = stoch.flatten(-2)
        out = {}
        if self.vectors:
            hidden = self.mlp(torch.cat([stoch, deter], -1))  # this order, the reverse of `feat` (spec section 5)
            for key, space in self.vectors.items():
                shape = (*space.shape, space.classes or 2) if space.discrete else space.shape
                out[key] = widen(self.heads[key](hidden)).unflatten(-1, shape or (1,))
                if not shape:
                    out[key] = out[key].squeeze(-1)
        if self.images:
            image = widen(self.cnn(deter, stoch))
            parts = image.split([s.shape[2] for s in self.images.values()], -1)
            out.update(zip(self.images, parts, strict=True))
        return out

    def loss(self, predictions: Mapping[str, Tensor], obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Loss of each key, (N,): squared error on images and symlog values, cross-entropy on integers; all summed."""
        out = {}
        for key, prediction in predictions.items():
            target = obs[key]
            if key in self.images:
                error = F.mse_loss(prediction, target.float() / 255, reduction="none")
            elif self.vectors[key].discrete:
                error = F.cross_entropy(prediction.movedim(-1, 1), target.long(), reduction="none")
            else:
                error = F.mse_loss(prediction, symlog(target.float()), reduction="none")
            out[key] = error.flatten(1).sum(1) if error.dim() > 1 else error
        return out
