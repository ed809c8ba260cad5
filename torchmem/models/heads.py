"""Heads on the latent feature: reward, continuation, value and policy (spec section 7)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchmem.models import dists
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.fused import widen
from torchmem.models.layers import MLP, Linear
from torchmem.types import Space


class TwoHotHead(nn.Module):
    """feat (..., F) -> logits (..., bins) over symexp-spaced values; starts at exactly 0 everywhere."""

    bins: Tensor

    def __init__(self, size_in: int, units: int, layers: int, bins: int) -> None:
        super().__init__()
        self.mlp = MLP(size_in, units, layers)
        self.out = Linear(units, bins, outscale=0.0)
        self.register_buffer("bins", dists.symexp_bins(bins), persistent=False)

    def forward(self, feat: Tensor) -> Tensor:
        return widen(self.out(self.mlp(feat)))

    def mean(self, logits: Tensor) -> Tensor:
        return dists.twohot_mean(logits, self.bins)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return dists.twohot_loss(logits, self.bins, target)


class BinaryHead(nn.Module):
    """feat (..., F) -> logit (...)."""

    def __init__(self, size_in: int, units: int, layers: int) -> None:
        super().__init__()
        self.mlp = MLP(size_in, units, layers)
        self.out = Linear(units, 1)

    def forward(self, feat: Tensor) -> Tensor:
        return widen(self.out(self.mlp(feat))).squeeze(-1)


class GaussianOut(nn.Module):
    """hidden (..., units) -> raw mean and raw deviation, each (..., size)."""

    def __init__(self, units: int, size: int, outscale: float) -> None:
        super().__init__()
        self.mean = Linear(units, size, outscale)
        self.std = Linear(units, size, outscale)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(hidden), self.std(hidden)


class PolicyHead(nn.Module):
    """feat (..., F) -> parameters of one distribution per action key.

    Discrete keys: a plain categorical, without unimix (the original's setting never reaches it). Continuous keys: a
    Gaussian with bounded mean and deviation.
    """

    def __init__(self, size_in: int, spaces: Mapping[str, Space], config: DreamerConfig) -> None:
        super().__init__()
        self.spaces = dict(sorted(spaces.items()))
        self.bounds = (config.min_std, config.max_std)
        self.mlp = MLP(size_in, config.units, config.policy_layers)
        outputs = {}
        for key, space in self.spaces.items():
            if space.discrete:
                outputs[key] = Linear(config.units, space.one_hot_size, config.policy_outscale)
            elif not space.shape:
                raise ValueError(f"continuous action {key!r} needs a shape such as (1,)")
            else:
                outputs[key] = GaussianOut(config.units, space.size, config.policy_outscale)
        self.out = nn.ModuleDict(outputs)

    def forward(self, feat: Tensor) -> dict[str, tuple[Tensor, ...]]:
        """Discrete: (logits (..., *shape, classes),); continuous: (mean, std), each (..., *shape); float32."""
        hidden = self.mlp(feat)
        out = {}
        for key, space in self.spaces.items():
            layer = self.out[key]
            if space.discrete:
                out[key] = (widen(layer(hidden)).unflatten(-1, (*space.shape, space.classes or 2)),)
            else:
                raw_mean, raw_std = layer(hidden)
                mean, std = dists.bounded_normal(raw_mean, raw_std, *self.bounds)
                out[key] = (mean.unflatten(-1, space.shape), std.unflatten(-1, space.shape))
        return out

    def sample(self, params: Mapping[str, tuple], noise: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Actions; noise[key] is Gumbel (..., *shape, classes) or normal (..., *shape); without noise the mode."""
        out = {}
        for key, space in self.spaces.items():
            draw = None if noise is None else noise[key]
            if space.discrete:
                out[key] = dists.sample_index(params[key][0].detach(), draw).to(getattr(torch, space.dtype))
            else:
                mean, std = params[key]
                out[key] = (mean if draw is None else mean + std * draw).detach()
        return out

    def logp(self, params: Mapping[str, tuple], action: Mapping[str, Tensor]) -> Tensor:
        """Log-probability summed over keys and their dimensions, (...)."""
        parts = []
        for key, space in self.spaces.items():
            if space.discrete:
                logp = torch.log_softmax(params[key][0], -1)
                picked = logp.gather(-1, action[key].detach().long().unsqueeze(-1)).squeeze(-1)
                parts.append(picked.flatten(-len(space.shape)).sum(-1) if space.shape else picked)
            else:
                mean, std = (p.flatten(-len(space.shape)) for p in params[key])
                parts.append(dists.normal_logp(mean, std, action[key].flatten(-len(space.shape))))
        return torch.stack(parts).sum(0)

    def entropy(self, params: Mapping[str, tuple]) -> dict[str, Tensor]:
        """Entropy of each key, (...)."""
        out = {}
        for key, space in self.spaces.items():
            if space.discrete:
                entropy = dists.categorical_entropy(torch.log_softmax(params[key][0], -1))
                out[key] = entropy.flatten(-len(space.shape)).sum(-1) if space.shape else entropy
            else:
                out[key] = dists.normal_entropy(params[key][1].flatten(-len(space.shape)))
        return out


def named_parameters_of(params: Mapping[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """The parameters that a PolicyHead returns, by name: logits.<key>, or mean.<key> and std.<key>."""
    out = {}
    for key, values in params.items():
        names = ("logits",) if len(values) == 1 else ("mean", "std")
        out |= {f"{name}.{key}": value for name, value in zip(names, values, strict=True)}
    return out
