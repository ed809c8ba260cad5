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
    statistics, for `Agent.commit` after the optimiser step. carry: after the last step. taps: activations of the sites
    that `models/taps.py` was asked for, none by default.
    """

    total: Tensor
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    latents: dict[str, Tensor]
    state: dict[str, Tensor]
    carry: Carry
    taps: dict[str, Tensor] = dataclasses.field(default_factory=dict)


class Outputs(Protocol):
    """What `unroll` returns at least; a named tuple, all (B, T, ...). Agents add their own fields."""

    @property
    def policy(self) -> dict[str, tuple[Tensor, ...]]: ...  # parameters of each action's distribution

    @property
    def value(self) -> Tensor: ...  # (B, T)

    @property
    def carry(self) -> Carry: ...  # after the last step


class Agent(Protocol):
    """A recurrent agent, an nn.Module too. `carry` goes in and comes out; it remembers nothing between calls."""

    spec: EnvSpec
    config: Any  # the agent's dataclass; its `name` says which agent this is

    @property
    def sites(self) -> Mapping[str, Site]: ...

    @property
    def device(self) -> torch.device: ...

    def state_dict(self) -> dict[str, Any]: ...

    def trained(self) -> list[tuple[str, torch.nn.Parameter]]: ...

    def initial(self, batch: int) -> Carry: ...

    def acting_noise(self, batch: int, generator: torch.Generator | None) -> Noise: ...

    def policy(
        self, obs: Mapping[str, Tensor], carry: Carry, noise: Noise
    ) -> tuple[Action, Carry, dict[str, Tensor]]: ...

    def read_out(self, carry: Carry) -> dict[str, Tensor]: ...

    def memory_of(self, carry: Carry) -> Tensor: ...

    def sequence_noise(self, batch: int, length: int, generator: torch.Generator | None) -> Noise: ...

    def unroll(
        self,
        obs: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        is_first: Tensor,
        carry: Carry,
        noise: Noise | None = None,
    ) -> Outputs: ...

    def loss(self, batch: Mapping[str, Tensor], noise: Noise) -> LossOut: ...

    def commit(self, out: LossOut) -> None: ...


class WorldModelAgent(Agent, Protocol):
    """An agent that can also dream: N futures of H steps from its own states."""

    def observe(
        self,
        obs: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        is_first: Tensor,
        carry: Carry,
        noise: Noise | None = None,
    ) -> Any: ...

    def imagination_noise(self, starts: int, horizon: int, generator: torch.Generator | None) -> Noise: ...

    def imagine(
        self, start: Carry, horizon: int, noise: Noise, actions: Mapping[str, Tensor] | None = None
    ) -> Any: ...
