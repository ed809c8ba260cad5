"""Resets as in the program whose checkpoints `torchmem import procgen-ppo` reads. Wrong, and kept for replay only.

Two defects (spec simulator.md 1.4, measured there):

D1  While acting, memory is emptied before the first step of an episode. While training, it is emptied one step early:
    before the step whose action ended the episode. Its output then goes on into the next episode.
D2  The learned start state counts only before the very first step of all. Every later episode starts from zeros, and
    once an update has moved the start state nothing is equal to it any more, so it gets no more gradient.

Rows that close an episode have no counterpart there (that program never saw the last frame): memory skips them.
A rollout whose first row opens an episode goes on from the memory that acting left, as there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torchmem.models.ppo.cores import Core, Memory


def kept_start(hidden: Tensor, start: Tensor) -> Tensor:
    """(B, 1) bool: memory that nothing has touched since `initial`, found as the original finds it: it is equal."""
    return (hidden == start).all(-1, keepdim=True)


def train_columns(core: Core, x: Tensor, ends: Tensor, skipped: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
    """Memory along training columns: what `Core.forward` is without the defects.

    x (B, T, F); ends (B, T): the action of this row ended the episode; skipped (B, T): rows that close one.
    Returns outputs (B, T, D) and the Memory after the last step.
    """
    start, _ = core.begin()
    # Equal to the start state, a memory is the start state: this is where its only gradient comes from.
    memory = memory._replace(hidden=torch.where(kept_start(memory.hidden, start), start, memory.hidden))
    gates = F.linear(x, core.weight_ih, core.bias_ih).unbind(1)
    out = []
    for gate, end, skip in zip(gates, ends.unsqueeze(-1).unbind(1), skipped.unsqueeze(-1).unbind(1), strict=True):
        new = core.step(gate, memory._replace(hidden=torch.where(end, 0.0, memory.hidden)))
        memory = memory._replace(hidden=torch.where(skip, memory.hidden, new.hidden))
        out.append(memory.hidden)
    return torch.stack(out, 1), memory
