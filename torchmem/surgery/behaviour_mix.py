"""Other behaviour than the agent's own while it is recorded: hotter or colder, random now and then, sticky.

Spec simulator.md, R4. What the agent thinks (value, logits) is recorded as it thinks it; what it does is the mixture's,
and it remembers having done that. Recordings of such behaviour show a world's other outcomes, which a simulator needs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.types import Space


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """temperature: logits are divided by it, standard deviations multiplied. epsilon: share of steps with an action
    drawn evenly. sticky: share of steps, after the first, that repeat the action before (on top of epsilon)."""

    temperature: float = 1.0
    epsilon: float = 0.0
    sticky: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not np.isfinite(self.temperature):
            raise ValueError(f"temperature must be above 0, got {self.temperature}; the likeliest action is greedy")
        for name in ("epsilon", "sticky"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be within 0..1, got {getattr(self, name)}")

    @property
    def own(self) -> bool:
        """The agent's own behaviour and nothing else."""
        return self == Behaviour()

    def describe(self) -> str:
        told = {name: value for name, value in dataclasses.asdict(self).items() if value != getattr(Behaviour(), name)}
        return ", ".join(f"{name} {value:g}" for name, value in told.items())


class Mixer:
    """A behaviour at work in n worlds. What it draws in an episode follows from the episode's seed alone."""

    def __init__(self, behaviour: Behaviour, agent: Any, n: int) -> None:
        self.behaviour, self.agent = behaviour, agent
        self.spaces: Mapping[str, Space] = agent.spec.action
        self.draws = [np.random.default_rng() for _ in range(n)]
        self.before: dict[str, Tensor] | None = None

    def begin(self, row: int, seed: int) -> None:
        """An episode opens in a world."""
        self.draws[row] = np.random.default_rng([seed, 1])

    def heat(self, noise: Noise) -> Noise:
        """The noise of an acting step, at this temperature: scaling Gumbel noise divides logits."""
        if noise.action is None:
            return noise
        return dataclasses.replace(noise, action={k: v * self.behaviour.temperature for k, v in noise.action.items()})

    def act(self, is_first: Tensor, chosen: Mapping[str, Tensor], carry: Any) -> tuple[dict[str, Tensor], Any]:
        """What is done in place of `chosen` (n, ...), and the carry of an agent that remembers it."""
        b, device = self.behaviour, is_first.device
        lots = np.stack([rng.random(2) for rng in self.draws])
        done = dict(chosen)
        anew = torch.as_tensor(lots[:, 0] < b.epsilon, device=device)
        again = torch.as_tensor(lots[:, 1] < b.sticky, device=device) & ~is_first
        for key, space in self.spaces.items():
            even = torch.as_tensor(np.stack([_draw(space, rng) for rng in self.draws]), device=device)
            done[key] = _where(anew, even.to(chosen[key].dtype), chosen[key])
            if self.before is not None:
                done[key] = _where(again, self.before[key], done[key])
        self.before = {key: value.clone() for key, value in done.items()}  # the collector writes zeros into its own
        if "action" in getattr(carry, "_fields", ()):
            vector = self.agent.action_vector(done)
            carry = carry._replace(action=vector.to(carry.action.dtype))
        return done, carry


def _draw(space: Space, rng: np.random.Generator) -> np.ndarray:
    if space.discrete:
        return rng.integers(space.classes or 2, size=space.shape)
    return rng.uniform(-1, 1, size=space.shape)  # where agents act; the world's side rescales


def _where(rows: Tensor, this: Tensor, other: Tensor) -> Tensor:
    return torch.where(rows.reshape(-1, *[1] * (other.dim() - 1)), this, other)
