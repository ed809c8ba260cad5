"""What an agent thinks of each recorded step: value and logits. Heads read a whole block of steps at once, if they may.

Step by step the heads cost about 8 % of acting with a small batch, since all their weights are fetched for few rows.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from torchmem.surgery.schedule import mapped
from torchmem.surgery.tape import BLOCK, Tape


class ReadOut:
    """Puts `covariates/<what read_out tells>` on the tape, for every step that it is shown.

    Heads run at each step where edits hold on the model, for those may depend on the step. Else they run for a block of
    steps, and recorded sites that only reading out makes run (`late`) are heard then, all steps of a block at once.
    """

    def __init__(self, model: Any, tape: Tape) -> None:
        self.model, self.tape = model, tape
        self.stepwise = bool(model.edits)
        self.mode: Literal["", "probe", "block"] = ""  # of the read-out in progress; "" also where it is stepwise
        self.steps = 0  # of the block that is read out
        self.late: set[str] = set()  # sites that did not run while the agent acted; known after the first step
        self._probed = False
        self._carries: list[Any] = []

    def note(self, carry: Any) -> None:
        """The carry after the step in progress has acted."""
        if self.stepwise:
            for name, value in self.model.agent.read_out(carry).items():
                self.tape.put(f"covariates/{name}", value.float())
            return
        if not self._probed:  # which sites does it make run?
            self.mode = "probe"
            self.model.agent.read_out(carry)
            self.mode, self._probed = "", True
        self._carries.append(carry)

    @torch.no_grad()
    def settle(self) -> None:
        """Read out all steps of the block that the tape has just sealed."""
        if not self._carries:
            return
        self.steps = len(self._carries)
        # Always as many rows: products of another size may round otherwise, and a resumed recording must be the same.
        filled = [*self._carries, *[self._carries[-1]] * (BLOCK - self.steps)]
        rows = mapped(lambda *parts: torch.stack(parts, 1).flatten(0, 1), *filled)
        self.mode = "block"
        for name, value in self.model.agent.read_out(rows).items():
            self.add(f"covariates/{name}", value.float())
        self.mode, self._carries = "", []

    def add(self, name: str, values: Tensor) -> None:
        """A value of all rows of a block, (n * BLOCK, ...), onto the tape."""
        self.tape.add(name, values.unflatten(0, (-1, BLOCK))[:, : self.steps])
