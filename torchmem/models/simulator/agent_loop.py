"""A frozen agent inside a simulator: one differentiable step of it, by the agent's protocol alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmem.models.dists import sample_index
from torchmem.models.inputs import concat_keys
from torchmem.models.noise import Noise
from torchmem.models.simulator.packing import Packing, cut
from torchmem.models.simulator.protocol import Acted, Paths
from torchmem.types import Space

Edit = Callable[[Any, Any], Any]  # (carry before the step, carry after it) -> the carry that shall hold


class AgentLoop:
    """Holds an agent and freezes it: none of its parameters takes a gradient from now on.

    The agent is no part of a simulator: not of its parameters, its optimiser or its checkpoint.
    """

    def __init__(self, agent: Any) -> None:
        self.agent = agent.requires_grad_(False)
        self.packing = Packing(agent)
        self.spaces: dict[str, Space] = dict(sorted(agent.spec.action.items()))
        self.action_size = sum(space.one_hot_size for space in self.spaces.values())

    def act(
        self,
        obs: Mapping[str, Tensor],
        is_first: Tensor,
        before: Any,
        noise: Noise,
        paths: Paths,
        *,
        actions: Mapping[str, Tensor] | None = None,
        edit: Edit | None = None,
        early: bool = False,
    ) -> Acted:
        """One step on float observations (B, ...).

        actions: taken in place of the agent's own. edit: changes what the agent carries on; early: also what its heads
        read at this very step (else the effect begins with the next one, as in the original).
        """
        seen = obs if paths.frames else {key: value.detach() for key, value in obs.items()}
        carry = before if paths.memory else cut(before)
        _, after, _ = self.agent.policy({**seen, "is_first": is_first}, carry, dataclasses.replace(noise, action=None))
        return self.choose(carry, after, noise, paths, actions=actions, edit=edit, early=early)

    def choose(
        self, carry: Any, after: Any, noise: Noise, paths: Paths, *, actions: Mapping[str, Tensor] | None = None,
        edit: Edit | None = None, early: bool = False,
    ) -> Acted:  # fmt: skip
        """The second half of `act`, for an agent whose carry `after` the observation is known."""
        kept = after if edit is None else edit(carry, after)
        read = self.agent.read_out(kept if early else after)
        params = {key: value for key, value in read.items() if key != "value"}
        if actions is None:
            action, vector = self.sample(params, noise.action, paths.through)
        else:
            action = {key: actions[key] for key in self.spaces}
            vector = self.action_vector(action).to(read["value"].dtype)
        if self.packing.has_action:
            kept = kept._replace(action=vector)
        # a node of its own: gradients for it are those of the way through the world, without the agent's own memory
        return Acted(kept, action, vector.clone(), read["value"], params, self.agent.memory_of(kept))

    def action_vector(self, actions: Mapping[str, Tensor]) -> Tensor:
        """Actions (..., *shape) as the world takes them -> (..., A), integers one-hot."""
        return concat_keys(actions, self.spaces, squash=False)

    def sample(
        self, params: Mapping[str, Tensor], noise: Mapping[str, Tensor] | None, through: str
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Actions as the world takes them, and as one vector (B, A) with straight-through gradient (see `Paths`)."""
        taken, parts = {}, []
        for key, space in self.spaces.items():
            draw = None if noise is None else noise[key]
            if not space.discrete:
                mean, std = params[f"mean.{key}"], params[f"std.{key}"]
                value = mean if draw is None else mean + std * draw
                taken[key] = value.detach()
                parts.append((value.detach() if through == "none" else value).flatten(1))
                continue
            logits = params[f"logits.{key}"]
            index = sample_index(logits.detach(), draw)
            taken[key] = index.to(getattr(torch, space.dtype))
            hot = F.one_hot(index, logits.shape[-1]).to(logits.dtype)
            if through != "none" and logits.requires_grad:
                tilted = logits + draw if through == "gumbel" and draw is not None else logits
                soft = torch.log_softmax(logits, -1) if through == "logp" else torch.softmax(tilted, -1)
                hot = hot + (soft - soft.detach())
            parts.append(hot.flatten(1))
        return taken, torch.cat(parts, -1)

    def sequence(
        self, obs: Mapping[str, Tensor], actions: Mapping[str, Tensor], is_first: Tensor, carry: Any, noise: Noise
    ) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, ...]]]:
        """Along given observations and actions (B, T, ...): memory (B, T, M), value (B, T), action parameters."""
        out = self.agent.unroll(obs, actions, is_first, carry, noise)
        return self._memory(out, is_first), out.value, out.policy

    def _memory(self, out: Any, is_first: Tensor) -> Tensor:
        states = getattr(out, "states", out)  # what memory_of reads of a carry lies there by the same names
        return self.agent.memory_of(states).reshape(*is_first.shape, -1)

    def memories(
        self, obs: Mapping[str, Tensor], actions: Mapping[str, Tensor], is_first: Tensor, carry: Any, noise: Noise,
        truncate: int = 0,
    ) -> Tensor:  # fmt: skip
        """Memory (B, T, M) as in `sequence`. truncate: the carry is cut after every so many steps; 0: never."""
        if not truncate:
            return self.sequence(obs, actions, is_first, carry, noise)[0]
        parts = []
        for at in range(0, is_first.shape[1], truncate):
            some = slice(at, at + truncate)
            seen, taken = ({key: value[:, some] for key, value in rows.items()} for rows in (obs, actions))
            drawn = None if noise.posterior is None else noise.posterior[:, some]
            draws = dataclasses.replace(noise, posterior=drawn)
            out = self.agent.unroll(seen, taken, is_first[:, some], carry, draws)
            parts.append(self._memory(out, is_first[:, some]))
            carry = cut(out.carry)
        return torch.cat(parts, 1)
