"""Agents of the same kind that learn from the set itself: a world model, and a supervised oracle.

The published rows are of such: "RSSM (TBTT)" learned to predict the set's images, and was probed; the oracle is the
same network with the probes' gradients let in. Both go through whole trajectories with truncated backpropagation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from torchmem.errors import TorchmemError
from torchmem.studies.maze.features import Steps, joined, stream
from torchmem.studies.maze.heads import Head, HeadPlan, head_loss
from torchmem.studies.maze.trajectories import MazeSet
from torchmem.surgery.model import untrained


class LossExploded(TorchmemError):
    """A loss is no number any more; the message says at which update and what to lower."""


@dataclasses.dataclass(frozen=True)
class TeachPlan:
    """updates on `rows` x `length` steps; Adam's rate, and the norm that gradients are cut to."""

    updates: int = 1000
    rows: int = 8
    length: int = 48
    lr: float = 4e-4
    clip: float = 10.0


class WorldLesson:
    """The world model's own loss along a stream: what it ended with is where the next steps begin."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent
        self._before: dict[str, Tensor] = {}  # the last step so far (B, 1, ...): the context of `world_loss`

    def __call__(self, steps: Steps, draw: torch.Generator | None) -> Tensor:
        """The weighted loss of (B, T) steps, a scalar. draw: of the latents' noise; None takes their modes."""
        agent = self.agent
        (key,), (name,) = agent.spec.obs, agent.spec.action
        rows, length = steps.action.shape
        batch = {key: steps.image, name: steps.action, "reward": steps.reward, "is_first": steps.is_first,
                 "is_terminal": torch.zeros_like(steps.is_first)}  # fmt: skip
        if not self._before:  # an empty context; a row that does not begin an episode starts from the empty state
            self._before = {k: torch.zeros_like(v[:, :1]) for k, v in batch.items()}
            self._before |= {k: v[:, None] for k, v in agent.stored(agent.initial(rows)).items()}
        latents = self._before.keys() - batch.keys()  # only step 0 of them is read
        context = {k: torch.cat([self._before[k], v], 1) for k, v in batch.items()} | {
            k: self._before[k].expand(-1, length + 1, *self._before[k].shape[2:]) for k in latents
        }
        noise = agent.sequence_noise(rows, length, draw).posterior if draw is not None else None
        losses, states, _ = agent.world_loss(context, noise)
        self._before = {k: v[:, -1:] for k, v in batch.items()}
        self._before |= {k: v[:, -1:] for k, v in agent.stored(states).items()}
        return torch.stack([agent.scale(part) * value.mean() for part, value in losses.items()]).sum()


class OracleLesson:
    """The probes' losses, with gradients into the agent. probes: "walls" and "balls", on the same latent."""

    def __init__(self, model: Any, sites: Sequence[str], probes: Mapping[str, Head], plan: HeadPlan) -> None:
        self.model, self.sites, self.probes, self.plan = model, list(sites), probes, plan
        self._carry: Any = None

    def __call__(self, steps: Steps, draw: torch.Generator | None) -> Tensor:
        """The loss of (B, T) steps, a scalar: nats per cell, and squared cells per ball as a share of the maze."""
        agent = self.model.agent
        (key,), (name,) = agent.spec.obs, agent.spec.action
        noise = agent.sequence_noise(*steps.action.shape, draw) if draw is not None else "mode"
        out, values = self.model.run_with_cache(
            {key: steps.image}, self.sites, actions={name: steps.action}, is_first=steps.is_first, carry=self._carry,
            grad=True, noise=noise)
        self._carry = _cut(out.carry)
        latent = joined(values, self.sites)
        total = torch.zeros((), device=agent.device)
        for kind, probe in self.probes.items():
            x = torch.cat([latent, steps.place], -1) if self.plan.sees_place(kind) else latent
            scale = 1.0 if kind == "walls" else 4 / steps.walls.shape[-1]
            total = total + scale * head_loss(kind, probe(x), steps.walls, steps.balls)
        return total


def teach_world(model: Any, walks: MazeSet, plan: TeachPlan, seed: int = 0, progress: bool = False) -> Any:
    """A fresh agent of the kind of `model` whose world model learned to predict the training trajectories.

    Raises ValueError for an agent without one, LossExploded.
    """
    taught = untrained(model, seed)
    if not hasattr(taught.agent, "world_loss"):
        raise ValueError(f"a {taught.agent.config.name} agent has no world model that could learn from the set")
    parameters = [p for _, p in taught.agent.trained()]
    _descend(parameters, WorldLesson(taught.agent), walks, plan, seed, "world model", taught.agent.device, progress)
    return taught


def teach_oracle(
    model: Any, walks: MazeSet, sites: Sequence[str], plan: TeachPlan, heads: HeadPlan, seed: int = 0,
    progress: bool = False,
) -> Any:  # fmt: skip
    """A fresh agent of the kind of `model` whose sites learned, under supervision, to tell walls and balls.

    Raises LossExploded.
    """
    taught = untrained(model, seed)
    example = next(stream(walks, 1, 1, np.random.default_rng(0)))
    sizes = {"walls": example.walls.shape[-1], "balls": example.balls[0, 0].numel()}
    width = sum(math.prod(taught.find(site).shape) for site in sites)
    probes = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for kind, out in sizes.items():
            wide = width + (example.place.shape[-1] if heads.sees_place(kind) else 0)
            probes[kind] = Head(torch.zeros(wide), torch.ones(wide), out, heads).to(taught.agent.device)
    parameters = [p for _, p in taught.agent.trained()]
    parameters += [p for probe in probes.values() for p in probe.parameters()]
    lesson = OracleLesson(taught, sites, probes, heads)
    _descend(parameters, lesson, walks, plan, seed, "oracle", taught.agent.device, progress)
    return taught


def _descend(
    parameters: list[nn.Parameter], loss: Callable[[Steps, torch.Generator], Tensor], walks: MazeSet,
    plan: TeachPlan, seed: int, what: str, device: torch.device, progress: bool,
) -> None:  # fmt: skip
    draw = torch.Generator(device).manual_seed(seed)
    optimizer = torch.optim.Adam(parameters, lr=plan.lr)
    batches = stream(walks, plan.rows, plan.length, np.random.default_rng(seed))
    with torch.enable_grad(), tqdm(total=plan.updates, desc=what, unit="update", disable=not progress) as bar:
        for update in range(plan.updates):
            value = loss(next(batches).to(device), draw)
            shown = float(value.detach())
            if not math.isfinite(shown):
                raise LossExploded(f"{what}: the loss is {shown} at update {update}: lower the rate ({plan.lr:g})")
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, plan.clip)
            optimizer.step()
            bar.update()
            if update % 20 == 0:
                bar.set_postfix(loss=f"{shown:.3g}")


def _cut(carry: Any) -> Any:
    """The same carry without its history."""
    if isinstance(carry, Tensor):
        return carry.detach()
    if hasattr(carry, "_fields"):
        return type(carry)(*(_cut(part) for part in carry))
    return type(carry)(_cut(part) for part in carry) if isinstance(carry, tuple | list) else carry
