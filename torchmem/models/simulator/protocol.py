"""What every simulator of a world offers, and what the loop of a frozen agent in it returns.

Timing is that of torchmem/types.py. A simulator's carry *stands at* one step of the world: `look` shows that step's
observation, reward and end; `step` takes the action chosen there and stands at the next step.

    start = simulator.begin(context)                      # at the last real step of the context
    seen = simulator.look(start.world)                    # the simulator's own picture of that step
    acted = loop.act(seen.obs, ..., start.agent, ...)     # the frozen agent sees it, remembers, chooses (agent_loop.py)
    seen = simulator.step(seen.carry, acted.vector, draw) # the next step: carry, obs, reward, done

`rollout` (rollout.py) is these lines. Everything is differentiable: observations reach the agent as floats, actions
reach the world as a straight-through vector, and no draw is made inside (noise is given; None takes the mode).

B batch, C context, H steps of a rollout, A action vector, P packed carry of the agent, L latent, S x K categoricals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.types import EnvSpec


class Context(NamedTuple):
    """C >= 2 real steps from which a rollout begins, in one episode or across the start of one.

    obs[key], actions[key] (B, C, ...): actions[:, t] was taken after obs[:, t]. is_first (B, C) bool; steps before the
    newest one that is first belong to an earlier episode and are not looked at. memory (B, C, P): what the agent
    carried after each step, packed (packing.py).
    """

    obs: Mapping[str, Tensor]
    actions: Mapping[str, Tensor]
    is_first: Tensor
    memory: Tensor


class Start(NamedTuple):
    """Where a rollout begins."""

    world: Any  # the simulator's carry, at the first step to be shown
    agent: Any  # the agent's carry before it sees that step
    is_first: Tensor  # (B,) bool: that step opens an episode, so the agent forgets before it


class Stepped(NamedTuple):
    """One simulated step."""

    carry: Any  # stands at this step
    obs: dict[str, Tensor]  # float form of each key, see observations.py: images (B, H, W, C) in 0..255
    reward: Tensor  # (B,), that arrives with obs
    done: Tensor  # (B,), probability that this step ended the episode for good


@dataclasses.dataclass
class RolloutNoise:
    """All draws of one rollout of H steps; None takes the mode.

    start (B, 2, S, K): of `begin`. world (B, H, S, K): of each `step` (the last one is not used). agent: H draws of
    `Agent.acting_noise`, one per step.
    """

    start: Tensor | None = None
    world: Tensor | None = None
    agent: list[Noise] | None = None

    @classmethod
    def mode(cls) -> RolloutNoise:
        return cls()


class Simulator(Protocol):
    """A world that can be differentiated. Carries are nested tuples of tensors with leading B."""

    spec: EnvSpec
    context: int  # real steps that `begin` looks at
    loop: Any  # the AgentLoop in it

    @property
    def device(self) -> torch.device: ...

    def world_noise(
        self, batch: int, horizon: int, generator: torch.Generator | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """`start` and `world` of a RolloutNoise."""
        ...

    def begin(self, context: Context, draw: Tensor | None = None) -> Start: ...

    def look(self, carry: Any) -> Stepped: ...

    def step(self, carry: Any, action: Tensor, draw: Tensor | None) -> Stepped: ...

    def state_of(self, carry: Any) -> Tensor:
        """The world's state as one vector, (B, F), for analyses. For gradients ask the tensors of the carry itself."""
        ...

    def reconstruct(self, window: Any) -> dict[str, Tensor]:
        """The steps of a Window (window.py) as the simulator draws them while it sees them, float (B, T, ...)."""
        ...


class LatentSimulator(Simulator, Protocol):
    """A simulator whose starts are points of one space: starts can be drawn, mixed and optimised."""

    latent_size: int

    def encode(self, context: Context, draw: Tensor | None = None) -> Tensor:
        """(B, L)."""
        ...

    def from_latent(self, latent: Tensor, draw: Tensor | None = None) -> Start:
        """The start that a point stands for, the agent's memory and last action as the simulator guesses them."""
        ...

    def random_latent(self, batch: int, generator: torch.Generator | None) -> Tensor:
        """(B, L) from the prior over starts."""
        ...

    def project(self, latent: Tensor) -> Tensor:
        """The nearest point of the space (of a sphere: the same direction, length 1)."""
        ...


@dataclasses.dataclass(frozen=True)
class Paths:
    """Which ways a gradient may take. Values are the same whatever is cut.

    env: from an action into the world, hence through all that follows from it ("external memory"). memory: from the
    agent's carry into its next step ("internal memory"). frames: from what the world shows into the agent.
    through: how a discrete action passes gradient: that of the probabilities, of their logarithms (as the original
    does), of the probabilities tilted by the Gumbel draw that chose it (gumbel; without a draw as probs), or none.
    """

    env: bool = True
    memory: bool = True
    frames: bool = True
    through: str = "probs"  # probs, logp, gumbel or none


class Acted(NamedTuple):
    """What the frozen agent made of one observation. Tensors are the graph's own: gradients can be asked for them."""

    carry: Any  # after the observation, edits applied; its `action`, if it has one, is the vector, for the agent alone
    action: dict[str, Tensor]  # (B, ...) as the world would take it, without gradient
    vector: Tensor  # (B, A), straight-through; what the world gets
    value: Tensor  # (B,)
    params: dict[str, Tensor]  # logits.<key> (B, ..., classes), or mean.<key> and std.<key>
    memory: Tensor  # (B, M), `agent.memory_of(carry)`


class Turn(NamedTuple):
    """One step of a rollout: what the world showed and what the agent did. Tensors as they lie in the graph."""

    seen: Stepped
    before: Any  # the agent's carry as it entered this step
    acted: Acted


@dataclasses.dataclass
class Rollout:
    """H turns; `turns` hold the graph, the properties stack copies of it (B, H, ...) for reading."""

    turns: list[Turn]
    state: Tensor  # (B, H, F), the world's state

    def __len__(self) -> int:
        return len(self.turns)

    def stack(self, values: list[Tensor]) -> Tensor:
        return torch.stack(values, 1)

    @property
    def obs(self) -> dict[str, Tensor]:
        return {key: self.stack([t.seen.obs[key] for t in self.turns]) for key in self.turns[0].seen.obs}

    @property
    def reward(self) -> Tensor:
        return self.stack([t.seen.reward for t in self.turns])

    @property
    def done(self) -> Tensor:
        return self.stack([t.seen.done for t in self.turns])

    @property
    def action(self) -> dict[str, Tensor]:
        return {key: self.stack([t.acted.action[key] for t in self.turns]) for key in self.turns[0].acted.action}

    @property
    def value(self) -> Tensor:
        return self.stack([t.acted.value for t in self.turns])

    @property
    def params(self) -> dict[str, Tensor]:
        return {key: self.stack([t.acted.params[key] for t in self.turns]) for key in self.turns[0].acted.params}

    @property
    def memory(self) -> Tensor:
        return self.stack([t.acted.memory for t in self.turns])
