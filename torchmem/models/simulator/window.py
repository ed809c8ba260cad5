"""A replayed sequence as a simulator learns from it: context, steps to be simulated, and which of them count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from torchmem.models.simulator.protocol import Context
from torchmem.types import EnvSpec

MEMORY = "agent_carry"  # key of replay: what the agent carried after each step, packed


class Window(NamedTuple):
    """C - 1 + T rows: T steps are simulated, the first of them is the last of the context."""

    context: Context
    obs: dict[str, Tensor]  # (B, T, ...) of the world's types
    actions: dict[str, Tensor]  # (B, T, ...), taken after each simulated step
    before: dict[str, Tensor]  # (B, T, ...), taken before it; of no meaning where `first`
    first: Tensor  # (B,) bool: the first simulated step opens an episode
    weight: Tensor  # (B, T): 1 up to the end of the episode, 0 beyond
    reward: Tensor  # (B, T)
    terminal: Tensor  # (B, T) float
    memory: Tensor  # (B, T, P) packed carries after each simulated step


def cut_window(batch: Mapping[str, Tensor], spec: EnvSpec, context: int) -> Window:
    """Rows (B, C - 1 + T, ...) of replay. An episode that begins within the context blanks what is before it; one that
    begins later ends the window: these steps weigh nothing."""
    rows = slice(context - 1, None)
    first = batch["is_first"]
    beyond = first[:, context:].cumsum(1) > 0
    weight = 1 - beyond.to(batch["reward"].dtype)
    return Window(
        context=Context(
            {key: batch[key][:, :context] for key in spec.obs},
            {key: batch[key][:, :context] for key in spec.action},
            first[:, :context],
            batch[MEMORY][:, :context],
        ),
        obs={key: batch[key][:, rows] for key in spec.obs},
        actions={key: batch[key][:, rows] for key in spec.action},
        before={key: batch[key][:, context - 2 : -1] for key in spec.action},
        first=first[:, context - 1],
        weight=torch.cat([torch.ones_like(first[:, :1], dtype=weight.dtype), weight], 1),
        reward=batch["reward"][:, rows],
        terminal=batch["is_terminal"][:, rows].to(weight.dtype),
        memory=batch[MEMORY][:, rows],
    )
