"""The grids of Switching-Memory: Memory with a second thing to remember that overrules or inverts the first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from torchmem.envs.configs import MinigridSwitchingConfig
from torchmem.envs.minigrid_layouts import BOX_RED, CUES, GREEN, Cell, Facts, Layout, one_of, other


@dataclasses.dataclass(frozen=True)
class SwitchingLayout(Layout):
    """Memory whose target is decided by more than the first cue (circuits spec section 5.2).

    mode "cue": `niches` objects lie in the hallway's north wall, and the last one is the cue that counts.
    mode "rule": a box in the start room, red (switch) for the object that does not match the cue, green for its twin.
    mode "anti": always the object that does not match.
    """

    OPTIONS = (*Layout.OPTIONS, "niche", "switch")

    mode: str = "cue"
    niche: tuple[str, ...] = ()
    switch: bool = False  # of mode "rule"

    @property
    def last_cue(self) -> str:
        return self.niche[-1] if self.niche else self.cue

    @property
    def target(self) -> str:
        away = self.mode == "anti" or (self.mode == "rule" and self.switch)
        return other(self.last_cue) if away else self.last_cue

    @property
    def niche_pos(self) -> tuple[Cell, ...]:
        """Evenly along the hallway's columns 5 to H - 1; one niche is in the middle."""
        n, last = len(self.niche), self.hallway_end - 1
        return tuple(((5 * (n + 1 - i) + last * i) // (n + 1), self.middle - 1) for i in range(1, n + 1))

    def plain(self) -> Self:
        return dataclasses.replace(super().plain(), niche=(CUES[0],) * len(self.niche), switch=False)

    @property
    def box_pos(self) -> Cell:
        return 1, self.middle + 1

    @property
    def shortest(self) -> int:
        return shortest_hallway(len(self.niche))

    @property
    def deciding(self) -> tuple[str, ...]:
        return {"cue": ("niche",), "rule": ("cue", "niche"), "anti": ("cue",)}[self.mode]

    def codes(self) -> np.ndarray:
        grid = super().codes()
        for pos, kind in zip(self.niche_pos, self.niche, strict=True):
            grid[pos] = GREEN[kind]
        if self.mode == "rule":
            grid[self.box_pos] = BOX_RED if self.switch else GREEN["box"]
        return grid

    def marks(self) -> dict[str, tuple[Cell, ...]]:
        second = (self.box_pos,) if self.mode == "rule" else self.niche_pos[-1:]
        return {**super().marks(), "niche": second}

    def facts(self) -> Facts:
        first, last = (np.array(CUES.index(k), np.int64) for k in (self.cue, self.last_cue))
        switched = self.switch if self.mode == "rule" else self.last_cue != self.cue
        return {**super().facts(), "cue_type": last, "first_cue": first, "last_cue": last, "switch": np.array(switched)}

    def options(self) -> dict[str, Any]:
        second = {"cue": {"niche": self.niche}, "rule": {"switch": self.switch}, "anti": {}}[self.mode]
        return {**super().options(), **second}

    def changed(self, options: Mapping[str, Any]) -> Self:
        """With neither niche nor switch, niches keep their places in the sequence of flips (they follow the cue)."""
        one_of(options, "switch", (False, True))
        flips = [a != b for a, b in itertools.pairwise((self.cue, *self.niche))]
        layout = super().changed(options)
        if self.mode == "anti" and {"niche", "switch"} & set(options):
            raise ValueError("reset options niche and switch mean nothing in mode anti")
        if self.mode == "rule":
            if "niche" in options:
                raise ValueError("reset option niche means nothing in mode rule; did you mean switch?")
            return dataclasses.replace(layout, switch=bool(options.get("switch", self.switch)))
        if "niche" in options:
            if "switch" in options:
                raise ValueError("reset options niche and switch both set the last cue; give one of them")
            kinds = options["niche"]
            niche = (kinds,) if isinstance(kinds, str) else tuple(kinds)
            if len(niche) != len(self.niche) or not set(niche) <= set(CUES):
                raise ValueError(f"reset option niche must be {len(self.niche)} of {', '.join(CUES)}; got {kinds!r}")
        else:
            niche = follow_flips(layout.cue, flips)
            if "switch" in options and niche:
                niche = (*niche[:-1], other(layout.cue) if options["switch"] else layout.cue)
        return dataclasses.replace(layout, niche=niche)


def layouts(config: MinigridSwitchingConfig) -> list[tuple[SwitchingLayout, float]]:
    """Every layout of the world with its probability."""
    n = config.n_switches if config.mode == "cue" else 0
    first = shortest_hallway(n) if config.random_length else config.size - 3
    found = []
    for end in range(first, config.size - 2):
        for cue, top in itertools.product(CUES, CUES):
            for flips in itertools.product((False, True), repeat=1 if config.mode == "rule" else n):
                chance = np.prod([config.p_switch if flip else 1 - config.p_switch for flip in flips])
                niche, switch = ((), flips[0]) if config.mode == "rule" else (follow_flips(cue, flips), False)
                layout = SwitchingLayout(config.size, end, cue, top, config.mode, niche, switch)
                found.append((layout, float(chance)))
    total = sum(chance for _, chance in found)
    return [(layout, chance / total) for layout, chance in found]


def follow_flips(cue: str, flips: Sequence[bool]) -> tuple[str, ...]:
    """The niches after `cue` when each differs from the one before it where its flip is True."""
    kinds = [cue]
    for flip in flips:
        kinds.append(other(kinds[-1]) if flip else kinds[-1])
    return tuple(kinds[1:])


def shortest_hallway(niches: int) -> int:
    """The first hallway end that leaves a wall cell of its own for each niche."""
    return 5 + niches if niches else 4
