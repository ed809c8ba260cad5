"""The closed loop: a simulator shows, a frozen agent acts, the simulator goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.models.simulator.agent_loop import AgentLoop, Edit
from torchmem.models.simulator.packing import cut
from torchmem.models.simulator.protocol import Paths, Rollout, RolloutNoise, Start, Stepped, Turn


def rollout_noise(
    simulator: Any, loop: AgentLoop, batch: int, horizon: int, generator: torch.Generator | None,
    *, world: bool = True, actions: bool = True,
) -> RolloutNoise:  # fmt: skip
    """Fresh draws for `rollout`. world, actions: False takes the mode of the world's latents, of the policy."""
    start, draws = simulator.world_noise(batch, horizon, generator) if world else (None, None)
    agent = [loop.agent.acting_noise(batch, generator) for _ in range(horizon)]
    if not actions:
        agent = [Noise(posterior=one.posterior) for one in agent]
    return RolloutNoise(start, draws, agent)


def rollout(
    simulator: Any,
    loop: AgentLoop,
    start: Start,
    horizon: int,
    noise: RolloutNoise | None = None,
    *,
    actions: Mapping[str, Tensor] | None = None,
    paths: Paths | None = None,
    edit: Edit | None = None,
    early: bool = False,
    sees: str = "frames",
    reset_at_end: bool = False,
) -> Rollout:
    """H turns from `start`, the first at the step where it stands.

    noise: see RolloutNoise; None: modes throughout. actions: (B, H, ...) to take in place of the agent's own. paths:
    which ways gradients may take. edit(before, after) -> carry: changes what the agent carries on, see `AgentLoop.act`.
    sees: "frames" gives the agent what the simulator draws; "latent" lets an agent that is its own simulator read the
    world's state, as its imagination does. reset_at_end: the agent forgets after a step that is predicted to end the
    episode. The future of the real episode enters nowhere.
    """
    noise, paths = noise or RolloutNoise.mode(), paths or Paths()
    if sees not in ("frames", "latent"):
        raise ValueError(f"sees must be frames or latent, got {sees!r}")
    if sees == "latent" and not hasattr(simulator, "agent_carry"):
        raise ValueError("sees='latent' needs an agent that is its own simulator (dreamer, r2i): leave it at frames")
    carry, is_first = start.agent, start.is_first
    seen: Stepped = simulator.look(start.world)
    turns, states = [], []
    for t in range(horizon):
        draw = noise.agent[t] if noise.agent else Noise.mode()
        given = None if actions is None else {key: value[:, t] for key, value in actions.items()}
        if sees == "frames":
            acted = loop.act(seen.obs, is_first, carry, draw, paths, actions=given, edit=edit, early=early)
        else:
            after = simulator.agent_carry(seen.carry, carry)
            acted = loop.choose(carry, after, draw, paths, actions=given, edit=edit, early=early)
        turns.append(Turn(seen, carry, acted))
        states.append(simulator.state_of(seen.carry))
        if t + 1 < horizon:
            stands = seen.carry
            if sees == "latent":  # one state is both: an edit of what the agent carries is an edit of its world
                stands = acted.carry if paths.memory else cut(acted.carry)
            action = acted.vector if paths.env else acted.vector.detach()
            seen = simulator.step(stands, action, None if noise.world is None else noise.world[:, t])
            carry = acted.carry
            is_first = seen_end(turns[-1].seen) if reset_at_end else torch.zeros_like(start.is_first)
    return Rollout(turns, torch.stack(states, 1))


def seen_end(seen: Stepped) -> Tensor:
    """(B,) bool: that step is more likely the episode's last than not."""
    return seen.done.detach() > 0.5
