"""Rollouts: whole columns of T steps of n worlds, what was thought at each step, and the row that follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from torchmem.models.noise import Noise
from torchmem.models.ppo.agent import START, PPOAgent
from torchmem.models.ppo.losses import advantage, decisions
from torchmem.models.ppo.scales import moments_of
from torchmem.training.processes import Processes
from torchmem.types import EnvSpec

Tensors = dict[str, Tensor]


class Worlds(Protocol):
    """n worlds in lock-step that speak tensors: TensorWorld, or a VectorEnv seen through `TensorView`."""

    n: int
    spec: EnvSpec

    def step(self, actions: Tensors | None) -> tuple[Tensors, Tensors]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> list[bool]: ...

    def close(self) -> None: ...


class Rollout:
    """Collects rollout after rollout and hands them out as minibatches of whole columns.

    Row t of column i is step t of world i, ends of episodes included. The row after the last one is seen and valued but
    not acted on: it is the first row of the next rollout, met there by the updated policy and the same carry.
    """

    def __init__(self, agent: PPOAgent, worlds: Worlds, length: int, acting: torch.Generator) -> None:
        self.agent, self.worlds, self.length, self.acting = agent, worlds, length, acting
        self.carry = agent.initial(worlds.n)
        self.data: Tensors = {}  # the row to be met next
        self.start = self.carry  # before the first row
        n, device = worlds.n, agent.device
        self.returns = torch.zeros(n, dtype=torch.float64, device=device)
        self.lengths = torch.zeros(n, dtype=torch.int64, device=device)
        self.discounted = torch.zeros(n, device=device)
        self.shown = torch.zeros(n, agent.recall.width if agent.recall else 0, device=device)
        spaces = {**agent.spec.obs, **agent.spec.action}
        kinds = {key: ((length, *s.shape), getattr(torch, s.dtype)) for key, s in spaces.items()}
        kinds |= {"logp": ((length,), torch.float32), "value": ((length + 1,), torch.float32)}
        kinds |= {"reward": ((length + 1,), torch.float32)}
        kinds |= dict.fromkeys(("is_first", "is_last", "is_terminal"), ((length + 1,), torch.bool))
        self.rows = {key: torch.zeros((n, *shape), dtype=dtype, device=device) for key, (shape, dtype) in kinds.items()}
        self.batch: Tensors = {}  # of whole columns, once `finish` has run

    @torch.no_grad()
    def collect(self, policy: Any = None) -> list[tuple[int, float, int]]:
        """Fill all rows. Returns (world, return, agent steps) of the episodes that ended in them, in order of time."""
        policy = policy or self.agent.policy
        rows, n = self.rows, self.worlds.n
        if not self.data:
            self.data, _ = self.worlds.step(None)
        self.start = type(self.carry)(*(part.clone() for part in self.carry))
        totals, counts = [], []
        for t in range(self.length):
            data = self.data
            actions, self.carry, told = policy(data, self.carry, self.agent.acting_noise(n, self.acting))
            self._note(t, data)
            open_ = ~data["is_last"]
            for key, value in actions.items():
                rows[key][:, t] = value * open_.view(-1, *[1] * (value.dim() - 1))
            rows["logp"][:, t], rows["value"][:, t] = told["logp"], told["value"]
            self.returns = self.returns * ~data["is_first"] + data["reward"]
            self.lengths = self.lengths * ~data["is_first"] + 1
            totals.append(self.returns)
            counts.append(self.lengths)
            self.data, _ = self.worlds.step({key: rows[key][:, t].contiguous() for key in actions})
        self._note(self.length, self.data)
        # Valued with a carry that is then forgotten: the next rollout meets this row once, not twice.
        _, _, told = policy(self.data, self.carry, Noise.mode())
        rows["value"][:, self.length] = told["value"]
        return self._ended(torch.stack(totals), torch.stack(counts))

    def _note(self, t: int, data: Tensors) -> None:
        for key in ("reward", "is_first", "is_last", "is_terminal"):
            self.rows[key][:, t] = data[key]
        if t < self.length:
            for key in self.agent.spec.obs:
                self.rows[key][:, t] = data[key]

    def _ended(self, totals: Tensor, counts: Tensor) -> list[tuple[int, float, int]]:
        steps, worlds = self.rows["is_last"][:, :-1].t().nonzero(as_tuple=True)
        ended = totals[steps, worlds].tolist(), counts[steps, worlds].tolist()
        return list(zip(worlds.tolist(), *ended, strict=True))

    @torch.no_grad()
    def finish(self, processes: Processes) -> None:
        """Scale rewards, estimate advantages, weigh the rows: what `PPOAgent.loss` wants of whole columns."""
        rows, c, scale = self.rows, self.agent.config, self.agent.reward_scale
        reward = rows["reward"]
        if scale is not None:
            sums, _ = scale.sums(reward[:, 1:], rows["is_first"][:, 1:], self.discounted)
            self.discounted = sums[:, -1]
            scale.absorb(*pooled(moments_of(sums[decisions(rows["is_first"])], 1), processes))
            reward = scale(reward)
        gain, target = advantage(reward, rows["value"], rows["is_first"], rows["is_terminal"], c.gamma, c.lam)
        counts = decisions(rows["is_first"]).to(gain.dtype)
        if c.normalise_advantage:
            mean, var, _ = pooled(moments_of(gain[counts > 0], 1), processes)
            gain = (gain - mean.float()) / (var.sqrt().float() + 1e-8)
        batch = {key: rows[key] for key in (*self.agent.spec.obs, *self.agent.spec.action, "logp")}
        batch |= {key: rows[key][:, :-1] for key in ("is_first", "value")}
        batch |= {f"{START}{name}": getattr(self.start, name) for name in self.start._fields}
        weight = counts / processes.gather(counts.mean().view(1)).mean()
        if c.legacy_reset:
            batch["ends"] = rows["is_last"][:, 1:]
        if (recall := self.agent.recall) is not None:
            batch["shown"] = recall.history(rows, batch["is_first"], self.shown)
            self.shown = batch["shown"][:, -1]
        self.batch = {**batch, "advantage": gain, "target": target, "weight": weight}

    def columns(self, order: Tensor) -> Tensors:
        """The finished batch of some columns, (B, T, ...)."""
        return {key: value.index_select(0, order) for key, value in self.batch.items()}

    def absorb(self, processes: Processes) -> None:
        """Move the scale of observations by this rollout. After its last update: until then the recorded
        log-probabilities belong to the old one."""
        scale = self.agent.encoder.scale
        if scale is not None:
            for key, moments in scale.moments.items():
                moments.absorb(*pooled(moments_of(self.rows[key], 2), processes))  # type: ignore[operator, union-attr]

    def state_dict(self) -> dict[str, Any]:
        """Between two rollouts: the worlds, the carry, the row to be met next, sums and random state."""
        return {
            "envs": self.worlds.state_dict(),
            "carry": list(self.carry),
            "data": dict(self.data),
            "returns": self.returns,
            "lengths": self.lengths,
            "discounted": self.discounted,
            "shown": self.shown,
            "acting": self.acting.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. A world whose open episode could not be continued opens its next one."""
        device = self.agent.device
        self.carry = type(self.carry)(*(part.to(device) for part in state["carry"]))
        self.data = {key: value.to(device) for key, value in state["data"].items()}
        self.returns, self.lengths, self.discounted, self.shown = (
            state[key].to(device) for key in ("returns", "lengths", "discounted", "shown")
        )
        self.acting.set_state(state["acting"])
        self.worlds.load_state_dict(state["envs"])  # its next row opens an episode, which cuts the column there


def pooled(moments: tuple[Tensor, Tensor, Tensor], processes: Processes) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and count over the values of all processes."""
    if processes.size == 1:
        return moments
    means, variances, counts = (processes.gather(m.unsqueeze(0)) for m in moments)
    counts = counts.view(-1, *[1] * (means.dim() - 1))
    total = counts.sum(0)
    mean = (means * counts).sum(0) / total
    return mean, ((variances + (means - mean).square()) * counts).sum(0) / total, total.sum()


def permutations(n: int, batch: int, passes: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Index of the columns of each minibatch: `passes` times all n of them in a new order, always `batch` at once."""
    for _ in range(passes):
        yield from torch.randperm(n, generator=generator, device=generator.device).split(batch)
