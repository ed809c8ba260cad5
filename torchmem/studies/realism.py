"""How far a start is from what a simulator has seen: from encoded real starts, or from the prior over starts.

A sphere's prior is uniform, so that it says nothing: there the data must tell.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

SOFT = 0.03  # of the unit: over which the nearest of two neighbours changes smoothly


@dataclasses.dataclass(frozen=True)
class FromData:
    """Distance to the nearest encoded start, in units of how far random starts lie from it.

    encoded (M, L), M >= 2. size: mean distance of random starts to the nearest encoded one.
    """

    encoded: Tensor
    size: Tensor
    unit: str = "distance to the nearest real start, that of random starts being 1"

    @classmethod
    def of(cls, encoded: Tensor, random: Tensor) -> FromData:
        if len(encoded) < 2:
            raise ValueError(f"{len(encoded)} real starts cannot say what real is: give a recording of 2 episodes")
        return cls(encoded, torch.cdist(random, encoded).min(1).values.mean().clamp(min=1e-6))

    def distance(self, latent: Tensor) -> Tensor:
        """(R,) of (R, L); smooth, and its gradient is finite on a data point too."""
        gap = latent[:, None] - self.encoded
        away = (gap.square().sum(-1) + (1e-3 * self.size) ** 2).sqrt() / self.size
        return (torch.softmax(-away.detach() / SOFT, -1) * away).sum(-1)

    def others(self) -> Tensor:
        """(M,) the same of each encoded start, from the others."""
        distance = torch.cdist(self.encoded, self.encoded)
        distance.fill_diagonal_(torch.inf)
        return distance.min(1).values / self.size

    def nearest(self, latent: Tensor) -> Tensor:
        """(R,) index of the nearest encoded start."""
        return torch.cdist(latent, self.encoded).argmin(1)

    def penalty(self, latent: Tensor) -> Tensor:
        return self.distance(latent).square()


@dataclasses.dataclass(frozen=True)
class FromPrior:
    """How much less likely a start is than a draw of the standard normal prior, in deviations of such draws.

    size: numbers of a start.
    """

    size: int
    unit: str = "negative log-likelihood under the prior, in deviations from that of its draws"

    def distance(self, latent: Tensor) -> Tensor:
        """(R,) of (R, L); half the squared length has mean L / 2 and variance L / 2 over draws."""
        return (latent.square().sum(-1) - self.size) / (2 * self.size) ** 0.5

    def penalty(self, latent: Tensor) -> Tensor:
        return self.distance(latent).clamp(min=0)
