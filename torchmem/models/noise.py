"""All randomness of an agent's pass, drawn before it: passes can share it, replay it, or do without (the mode)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from torchmem.models.dists import gumbel
from torchmem.types import Space


@dataclasses.dataclass
class Noise:
    """One draw per (row, step, stochastic variable). A field that is None takes the mode.

    posterior: (B, T, S, K) Gumbel. prior: (N, H, S, K) Gumbel, N = B * T imagination starts, batch-major.
    action: per key Gumbel (..., *shape, classes) or standard normal (..., *shape); in imagination (N, H + 1, ...).
    """

    posterior: Tensor | None = None
    prior: Tensor | None = None
    action: Mapping[str, Tensor] | None = None

    @classmethod
    def mode(cls) -> Noise:
        return cls()


def action_noise(
    spaces: Mapping[str, Space], lead: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> dict[str, Tensor]:
    """Noise for one action per element of `lead`, in sorted key order."""
    out = {}
    for key, space in sorted(spaces.items()):
        if space.discrete:
            out[key] = gumbel((*lead, *space.shape, space.classes or 2), generator, device)
        else:
            out[key] = torch.randn((*lead, *space.shape), generator=generator, device=device)
    return out
