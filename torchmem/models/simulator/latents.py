"""The stochastic part of a simulated state, z: categorical variables (the original) or Gaussian ones.

Both kinds: `raw` numbers from a network -> `read`, their distribution -> `draw`, a value (B, S, K) with gradient; `kl`
between two distributions; `noise`, what `draw` takes (None: the mode). K is 1 for Gaussian variables.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmem.models.dists import categorical_kl, gumbel, straight_through, unimix
from torchmem.models.simulator.config import SimulatorConfig

SMALLEST = 0.1  # standard deviation of a Gaussian z, without which it shrinks to a point


class Categorical:
    """S variables of K classes, one-hot with straight-through gradient; `read` gives log-probabilities (..., S, K)."""

    def __init__(self, c: SimulatorConfig) -> None:
        self.share = c.unimix
        self.raw = self.shape = (c.stoch, c.classes)

    def read(self, raw: Tensor) -> Tensor:
        return unimix(raw, self.share)

    def draw(self, known: Tensor, noise: Tensor | None) -> Tensor:
        return straight_through(known, noise)

    def kl(self, one: Tensor, other: Tensor) -> Tensor:
        """(..., S, K) twice -> (...), nats."""
        return categorical_kl(one, other)

    def noise(self, lead: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        return gumbel((*lead, *self.shape), generator, device)


class Gaussian:
    """S independent normal variables; `read` gives mean and standard deviation, (..., S, 2)."""

    def __init__(self, c: SimulatorConfig) -> None:
        self.shape, self.raw = (c.stoch, 1), (c.stoch, 2)

    def read(self, raw: Tensor) -> Tensor:
        mean, spread = raw.unbind(-1)
        return torch.stack([mean, F.softplus(spread) + SMALLEST], -1)

    def draw(self, known: Tensor, noise: Tensor | None) -> Tensor:
        mean, std = known.split(1, -1)
        return mean if noise is None else mean + std * noise

    def kl(self, one: Tensor, other: Tensor) -> Tensor:
        """(..., S, 2) twice -> (...), nats."""
        (m1, s1), (m2, s2) = one.unbind(-1), other.unbind(-1)
        ratio = (s1 / s2).square()
        return (0.5 * (ratio + ((m1 - m2) / s2).square() - 1 - ratio.log())).sum(-1)

    def noise(self, lead: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
        return torch.randn((*lead, *self.shape), generator=generator, device=device)


Latents = Categorical | Gaussian


def latents_of(c: SimulatorConfig) -> Latents:
    return Gaussian(c) if c.latents == "gaussian" else Categorical(c)
