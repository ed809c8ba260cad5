"""What an agent thinks of each recorded step: value and logits. Heads read a whole block of steps at once, if they may.

Step by step the heads cost about 8 % of acting with a small batch, since all their weights are fetched for few rows.
"""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch

from torchmem.surgery.schedule import mapped
from torchmem.surgery.tape import BLOCK, Tape


class ReadOut:
    """Puts `covariates/<what read_out tells>` on the tape, for every step that it is shown.

    Heads run at each step where somebody wants to see them run: edits hold on the model, or a recorded site lies in a
    head. heard: grows whenever a recorded site runs.
    """

    def __init__(self, model: Any, tape: Tape, heard: Sized) -> None:
        self.model, self.tape, self.heard = model, tape, heard
        self.at_once: bool | None = False if model.edits else None  # None: not known before the first step
        self._carries: list[Any] = []

    def note(self, carry: Any) -> None:
        """The carry after the step in progress has acted."""
        if not self.at_once:
            before = len(self.heard)
            told = self.model.agent.read_out(carry)
            if self.at_once is None:
                self.at_once = len(self.heard) == before
            if not self.at_once:
                for name, value in told.items():
                    self.tape.put(f"covariates/{name}", value.float())
        if self.at_once:
            self._carries.append(carry)

    @torch.no_grad()
    def settle(self) -> None:
        """Read out all steps of the block that the tape has just sealed."""
        if not self._carries:
            return
        steps = len(self._carries)
        # Always as many rows: products of another size may round otherwise, and a resumed recording must be the same.
        filled = [*self._carries, *[self._carries[-1]] * (BLOCK - steps)]
        rows = mapped(lambda *parts: torch.stack(parts, 1).flatten(0, 1), *filled)
        for name, value in self.model.agent.read_out(rows).items():
            self.tape.add(f"covariates/{name}", value.float().unflatten(0, (-1, BLOCK))[:, :steps])
        self._carries = []
