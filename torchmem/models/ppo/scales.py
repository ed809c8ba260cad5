"""Running moments of observations and of discounted rewards. Buffers, so they travel with every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from torchmem.types import Space


class Moments(nn.Module):
    """Mean and variance of all values seen so far, per entry of `shape` (Chan et al. 1983, pairwise update)."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.full((), 1e-4, dtype=torch.float64))  # the variance of 1 hardly counts

    @torch.no_grad()
    def absorb(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Take in `count` values with this mean and variance, float64."""
        total = self.count + count
        apart = mean - self.mean
        squares = self.var * self.count + var * count + apart.square() * self.count * count / total
        self.mean += apart * count / total
        self.var.copy_(squares / total)
        self.count.copy_(total)

    @property
    def std(self) -> Tensor:
        return torch.sqrt(self.var + 1e-8)


class ObsScale(nn.Module):
    """Float observations shifted and divided by their running moments, cut at -+ limit. Missing values (-inf) stay."""

    def __init__(self, spaces: Mapping[str, Space], limit: float) -> None:
        super().__init__()
        self.limit = limit
        self.moments = nn.ModuleDict({key: Moments(space.shape) for key, space in spaces.items()})

    def forward(self, obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out = {}
        for key, moments in self.moments.items():
            value = obs[key].float()
            scaled = ((value - moments.mean.float()) / moments.std.float()).clamp(-self.limit, self.limit)  # type: ignore[operator, union-attr]
            out[key] = torch.where(value == -torch.inf, value, scaled)
        return out


def moments_of(values: Tensor, lead: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and count over the first `lead` axes, float64; rows with a missing value (-inf) do not count."""
    flat = values.detach().flatten(0, lead - 1).double()
    present = (flat != -torch.inf).reshape(len(flat), -1).all(1)
    count = present.sum().double()
    wide = present.view(-1, *[1] * (flat.dim() - 1))
    safe = count.clamp(min=1)
    mean = torch.where(wide, flat, 0.0).sum(0) / safe
    var = (torch.where(wide, flat - mean, 0.0)).square().sum(0) / safe
    return mean, var, count


class RewardScale(Moments):
    """Deviation of the discounted sum of rewards so far in an episode, with the agent's own discount."""

    def __init__(self, gamma: float, limit: float) -> None:
        super().__init__(())
        self.gamma, self.limit = gamma, limit

    def sums(self, reward: Tensor, is_first: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, T) after a running sum `before` (B,) -> the running sums (B, T) and the last of them (B,)."""
        out, total = torch.empty_like(reward), before
        for t in range(reward.shape[1]):
            total = torch.where(is_first[:, t], 0.0, total) * self.gamma + reward[:, t]
            out[:, t] = total
        return out, total

    def forward(self, reward: Tensor) -> Tensor:
        return (reward / self.std.to(reward.dtype)).clamp(-self.limit, self.limit)
