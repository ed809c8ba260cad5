"""The toy of circuits spec section 12: a cue at the start, a layout at the end, and the answer is their XOR.

    signal (8) --input--> units --GRU with a layer norm over all gates (as NM512's)--> units --actor--> 2 logits
    0, 1 the cue during the first steps; 2, 3 the layout at the last one; 4..7 noise
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmem.types import EnvSpec, Space

SPEC = EnvSpec(
    name="toy_recall",
    obs={"signal": Space((8,), "float32")},
    action={"action": Space((), "int64", classes=2)},
    control_hz=4.0,
    score="success",
)


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    name: str = "toy_recall"


class ToyCarry(NamedTuple):
    units: Tensor


class Unrolled(NamedTuple):
    policy: dict[str, tuple[Tensor, ...]]
    units: Tensor
    carry: ToyCarry


class Toy(nn.Module):
    """units: of the GRU. 64 give 29,312 maskable weights."""

    def __init__(self, units: int, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.spec, self.config = SPEC, ToyConfig()
        self.input = nn.Linear(8, units)
        self.gates = nn.Linear(2 * units, 3 * units, bias=False)
        self.norm = nn.LayerNorm(3 * units, eps=1e-3)
        self.hidden, self.actor = nn.Linear(units, units), nn.Linear(units, 2)

    @property
    def device(self) -> torch.device:
        return self.actor.weight.device

    def initial(self, batch: int) -> ToyCarry:
        return ToyCarry(self.actor.weight.new_zeros(batch, self.actor.weight.shape[1]))

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        reset, candidate, update = self.norm(self.gates(torch.cat([x, h], -1))).chunk(3, -1)
        return torch.lerp(h, torch.tanh(torch.sigmoid(reset) * candidate), torch.sigmoid(update - 1))

    def unroll(
        self, obs: Mapping[str, Tensor], actions: Any, is_first: Tensor, carry: ToyCarry, noise: Any = None
    ) -> Unrolled:
        h, seen = carry.units, []
        for x, first in zip(F.silu(self.input(obs["signal"])).unbind(1), is_first.unbind(1), strict=True):
            h = self.step(x, h * (~first).to(h.dtype).unsqueeze(-1))
            seen.append(h)
        units = torch.stack(seen, 1)
        return Unrolled({"action": (self.actor(F.silu(self.hidden(units))),)}, units, ToyCarry(h))


class Trials(NamedTuple):
    """batch: signal (B, T, 8), action (B, T), is_first (B, T). weights (B, T): the last step counts. cue (B,)."""

    batch: dict[str, Tensor]
    weights: Tensor
    cue: Tensor
    layout: Tensor


def trials(n: int, length: int = 16, seed: int = 0) -> Trials:
    """Cue and layout balanced; cue shown during one of the first three steps."""
    generator = torch.Generator().manual_seed(seed)
    cue, layout = torch.arange(n) % 2, (torch.arange(n) // 2) % 2
    signal = torch.zeros(n, length, 8)
    signal[..., 4:] = 0.5 * torch.randn(n, length, 4, generator=generator)
    signal[torch.arange(n), torch.randint(3, (n,), generator=generator), cue] = 1
    signal[torch.arange(n), -1, 2 + layout] = 1
    first = torch.zeros(n, length, dtype=torch.bool)
    first[:, 0] = True
    weights = torch.zeros(n, length)
    weights[:, -1] = length
    action = (cue ^ layout).unsqueeze(1).expand(-1, length).contiguous()
    return Trials({"signal": signal, "action": action, "is_first": first}, weights, cue, layout)


def answers(agent: Any, data: Trials) -> Tensor:
    """(B,) the greedy answer at the last step."""
    with torch.no_grad():
        first = data.batch["is_first"]
        out = agent.unroll({"signal": data.batch["signal"]}, {}, first, agent.initial(len(first)))
    return out.policy["action"][0][:, -1].argmax(-1)


def accuracy(agent: Any, data: Trials) -> float:
    return float((answers(agent, data) == data.batch["action"][:, -1]).float().mean())


def train(agent: Toy, steps: int, length: int = 16, rate: float = 3e-3, keep: tuple[int, ...] = ()) -> dict[int, dict]:
    """Supervised, in place. Returns copies of the weights after these numbers of steps."""
    optimizer = torch.optim.Adam(agent.parameters(), lr=rate)
    kept = {}
    for step in range(steps + 1):
        if step in keep:
            kept[step] = {name: p.detach().clone() for name, p in agent.named_parameters()}
        if step == steps:
            break
        data = trials(64, length, seed=1000 + step)
        out = agent.unroll({"signal": data.batch["signal"]}, {}, data.batch["is_first"], agent.initial(64))
        loss = F.cross_entropy(out.policy["action"][0][:, -1], data.batch["action"][:, -1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return kept
