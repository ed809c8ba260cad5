"""A world of tensors that needs memory and is learnt in seconds: a cue, a delay, then the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from torchmem.types import EnvSpec, Space

SPEC = EnvSpec(
    name="recall",
    obs={"sign": Space((4,), "float32")},
    action={"action": Space((), "int64", classes=2)},
    control_hz=1.0,
    truth={"cue": "0 or 1"},
    score="success",
)


class RecallWorld:
    """Step 0 shows the cue, the next `delay` steps nothing, then a flag asks; the right action pays 1.

    Every third episode of odd copies stops at a time limit one step before the question.
    """

    spec = SPEC

    def __init__(self, n: int, seed: int = 0, delay: int = 2) -> None:
        self.n, self.delay = n, delay
        self.generator = torch.Generator().manual_seed(seed)
        self.cue, self.time, self.episode = (torch.zeros(n, dtype=torch.int64) for _ in range(3))
        self.closed = torch.ones(n, dtype=torch.bool)

    def step(self, actions: Mapping[str, Tensor] | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        opening = self.closed
        drawn = torch.randint(2, (self.n,), generator=self.generator)
        right = torch.zeros(self.n) if actions is None else (actions["action"] == self.cue).float()
        self.cue = torch.where(opening, drawn, self.cue)
        self.time = torch.where(opening, 0, self.time + 1)
        self.episode = self.episode + opening
        asked, answered = self.time == self.delay + 1, self.time == self.delay + 2
        limit = asked & (torch.arange(self.n) % 2 == 1) & (self.episode % 3 == 0)
        self.closed = answered | limit
        sign = torch.zeros(self.n, 4)
        sign[:, :2] = torch.nn.functional.one_hot(self.cue, 2) * (self.time == 0).unsqueeze(1)
        sign[:, 2], sign[:, 3] = asked.float(), self.time / 10
        flags = {"is_first": opening, "is_last": self.closed.clone(), "is_terminal": answered}
        return {"sign": sign, "reward": right * answered, **flags}, {"cue": self.cue}

    def state_dict(self) -> dict[str, Any]:
        names = ("cue", "time", "episode", "closed")
        return {name: getattr(self, name).clone() for name in names} | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[bool]:
        for name in ("cue", "time", "episode", "closed"):
            setattr(self, name, state[name].clone())
        self.generator.set_state(state["generator"])
        return [True] * self.n

    def close(self) -> None:
        pass
