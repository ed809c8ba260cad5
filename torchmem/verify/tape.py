"""Real observations with resets where an agent could go wrong: a world that plays them back, whatever is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.types import EnvSpec
from torchmem.verify.play import Row

HALF = 12  # steps of one rollout; two follow each other
STEPS = 2 * HALF + 1  # and the row that the second one sees but does not act on
# For each row of worlds the steps that open an episode. Step 12 is the first of the second rollout, 23 its last.
OPENS = ((0,), (0, HALF), (0, 5, HALF + 5), (0, HALF - 1, 2 * HALF - 1), (0, 3, 4, 2 * HALF), (0, HALF + 1, HALF + 2))
TORN = (4, 4)  # (row, step): an episode that was given up, so that the step before is not is_last
RESET = HALF + 5  # of row 2: the reset that the checks of masks move things around


class Tape:
    """n worlds in lock-step that show recorded observations; speaks tensors, as TensorWorld does.

    Half of the episodes end for good, the others are truncated, one is given up without an end. Rewards are random.
    """

    def __init__(self, spec: EnvSpec, obs: Mapping[str, Tensor], seed: int = 0) -> None:
        self.spec, self.n, self.obs, self.step_number = spec, len(OPENS), dict(obs), 0
        first = torch.zeros(self.n, STEPS, dtype=torch.bool)
        for row, steps in enumerate(OPENS):
            first[row, list(steps)] = True
        last = torch.zeros_like(first)
        last[:, :-1] = first[:, 1:]
        last[TORN[0], TORN[1] - 1] = False
        terminal = last & (torch.arange(self.n) % 2 == 0).unsqueeze(1)
        reward = torch.randn(self.n, STEPS, generator=torch.Generator().manual_seed(seed)) * ~first
        self.told = {"reward": reward, "is_first": first, "is_last": last, "is_terminal": terminal}

    def step(self, actions: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        t = self.step_number
        self.step_number += 1
        return {key: value[:, t].clone() for key, value in {**self.obs, **self.told}.items()}, {}

    def rewound(self) -> Tape:
        """The same tape at its start."""
        tape = Tape(self.spec, self.obs)
        tape.told = self.told
        return tape

    def changed(self, rows: slice | int, steps: slice, other: Mapping[str, Tensor]) -> Tape:
        """The same tape with other observations (n, STEPS, ...) at some places."""
        tape = self.rewound()
        tape.obs = {key: value.clone() for key, value in self.obs.items()}
        for key, value in tape.obs.items():
            value[rows, steps] = other[key][rows, steps]
        return tape

    def without_resets(self) -> Tape:
        """The same tape as one episode after its first step."""
        tape = self.rewound()
        tape.told = {key: value.clone() for key, value in self.told.items()}
        for key in ("is_first", "is_last", "is_terminal"):
            tape.told[key][:, 1:] = False
        return tape

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step_number}

    def load_state_dict(self, state: Mapping[str, Any]) -> list[bool]:
        self.step_number = state["step"]
        return [True] * self.n

    def close(self) -> None:
        """Nothing to end."""


def windows(spec: EnvSpec, rows: list[Row], offset: int = 0) -> dict[str, Tensor]:
    """Observations (n, STEPS, ...) cut out of random play, each row from another copy and time. offset: shifts them."""
    copies, length = len(rows[0].data["is_first"]), len(rows)
    if length < STEPS:
        raise ValueError(f"random play came to {length} steps, {STEPS} are needed")
    out: dict[str, list[np.ndarray]] = {key: [] for key in spec.obs}
    for row in range(len(OPENS)):
        start = (row * 7 + offset * 5) % (length - STEPS + 1)
        for key in out:
            out[key].append(np.stack([rows[start + t].data[key][(row + offset) % copies] for t in range(STEPS)]))
    return {key: torch.from_numpy(np.stack(value)) for key, value in out.items()}
