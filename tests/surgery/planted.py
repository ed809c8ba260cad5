"""A hand-built recurrent agent whose circuit is known: instruments must find it, and must find nothing once shuffled.

The world: a cue (+1 or -1) at step 0, noise all along, a go signal over the last steps. Wait until go, then answer the
cue. Three latch units hold the cue, one unit passes go on; 28 distractors carry leaky memories of the noise that never
reach the action.

    signal (6) --input--> units (32), tanh, --cell.recurrent--> themselves; units --actor--> logits of (-1, +1, wait)
    cue, go, noise x 4                                                       --critic--> value

Each of the three latches adds the same share to the logit of "+1", so that losing one is seen in the policy, and the
policy is far from certain, so that it is seen as nats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchmem.models.dists import sample_index
from torchmem.models.layers import Tap
from torchmem.models.noise import Noise, action_noise
from torchmem.models.protocol import LossOut
from torchmem.models.sites import find_sites, rename
from torchmem.types import EnvSpec, Site, Space

UNITS = 32
MEMORY = (3, 11, 20)  # the units that hold the cue
SELF_WEIGHTS = (2.0, 2.2, 2.5)  # of those units: above 1, so that tanh latches
GO = 26  # the unit that passes the go signal on
CUE_IN, GO_IN, NOISE_IN = 0, 1, (2, 3, 4, 5)  # places in the signal
MINUS, PLUS, WAIT = 0, 1, 2  # actions
LENGTH, GO_STEPS = 16, 4  # of a trial; go is on during its last steps
SHARE = 0.83  # of each latch in the logit of "+1"


@dataclasses.dataclass(frozen=True)
class PlantedConfig:
    name: str = "planted"  # which agent this is
    seed: int = 0  # of the distractors, the rest is the same for all
    shuffled: bool = False  # whether the weights were permuted


@dataclasses.dataclass(frozen=True)
class Known:
    """Ground truth, by position; also of the shuffled copy, where it must not be found."""

    memory: tuple[int, ...]  # units
    essential: dict[str, Tensor]  # parameter name -> bool: weights the policy needs, all of them
    junk: dict[str, Tensor]  # the other weights of the acting path, which change no policy


class PlantedCarry(NamedTuple):
    units: Tensor  # (B, N)


class Unrolled(NamedTuple):
    units: Tensor  # (B, T, N)
    policy: dict[str, tuple[Tensor, ...]]  # {"action": (logits (B, T, 3),)}
    value: Tensor  # (B, T)
    carry: PlantedCarry


class Cell(nn.Module):
    """units' = tanh(W units + x); x (B, N)."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.Linear(UNITS, UNITS, bias=False)
        self.memory = Tap()

    def forward(self, x: Tensor, units: Tensor) -> Tensor:
        return self.memory(torch.tanh(self.recurrent(units) + x))


class PlantedAgent(nn.Module):
    """See above. Follows torchmem.models.protocol.Agent."""

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__()
        self.config = config
        self.spec = SPEC
        self._sites: dict[str, Site] = {}
        self.input = nn.Linear(6, UNITS, bias=False)
        self.cell = Cell()
        self.actor = nn.Linear(UNITS, 3)
        self.critic = nn.Linear(UNITS, 1)
        self.known = _plant(self, config.seed)
        if config.shuffled:
            _shuffle(self, config.seed)

    @property
    def device(self) -> torch.device:
        return self.actor.weight.device

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.named_parameters())

    def initial(self, batch: int) -> PlantedCarry:
        return PlantedCarry(self.actor.weight.new_zeros(batch, UNITS))

    def acting_noise(self, batch: int, generator: torch.Generator | None) -> Noise:
        return Noise(action=action_noise(self.spec.action, (batch,), generator, self.device))

    def sequence_noise(self, batch: int, length: int, generator: torch.Generator | None) -> Noise:
        return Noise()  # nothing inside is stochastic

    def training_noise(self, batch: int, length: int, generator: torch.Generator | None) -> Noise:
        return Noise()

    def memory_of(self, carry: PlantedCarry) -> Tensor:
        return carry.units

    def read_out(self, carry: PlantedCarry) -> dict[str, Tensor]:
        return {"value": self.critic(carry.units).squeeze(-1), "logits.action": self.actor(carry.units)}

    def step(self, x: Tensor, units: Tensor, is_first: Tensor) -> Tensor:
        return self.cell(x, units * (~is_first).to(units.dtype).unsqueeze(-1))

    def policy(
        self, obs: Mapping[str, Tensor], carry: PlantedCarry, noise: Noise
    ) -> tuple[dict[str, Tensor], PlantedCarry, dict[str, Tensor]]:
        units = self.step(self.input(obs["signal"].to(carry.units.dtype)), carry.units, obs["is_first"])
        draw = None if noise.action is None else noise.action["action"]
        return {"action": sample_index(self.actor(units).detach(), draw)}, PlantedCarry(units), {}

    def unroll(
        self,
        obs: Mapping[str, Tensor],
        actions: Mapping[str, Tensor],
        is_first: Tensor,
        carry: PlantedCarry,
        noise: Noise | None = None,
    ) -> Unrolled:
        units, seen = carry.units, []
        for x, first in zip(self.input(obs["signal"].to(units.dtype)).unbind(1), is_first.unbind(1), strict=True):
            units = self.step(x, units, first)
            seen.append(units)
        stacked = torch.stack(seen, 1)
        policy = {"action": (self.actor(stacked),)}
        return Unrolled(stacked, policy, self.critic(stacked).squeeze(-1), PlantedCarry(units))

    def loss(self, batch: Mapping[str, Tensor], noise: Noise) -> LossOut:
        """Imitation: cross-entropy of the actions in the batch. batch[key] (B, T, ...) from step 0."""
        obs = {"signal": batch["signal"]}
        out = self.unroll(obs, {"action": batch["action"]}, batch["is_first"], self.initial(len(batch["signal"])))
        logp = torch.log_softmax(out.policy["action"][0], -1)
        loss = -logp.gather(-1, batch["action"].long().unsqueeze(-1)).squeeze(-1)
        total = loss.mean()
        return LossOut(total, {"policy": loss}, {"loss/policy": total.detach()}, {}, {}, out.carry)

    def commit(self, out: LossOut) -> None:
        """There are no running statistics."""

    @property
    def sites(self) -> Mapping[str, Site]:
        if not self._sites:
            found = find_sites(self)
            self._sites = {**found, "memory": rename(found["cell.memory"], "memory")}
        return self._sites


SPEC = EnvSpec(
    name="planted",
    obs={"signal": Space((6,), "float32")},
    action={"action": Space((), "int64", classes=3)},
    control_hz=4.0,
    truth={"cue": "sign"},
    score="success",
)


def planted(seed: int = 0, shuffled: bool = False) -> PlantedAgent:
    """The agent; `shuffled` permutes each weight matrix so that no trace of the cue survives to the go signal."""
    return PlantedAgent(PlantedConfig(seed=seed, shuffled=shuffled))


def _plant(agent: PlantedAgent, seed: int) -> Known:
    generator = torch.Generator().manual_seed(seed)
    memory = torch.tensor(MEMORY)
    others = torch.tensor([u for u in range(UNITS) if u not in (*MEMORY, GO)])
    count = len(others)
    weights = {name: torch.zeros_like(p) for name, p in agent.named_parameters()}
    taken, recurrent, actor = weights["input.weight"], weights["cell.recurrent.weight"], weights["actor.weight"]
    taken[memory, CUE_IN] = 3.0
    taken[GO, GO_IN] = 4.0
    recurrent[memory, memory] = torch.tensor(SELF_WEIGHTS)
    actor[PLUS, memory] = SHARE
    actor[WAIT, GO] = -8.0
    essential = {name: weights[name] != 0 for name in ("input.weight", "cell.recurrent.weight", "actor.weight")}
    # distractors: each hears one noise channel, leaks, and talks to one neighbour; the value listens to them
    channel = torch.tensor(NOISE_IN)[torch.arange(count) % len(NOISE_IN)]
    taken[others, channel] = torch.rand(count, generator=generator) + 0.5
    recurrent[others, others] = torch.rand(count, generator=generator) * 0.4 + 0.4
    recurrent[others, others.roll(1)] = torch.randn(count, generator=generator) * 0.3
    weights["critic.weight"][0, others] = torch.randn(count, generator=generator) * 0.2
    weights["actor.bias"][WAIT] = 4.0
    with torch.no_grad():
        for name, parameter in agent.named_parameters():
            parameter.copy_(weights[name])
    return Known(MEMORY, essential, {name: ~mask for name, mask in essential.items()})


def _shuffle(agent: PlantedAgent, seed: int) -> None:
    """Permute the entries of each matrix, again and again until cue +1 and cue -1 leave the same state at go."""
    original = {name: agent.get_parameter(name).detach().clone() for name in agent.known.essential}
    plus, minus = pairs(4, seed=seed)
    for attempt in range(2000):
        generator = torch.Generator().manual_seed(seed * 2000 + attempt)
        with torch.no_grad():
            for name, weight in original.items():
                order = torch.randperm(weight.numel(), generator=generator)
                agent.get_parameter(name).copy_(weight.flatten()[order].view_as(weight))
            states = [agent.unroll(t.obs, t.actions, t.is_first, agent.initial(4)).units for t in (plus, minus)]
        forgotten = torch.equal(*(s[:, LENGTH // 2 :] for s in states))
        moved = all((agent.get_parameter(n)[m] != original[n][m]).all() for n, m in agent.known.essential.items())
        if forgotten and moved:
            return
    raise RuntimeError("no permutation forgets the cue")


# Trials --------------------------------------------------------------------------------------------------------------


class Trials(NamedTuple):
    """obs {"signal": (B, T, 6)}, actions {"action": (B, T)} of the expert, is_first and go (B, T) bool, cue (B,)."""

    obs: dict[str, Tensor]
    actions: dict[str, Tensor]
    is_first: Tensor
    cue: Tensor
    go: Tensor

    @property
    def batch(self) -> dict[str, Tensor]:
        """As `loss` and replay have it."""
        return {**self.obs, **self.actions, "is_first": self.is_first}

    @property
    def weights(self) -> Tensor:
        """(B, T): waiting and answering count the same, mean 1."""
        share = self.go.float().mean()
        return torch.where(self.go, 0.5 / share, 0.5 / (1 - share))


def trials(n: int, seed: int = 0, cue: Tensor | None = None, noise: float = 1.0) -> Trials:
    """`n` trials of LENGTH steps; cues balanced (+1, -1, +1, ...) unless given, (n,)."""
    generator = torch.Generator().manual_seed(seed)
    if cue is None:
        cue = 1.0 - 2.0 * (torch.arange(n) % 2)
    signal = torch.zeros(n, LENGTH, 6)
    signal[:, :, list(NOISE_IN)] = noise * torch.randn(n, LENGTH, len(NOISE_IN), generator=generator)
    signal[:, 0, CUE_IN] = cue
    signal[:, -GO_STEPS:, GO_IN] = 1.0
    go = signal[:, :, GO_IN] > 0
    answer = torch.where(cue > 0, PLUS, MINUS).unsqueeze(1)
    actions = torch.where(go, answer, WAIT)
    is_first = torch.zeros(n, LENGTH, dtype=torch.bool)
    is_first[:, 0] = True
    return Trials({"signal": signal}, {"action": actions}, is_first, cue, go)


def pairs(n: int, seed: int = 0) -> tuple[Trials, Trials]:
    """(base, source): the same noise, the opposite cue. Observations differ at step 0 alone."""
    base = trials(n, seed)
    return base, trials(n, seed, cue=-base.cue)


def accuracy(agent: Any, data: Trials) -> float:
    """Share of go steps at which the greedy action answers the cue. agent: anything with `unroll` and `initial`."""
    with torch.no_grad():
        out = agent.unroll(data.obs, data.actions, data.is_first, agent.initial(len(data.cue)))
    right = out.policy["action"][0].argmax(-1) == data.actions["action"]
    return right[data.go].float().mean().item()
