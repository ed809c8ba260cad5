"""Which episode each world plays, with which noise, and in which order finished episodes are kept.

World i plays episodes 0, 1, ... of its quota with seeds `episode_seed("record", seed, i, episode)`. All that is random
about an episode follows from that seed, so it is the same whoever plays beside it, and when it is played again. The
order is that in which an uninterrupted run finishes them, told by the steps that each world has played: a run that was
interrupted replays lost episodes and keeps the same order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.envs.seeds import episode_seed

DRAWN = 32  # steps of noise drawn at once; part of what a seed means


@dataclasses.dataclass(frozen=True, order=True)
class Finished:
    """An episode that ended: by when (steps of its world since the first episode), where, and where on the tape."""

    clock: int
    row: int
    seed: int
    start: int
    stop: int


class Schedule:
    """The quota of every world, what it has played, and the finished episodes that wait for their turn."""

    def __init__(self, episodes: int, envs: int, seed: int) -> None:
        if episodes < 1 or envs < 1:
            raise ValueError(f"episodes and envs must be at least 1, got {episodes} and {envs}")
        self.n = min(envs, episodes)
        self.quota = np.full(self.n, episodes // self.n) + (np.arange(self.n) < episodes % self.n)
        self.played = np.zeros(self.n, int)
        self._seed = seed
        self._clock = np.zeros(self.n, int)  # steps of finished episodes
        self._start = np.zeros(self.n, int)  # where on the tape the open episode began
        self._waiting: list[Finished] = []
        episode_seed("record", seed, self.n - 1, int(self.quota.max()))  # refuse what is out of range at once

    def seed_of(self, row: int) -> int:
        """Of the episode that a world plays now, or next."""
        return episode_seed("record", self._seed, row, int(self.played[row]))

    def skip(self, table: np.ndarray) -> None:
        """Take over the episodes of a recording, in its order. Raises ValueError where they are not this schedule's."""
        for number, (seed, length) in enumerate(zip(table["seed"].tolist(), table["length"].tolist(), strict=True)):
            row = next((i for i in range(self.n) if self.played[i] < self.quota[i] and self.seed_of(i) == seed), None)
            if row is None:
                raise ValueError(f"episode {number} of the recording has seed {seed}, which is not next in this plan")
            self.played[row] += 1
            self._clock[row] += length

    @property
    def done(self) -> bool:
        """All quotas are filled."""
        return bool((self.played >= self.quota).all())

    def began(self, row: int, step: int) -> None:
        """A world opened an episode at a step of the tape."""
        self._start[row] = step

    def ended(self, row: int, stop: int) -> None:
        """The open episode of a world ended; `stop` is the step after its last."""
        if self.played[row] < self.quota[row]:
            start = int(self._start[row])
            self._clock[row] += stop - start
            self._waiting.append(Finished(int(self._clock[row]), row, self.seed_of(row), start, stop))
        self.played[row] += 1
        self._start[row] = stop

    def ready(self, sealed_to: int, step: int) -> list[Finished]:
        """Finished episodes on the sealed part of the tape that no open one can precede any more, in order."""
        active = [i for i in range(self.n) if self.played[i] < self.quota[i]]
        # the soonest an open episode can end is with the next step
        next_end = min(((int(self._clock[i] + step - self._start[i]) + 1, i) for i in active), default=None)
        self._waiting.sort()
        out = []
        while self._waiting:
            first = self._waiting[0]
            if first.stop > sealed_to or (next_end is not None and (first.clock, first.row) > next_end):
                break
            out.append(self._waiting.pop(0))
        return out

    def needed_from(self, step: int) -> int:
        """The first step of the tape that is still needed."""
        active = [int(self._start[i]) for i in range(self.n) if self.played[i] < self.quota[i]]
        return min([step, *active, *(f.start for f in self._waiting)])


class EpisodeNoise:
    """Noise of one acting step for n worlds, each row from a generator of its own episode.

    draw(steps, generator): noise with leading axis `steps`, as `Agent.acting_noise` makes it.
    """

    def __init__(self, n: int, device: torch.device, draw: Callable[[int, torch.Generator], Any]) -> None:
        self._draw = draw
        self._generators = [torch.Generator(device) for _ in range(n)]
        self._place = np.full(n, DRAWN)  # next step of the bank, by row
        self._rows = torch.arange(n, device=device)
        self._bank: Any = None  # noise with leading axes (n, DRAWN)

    def begin(self, row: int, seed: int) -> None:
        """An episode opens in a world."""
        self._generators[row].manual_seed(seed)
        self._place[row] = DRAWN

    def step(self) -> Any:
        """The noise of the step in progress, (n, ...)."""
        for row in np.flatnonzero(self._place >= DRAWN).tolist():
            fresh = self._draw(DRAWN, self._generators[row])
            if self._bank is None:
                self._bank = mapped(lambda x: x.new_zeros(len(self._generators), *x.shape), fresh)
            mapped(lambda kept, new, row=row: kept[row].copy_(new), self._bank, fresh)
            self._place[row] = 0
        place = torch.as_tensor(self._place, device=self._rows.device)
        noise = mapped(lambda kept: kept[self._rows, place], self._bank)
        self._place += 1
        return noise


def mapped(function: Callable[..., Any], *trees: Any) -> Any:
    """Apply a function to the tensors of equally shaped dataclasses, mappings and tuples; None stays None."""
    first = trees[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*trees)
    if isinstance(first, Mapping):
        return {key: mapped(function, *(tree[key] for tree in trees)) for key in first}
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [f.name for f in dataclasses.fields(first)]
        return dataclasses.replace(
            first, **{name: mapped(function, *(getattr(tree, name) for tree in trees)) for name in names}
        )
    if isinstance(first, tuple):
        parts = [mapped(function, *part) for part in zip(*trees, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)
    raise TypeError(f"noise holds a {type(first).__name__}; it may hold tensors, mappings, tuples and None")
