"""What every agent offers. Training, surgery and evaluation know no more than this."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.types import EnvSpec, Site

Carry = Any  # a nested tuple of tensors with leading B; what an agent remembers between calls
Action = dict[str, Tensor]


@dataclasses.dataclass
class LossOut:
    """Everything one pass over a batch yields; nothing in the agent has changed yet.

    total: the scalar to differentiate. losses: each named loss per element, (B, T) or (B, T - 1), unscaled.
    metrics: scalars. latents: what replay stores for each step, (B, T, ...). state: new values of the agent's running
    statistics, for `Agent.commit` after the optimiser step. carry: after the last step.
    """

    total: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    latents: dict[str, Tensor]
    state: dict[str, Tensor]
    carry: Carry


class Agent(Protocol):
    """A recurrent agent. `carry` goes in and comes out; the agent itself remembers nothing between calls."""

    spec: EnvSpec
    config: Any  # the agent's dataclass; its `name` says which agent this is

    @property
    def sites(self) -> Mapping[str, Site]: ...

    @property
    def device(self) -> torch.device: ...

    def state_dict(self) -> dict[str, Any]: ...

    def initial(self, batch: int) -> Carry: ...

    def policy(
        self, obs: Mapping[str, Tensor], carry: Carry, noise: Noise
    ) -> tuple[Action, Carry, dict[str, Tensor]]: ...

    def loss(self, batch: Mapping[str, Tensor], noise: Noise) -> LossOut: ...

    def commit(self, out: LossOut) -> None: ...
