"""A hand-built agent that solves MiniGrid-Memory from beside the cue: which units it acts on is known.

It walks to the junction, turns right until it sees the object that its latches ask for, and goes there.

    unit 0, 1   hold the cue (+1 key, -1 ball); the policy reads 0.7 of the one and 0.3 of the other
    unit 2      "a choice was seen": keep turning
    unit 3      holds the cue, too, and nobody reads it
    unit 4..7   leaky memories of what is ahead
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torchmem.envs.make import env_spec
from torchmem.models.dists import sample_index
from torchmem.models.layers import Tap
from torchmem.models.noise import Noise, action_noise
from torchmem.models.sites import find_sites, rename
from torchmem.types import Site

UNITS = 8
READ, UNREAD, SEEN = (0, 1), 3, 2
KINDS = 20  # numbers of a cell in the one-hot view
WALL, KEY, BALL = 2, 5, 6  # minigrid's objects
WORLD = {"size": 7, "view": 3, "obs": "symbolic_onehot", "start": "at_cue"}


@dataclasses.dataclass(frozen=True)
class ScriptedConfig:
    name: str = "scripted"  # which agent this is


class ScriptedCarry(NamedTuple):
    units: Tensor  # (B, 8)


class Unrolled(NamedTuple):
    policy: dict[str, tuple[Tensor, ...]]
    value: Tensor
    carry: ScriptedCarry


class ScriptedAgent(nn.Module):
    """Follows torchmem.models.protocol.Agent as far as surgery needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.spec = ScriptedConfig(), env_spec("minigrid_memory", **WORLD)
        self.memory = Tap()
        self.read = nn.Parameter(torch.tensor([0.7, 0.3]))
        self.leaky = nn.Parameter(torch.linspace(-1, 1, 4))
        self._sites: dict[str, Site] = {}

    @property
    def device(self) -> torch.device:
        return self.read.device

    @property
    def sites(self) -> Mapping[str, Site]:
        if not self._sites:
            found = find_sites(self)
            self._sites = {**found, "memory": rename(found["memory"], "memory")}
        return self._sites

    def initial(self, batch: int) -> ScriptedCarry:
        return ScriptedCarry(self.read.new_zeros(batch, UNITS))

    def acting_noise(self, batch: int, generator: torch.Generator | None) -> Noise:
        return Noise(action=action_noise(self.spec.action, (batch,), generator, self.device))

    def sequence_noise(self, batch: int, length: int, generator: torch.Generator | None) -> Noise:
        return Noise()

    def memory_of(self, carry: ScriptedCarry) -> Tensor:
        return carry.units

    def step(self, view: Tensor, units: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """view (B, 180) -> logits (B, 3) of left, right, forward; units."""
        cells = view.view(-1, 3, 3, KINDS)  # left to right, far to near; the agent stands at [1, 2]
        kind = cells[..., KEY] - cells[..., BALL]
        choice, cue = kind[:, 1, 0], kind[:, 0, 2]
        wall = cells[:, 1, 1, WALL]
        units = units * (~first).to(units.dtype).unsqueeze(-1)
        latch = torch.tanh(2 * units[:, [0, 1, 3]] + 3 * cue.unsqueeze(-1))
        seen = torch.maximum(units[:, 2], choice.abs())
        leaky = 0.5 * units[:, 4:] + wall.unsqueeze(-1) * self.leaky
        new = torch.stack([latch[:, 0], latch[:, 1], seen, latch[:, 2], *leaky.unbind(-1)], -1)
        new = self.memory(new)
        wish = 4 * choice * (new[:, :2] * self.read).sum(-1)
        nothing = 1 - choice.abs()
        forward = 2 * nothing * (1 - wall) + wish
        right = nothing * (3 * wall + 6 * new[:, SEEN]) - wish
        return torch.stack([torch.full_like(wish, -9.0), right, forward], -1), new

    def read_out(self, carry: ScriptedCarry) -> dict[str, Tensor]:
        return {"value": carry.units[:, 0]}

    def policy(
        self, obs: Mapping[str, Tensor], carry: ScriptedCarry, noise: Noise
    ) -> tuple[dict[str, Tensor], ScriptedCarry, dict[str, Tensor]]:
        logits, units = self.step(obs["view"], carry.units, obs["is_first"])
        draw = None if noise.action is None else noise.action["action"]
        return {"action": sample_index(logits.detach(), draw)}, ScriptedCarry(units), {}

    def unroll(
        self, obs: Mapping[str, Tensor], actions: Any, is_first: Tensor, carry: ScriptedCarry, noise: Any = None
    ) -> Unrolled:
        units, found = carry.units, []
        for t in range(is_first.shape[1]):
            logits, units = self.step(obs["view"][:, t], units, is_first[:, t])
            found.append(logits)
        logits = torch.stack(found, 1)
        return Unrolled({"action": (logits,)}, logits[..., 0], ScriptedCarry(units))
