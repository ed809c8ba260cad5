"""Who acts in a run: the agent that trains or, with `trainer.policy_device`, a copy of its weights on another device.

The copy is renewed whenever it has missed `trainer.policy_every` updates. In between it acts with old weights; how old
is told as its staleness, in updates. With policy_every=1 a run on one kind of device is the run without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchmem.models.checkpoint import new_agent
from torchmem.training.run_config import TrainerConfig


class Actor:
    """`agent` acts, on `device`, through `policy` (its own, or a compiled form of it)."""

    def __init__(self, trained: Any, config: TrainerConfig) -> None:
        self.trained, self.every = trained, config.policy_every
        self.split = config.policy_device is not None
        self.agent = trained
        if self.split:
            with torch.random.fork_rng(devices=[]):  # weights are drawn and thrown away: the run must not notice
                self.agent = new_agent(trained.spec, trained.config).to(str(config.policy_device))
            self.agent.dtype = trained.dtype
            self.agent.requires_grad_(False)
        self.policy: Callable[..., Any] = self.agent.policy
        self.copied_at: int | None = None  # updates made when the weights were last copied

    @property
    def device(self) -> torch.device:
        return self.agent.device

    def follow(self, updates: int) -> int:
        """Renew the copy if it is due, before it acts. Returns its staleness: how many of the updates it lacks."""
        if not self.split:
            return 0
        if self.copied_at is None or updates - self.copied_at >= self.every:
            self._copy(self.trained.state_dict())
            self.copied_at = updates
        return updates - self.copied_at

    def state_dict(self, updates: int) -> dict[str, Any]:
        """What a run needs to go on: the old weights, unless they are those of the agent."""
        if not self.split or self.copied_at is None:
            return {}
        stale = updates > self.copied_at
        return {"copied_at": self.copied_at, "weights": self.agent.state_dict() if stale else {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as saved; without a word of a copy in it, the next `follow` makes one."""
        self.copied_at = None
        if self.split and state:
            self._copy(state["weights"] or self.trained.state_dict())
            self.copied_at = int(state["copied_at"])

    @torch.no_grad()
    def _copy(self, weights: Mapping[str, Tensor]) -> None:
        own = self.agent.state_dict()
        for name, value in weights.items():
            own[name].copy_(value)
