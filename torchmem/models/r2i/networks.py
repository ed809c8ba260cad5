"""R2I's encoder, decoder and heads: DreamerV3's roles, with the layers of its January 2023 version."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models import dists
from torchmem.models.behaviour import Behaviour, alone
from torchmem.models.decoder import Decoder
from torchmem.models.encoder import Encoder, check_resolution
from torchmem.models.fused import widen
from torchmem.models.heads import BinaryHead, GaussianOut, PolicyHead, TwoHotHead
from torchmem.models.inputs import split_spaces
from torchmem.models.r2i.config import R2IConfig
from torchmem.models.r2i.dynamics import policy_feature_size
from torchmem.models.r2i.layers import MLP, DoublingConv, HalvingConv, LayerNorm, Plain
from torchmem.types import Space


class ImageStage(nn.Module):
    """Strided convolution, LayerNorm, SiLU: (B, H, W, in) -> (B, H / 2, W / 2, out)."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.conv = HalvingConv(size_in, size_out)
        self.norm = LayerNorm(size_out, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class UpStage(nn.Module):
    """Transposed convolution, LayerNorm, SiLU: (B, H, W, in) -> (B, 2 H, 2 W, out)."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.conv = DoublingConv(size_in, size_out, bias=False)
        self.norm = LayerNorm(size_out, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class R2IEncoder(Encoder):
    """obs[key] (B, ...) -> tokens (B, E): the vector part first, then the image part flattened as (H, W, C)."""

    def __init__(self, spaces: Mapping[str, Space], config: R2IConfig) -> None:
        nn.Module.__init__(self)  # other layers; the forward pass is the same
        self.images, self.vectors = split_spaces(spaces)
        self.size = 0
        if self.vectors:
            width = sum(s.one_hot_size for s in self.vectors.values())
            self.mlp = MLP(width, config.vector_units, config.vector_layers)
            self.size += config.vector_units
        if self.images:
            height, width = check_resolution(self.images, len(config.mults))
            channels = [sum(s.shape[2] for s in self.images.values()), *(config.depth * m for m in config.mults)]
            self.cnn = nn.Sequential(*(ImageStage(i, o) for i, o in itertools.pairwise(channels)))
            self.size += height * width * channels[-1]
        if not self.size:
            raise ValueError("the world offers no observation that the agent may see")


class ImageDecoder(nn.Module):
    """feat (B, F) -> image means (B, H, W, C), about 0 to 1."""

    def __init__(self, spaces: Mapping[str, Space], feat: int, config: R2IConfig) -> None:
        super().__init__()
        depths = [config.depth * m for m in config.mults]
        self.grid = (*check_resolution(spaces, len(depths)), depths[-1])
        self.linear = Plain(feat, self.grid[0] * self.grid[1] * depths[-1])
        self.stages = nn.Sequential(*(UpStage(i, o) for i, o in itertools.pairwise(depths[::-1])))
        self.out = DoublingConv(depths[0], sum(s.shape[2] for s in spaces.values()), bias=True)

    def forward(self, feat: Tensor) -> Tensor:
        return self.out(self.stages(self.linear(feat).unflatten(-1, self.grid))) + 0.5


class R2IDecoder(Decoder):
    """deter (N, D), stoch (N, S, K) -> for each key its prediction; `loss` is that of Decoder."""

    def __init__(self, spaces: Mapping[str, Space], feat: int, config: R2IConfig) -> None:
        nn.Module.__init__(self)
        images, self.vectors = split_spaces(spaces)
        self.images = {k: s for k, s in spaces.items() if k in images}
        if self.vectors:
            self.mlp = MLP(feat, config.vector_units, config.vector_layers)
            sizes = {key: space.one_hot_size for key, space in self.vectors.items()}
            self.heads = nn.ModuleDict({key: Plain(config.vector_units, size) for key, size in sizes.items()})
        if self.images:
            self.cnn = ImageDecoder(self.images, feat, config)

    def forward(self, deter: Tensor, stoch: Tensor) -> dict[str, Tensor]:
        """Raw predictions, as Decoder's."""
        feat, out = torch.cat([deter, stoch.flatten(-2)], -1), {}
        if self.vectors:
            hidden = self.mlp(feat)
            for key, space in self.vectors.items():
                shape = (*space.shape, space.classes or 2) if space.discrete else space.shape
                flat = widen(self.heads[key](hidden))
                out[key] = flat.unflatten(-1, shape) if shape else flat.squeeze(-1)
        if self.images:
            parts = widen(self.cnn(feat)).split([s.shape[2] for s in self.images.values()], -1)
            out.update(zip(self.images, parts, strict=True))
        return out


class SymlogHead(TwoHotHead):
    """feat (..., F) -> logits (..., bins) over bins that are even in symlog space; starts at exactly 0 everywhere."""

    def __init__(self, size_in: int, units: int, layers: int, bins: int) -> None:
        nn.Module.__init__(self)
        self.mlp = MLP(size_in, units, layers)
        self.out = Plain(units, bins, outscale=0.0)
        even = torch.linspace(-20, 20, bins)
        self.register_buffer("bins", (even - even.flip(0)) / 2, persistent=False)  # exactly antisymmetric

    def mean(self, logits: Tensor) -> Tensor:
        return dists.symexp(dists.twohot_mean(logits, self.bins))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return dists.twohot_loss(logits, self.bins, dists.symlog(widen(target)))


class ContHead(BinaryHead):
    """feat (..., F) -> logit (...)."""

    def __init__(self, size_in: int, units: int, layers: int) -> None:
        nn.Module.__init__(self)
        self.mlp = MLP(size_in, units, layers)
        self.out = Plain(units, 1)


class PlainGaussian(GaussianOut):
    """hidden (..., units) -> raw mean and raw deviation, each (..., size)."""

    def __init__(self, units: int, size: int, outscale: float) -> None:
        nn.Module.__init__(self)
        self.mean = Plain(units, size, outscale=outscale)
        self.std = Plain(units, size, outscale=outscale)


class R2IPolicy(PolicyHead):
    """feat (..., F) -> parameters of one distribution per action key; a categorical has a uniform share mixed in."""

    def __init__(self, size_in: int, spaces: Mapping[str, Space], config: R2IConfig) -> None:
        nn.Module.__init__(self)
        self.spaces = dict(sorted(spaces.items()))
        self.bounds = (config.min_std, config.max_std)
        self.unimix = config.policy_unimix
        self.mlp = MLP(size_in, config.head_units, config.policy_layers)
        outputs = {}
        for key, space in self.spaces.items():
            if space.discrete:
                outputs[key] = Plain(config.head_units, space.one_hot_size, outscale=config.policy_outscale)
            elif not space.shape:
                raise ValueError(f"continuous action {key!r} needs a shape such as (1,)")
            else:
                outputs[key] = PlainGaussian(config.head_units, space.size, config.policy_outscale)
        self.out = nn.ModuleDict(outputs)

    def forward(self, feat: Tensor) -> dict[str, tuple[Tensor, ...]]:
        params = super().forward(feat)
        mixed = {key: (dists.unimix(params[key][0], self.unimix),) for key, s in self.spaces.items() if s.discrete}
        return params | mixed


class R2IBehaviour(Behaviour):
    """Actor, critic, slow critic and return range; the losses are those of Behaviour."""

    def __init__(self, actions: Mapping[str, Space], config: R2IConfig) -> None:
        nn.Module.__init__(self)
        c = self.config = config  # pyright: ignore[reportAttributeAccessIssue]
        feat = policy_feature_size(c)
        self.policy = R2IPolicy(feat, actions, c)
        self.value = SymlogHead(feat, c.head_units, c.value_layers, c.bins)
        self.slow_value = SymlogHead(feat, c.head_units, c.value_layers, c.bins)
        self.slow_value.load_state_dict(self.value.state_dict())
        self.slow_value.requires_grad_(False)
        self.register_buffer("return_low", torch.zeros(()))
        self.register_buffer("return_high", torch.zeros(()))
        self.gather = alone
