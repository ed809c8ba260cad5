"""A Dreamer's or R2I's own world model as the simulator it acts in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchmem.models.dists import gumbel
from torchmem.models.dreamer.rssm import feature
from torchmem.models.noise import Noise
from torchmem.models.simulator.agent_loop import AgentLoop
from torchmem.models.simulator.follow_actions import opens
from torchmem.models.simulator.observations import shown
from torchmem.models.simulator.packing import Packing
from torchmem.models.simulator.protocol import Context, Start, Stepped
from torchmem.models.simulator.window import Window


class OwnWorld:
    """`Simulator` by what an agent has learnt of its world; trained already, with its own losses.

    Its carry is the agent's. loop: another agent that shall act in it. Raises ValueError for an agent without such a
    world model.
    """

    context = 2

    def __init__(self, agent: Any, loop: AgentLoop | None = None) -> None:
        if agent.config.name not in ("dreamer", "r2i"):
            raise ValueError(
                f"agent {agent.config.name!r} holds no world model that can serve as its simulator: train one from a "
                f"recording (torchmem simulator train)"
            )
        self.agent, self.spec = agent, agent.spec
        self.loop = loop or AgentLoop(agent)
        self.foreign = self.loop.agent is not agent
        if self.foreign and (dict(self.loop.agent.spec.obs), dict(self.loop.agent.spec.action)) != (
            dict(agent.spec.obs),
            dict(agent.spec.action),
        ):
            raise ValueError("the two agents differ in the observations or actions of their worlds")
        self.packing = Packing(agent)

    @property
    def device(self) -> torch.device:
        return self.agent.device

    def world_noise(self, batch: int, horizon: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        c = self.agent.config
        shape = (c.stoch, c.classes)
        start = gumbel((batch, 2, *shape), generator, self.device)
        return start, gumbel((batch, horizon, *shape), generator, self.device)

    def begin(self, context: Context, draw: Tensor | None = None) -> Start:
        """The posterior at the last step of the context, from what the agent carried before it.

        A foreign agent's memory says nothing about this world: the posterior then knows the context alone.
        """
        acting = self.loop.packing.unpack(context.memory[:, -2])
        if self.foreign:
            return self._begin_anew(context, acting, draw)
        before = acting
        noise = Noise(posterior=None if draw is None else draw[:, :1])
        obs = {key: context.obs[key][:, -1:] for key in self.spec.obs}
        actions = {key: context.actions[key][:, -1:] for key in self.spec.action}
        first = context.is_first[:, -1:]
        world = self.agent.observe(obs, actions, first, before, noise).carry
        return Start(world._replace(action=torch.zeros_like(world.action)), before, first[:, 0])

    def _begin_anew(self, context: Context, acting: Any, draw: Tensor | None) -> Start:
        """The posterior along the whole context, as if the world began there."""
        first, rows = context.is_first, context.is_first.shape[0]
        carry, steps = self.agent.initial(rows), first.shape[1]
        noise = None if draw is None else draw[:, :1].expand(-1, steps, -1, -1)
        world = self.agent.observe(context.obs, context.actions, first, carry, Noise(posterior=noise)).carry
        return Start(world._replace(action=torch.zeros_like(world.action)), acting, first[:, -1])

    @torch.no_grad()
    def reconstruct(self, window: Window) -> dict[str, Tensor]:
        """The simulated steps drawn by a world model that sees them all (modes of the posterior), float (B, T, ...)."""
        before = self.agent.initial(len(window.first))
        if not self.foreign:
            before = self.packing.unpack(window.context.memory[:, -2])
        seen = self.agent.observe(window.obs, window.actions, opens(window), before, Noise.mode())
        states, lead = seen.states, window.weight.shape
        decoded = self.agent.decoder(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))
        return shown({key: value.unflatten(0, lead) for key, value in decoded.items()}, self.spec.obs)

    def look(self, carry: Any) -> Stepped:
        """What the world model expects to see where `carry` stands."""
        a, feat = self.agent, feature(carry)
        reward = a.reward.mean(a.reward(feat))
        goes_on = torch.sigmoid(a.cont(feat))
        if getattr(a.config, "contdisc", False):  # the head was taught the discount along with the end
            goes_on = (goes_on / (1 - 1 / a.config.horizon)).clamp(max=1.0)
        return Stepped(carry, shown(a.decoder(carry.deter, carry.stoch), self.spec.obs), reward, 1 - goes_on)

    def step(self, carry: Any, action: Tensor, draw: Tensor | None) -> Stepped:
        state, _ = self.agent.dynamics.imagine_step(carry, action, draw)
        return self.look(type(carry)(*state, action))

    def state_of(self, carry: Any) -> Tensor:
        return feature(carry)

    def agent_carry(self, carry: Any, before: Any) -> Any:
        """What the agent carries when it reads the world's state in place of its frames: that state."""
        return carry._replace(action=before.action)
