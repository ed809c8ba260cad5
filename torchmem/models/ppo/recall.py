"""Recall: name from memory what this episode has shown so far. A loss of its own, without labels and without reward.

Reward says only at the end of an episode, and at first at random, that something should have been kept. This says it
at every step, so that memory is there before the policy knows what it is for.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.models.inputs import concat_keys
from torchmem.types import Space


class Recall(nn.Module):
    """hidden (..., D) -> logits (..., F) that each feature of the vector observations has been on in this episode.

    Vectors must lie in 0..1, as one-hot codes do. width: numbers per cell of a symbolic view; a feature then is on
    where it is in any cell. None: every number is a feature. Raises ValueError for observations that do not fit.
    """

    def __init__(self, size_in: int, obs: Mapping[str, Space], width: int | None) -> None:
        super().__init__()
        self.vectors = {key: space for key, space in sorted(obs.items()) if not space.image}
        for key, space in self.vectors.items():
            if not space.discrete and (space.low, space.high) != (0.0, 1.0):
                raise ValueError(f"agent.recall needs observations in 0..1; {key!r} is in {space.low}..{space.high}")
        total = sum(space.one_hot_size for space in self.vectors.values())
        if not total:
            raise ValueError("agent.recall needs a vector observation, and this world shows none; set agent.recall=0")
        self.width = width or total
        if total % self.width:
            raise ValueError(f"agent.recall_width={width} does not divide the {total} numbers of an observation")
        self.out = nn.Linear(size_in, self.width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(hidden)

    def features(self, obs: Mapping[str, Tensor]) -> Tensor:
        """obs[key] (..., *shape) -> (..., F): what is on now."""
        return concat_keys(obs, self.vectors, squash=False).unflatten(-1, (-1, self.width)).amax(-2)

    def history(self, obs: Mapping[str, Tensor], is_first: Tensor, before: Tensor) -> Tensor:
        """Rows (B, T, ...), is_first (B, T), what was on before them (B, F) -> (B, T, F): on so far, this step too."""
        now, out = self.features(obs), []
        for t, first in enumerate(is_first.unbind(1)):
            before = torch.maximum(before * (~first).to(now.dtype).unsqueeze(-1), now[:, t])
            out.append(before)
        return torch.stack(out, 1)

    def loss(self, hidden: Tensor, history: Tensor) -> Tensor:
        """Cross-entropy in nats, summed over features: (B, T)."""
        return F.binary_cross_entropy_with_logits(self(hidden), history, reduction="none").sum(-1)
