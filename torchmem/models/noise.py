"""All randomness of an agent's pass, drawn before it: passes can share it, replay it, or do without (the mode)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchmem.models.dists import gumbel
from torchmem.types import EnvSpec, Space


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


class CategoricalNoise:
    """The noise methods of agents whose stochastic state is `config.stoch` variables of `config.classes` classes."""

    spec: EnvSpec
    config: Any
    device: Any

    def acting_noise(self, batch: int, generator: torch.Generator | None) -> Noise:
        """Noise of one acting step for `batch` rows."""
        posterior = self._gumbel(generator, batch)
        return Noise(posterior=posterior, action=action_noise(self.spec.action, (batch,), generator, self.device))

    def sequence_noise(self, batch: int, length: int, generator: torch.Generator | None) -> Noise:
        """Noise of one `unroll` of `batch` sequences of `length` steps."""
        return Noise(posterior=self._gumbel(generator, batch, length))

    def imagination_noise(self, starts: int, horizon: int, generator: torch.Generator | None) -> Noise:
        """Noise of one `imagine` from `starts` states over `horizon` steps."""
        prior = self._gumbel(generator, starts, horizon)
        action = action_noise(self.spec.action, (starts, horizon + 1), generator, self.device)
        return Noise(prior=prior, action=action)

    def _gumbel(self, generator: torch.Generator | None, *lead: int) -> Tensor:
        return gumbel((*lead, self.config.stoch, self.config.classes), generator, self.device)
