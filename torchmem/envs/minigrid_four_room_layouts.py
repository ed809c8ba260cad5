"""The grids of Four-Room-Memory: see a cue in one room, find its twin in the far corner of another."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from torchmem.envs.configs import MinigridFourRoomConfig
from torchmem.envs.minigrid_layouts import EMPTY, GREEN, HEADINGS, KINDS, WALL, Cell, Facts, GridLayout, one_of, walled

DOOR_SEED = 0  # of the arrangements beyond the first, which are the same in every run


@dataclasses.dataclass(frozen=True)
class FourRoomLayout(GridLayout):
    """Four rooms, a cue in the north-west, its twin in another corner (circuits spec section 5.3).

    corners: the kinds in the north-east, south-west and south-east corner, "" for none. doors: where along its arm of
    the walls each door is, see `door_pos`.
    """

    OPTIONS = ("cue", "layout", "doors")

    size: int
    cue: str
    corners: tuple[str, ...]
    doors: tuple[int, int, int, int]

    @property
    def middle(self) -> int:
        return self.size // 2

    @property
    def cue_pos(self) -> Cell:
        return 1, 1

    @property
    def corner_pos(self) -> tuple[Cell, Cell, Cell]:
        far = self.size - 2
        return (far, 1), (1, far), (far, far)

    @property
    def door_pos(self) -> tuple[Cell, Cell, Cell, Cell]:
        """North and south arm of the vertical wall (doors[0:2] are y), west and east arm of the horizontal (x)."""
        m, (north, south, west, east) = self.middle, self.doors
        return (m, north), (m, south), (west, m), (east, m)

    @property
    def target_pos(self) -> Cell:
        return self.corner_pos[self.corners.index(self.cue)]

    @property
    def success_cells(self) -> tuple[Cell, ...]:
        return _beside(self.target_pos, self.size)

    @property
    def failure_cells(self) -> tuple[Cell, ...]:
        others = [pos for pos, kind in zip(self.corner_pos, self.corners, strict=True) if kind not in ("", self.cue)]
        return tuple(cell for pos in others for cell in _beside(pos, self.size))

    def choices(self) -> dict[str, tuple[Cell, ...]]:
        places = zip(("north_east", "south_west", "south_east"), self.corner_pos, self.corners, strict=True)
        return {name: _beside(pos, self.size) for name, pos, kind in places if kind}

    def plain(self) -> Self:
        return dataclasses.replace(self, cue=KINDS[0], corners=tuple(kind and KINDS[0] for kind in self.corners))

    def codes(self) -> np.ndarray:
        grid = walled(self.size)
        grid[self.middle], grid[:, self.middle] = WALL, WALL
        for pos in self.door_pos:
            grid[pos] = EMPTY
        grid[self.cue_pos] = GREEN[self.cue]
        for pos, kind in zip(self.corner_pos, self.corners, strict=True):
            if kind:
                grid[pos] = GREEN[kind]
        return grid

    def marks(self) -> dict[str, tuple[Cell, ...]]:
        shown = tuple(pos for pos, kind in zip(self.corner_pos, self.corners, strict=True) if kind)
        return {"cue": (self.cue_pos,), "choice": shown}

    def facts(self) -> Facts:
        cue = np.array(KINDS.index(self.cue), np.int64)
        return {
            "cue_type": cue, "target_type": cue, "target_pos": np.array(self.target_pos, np.float32),
            "candidates": np.array([KINDS.index(k) if k else -1 for k in self.corners], np.int64),
        }

    def options(self) -> dict[str, Any]:
        return {"cue": self.cue, "layout": self.corners, "doors": self.doors}

    def changed(self, options: Mapping[str, Any]) -> Self:
        kinds = tuple(sorted((k for k in self.corners if k), key=KINDS.index))
        one_of(options, "cue", kinds)
        corners = tuple(options.get("layout", self.corners))
        if sorted(corners) != sorted(self.corners):
            raise ValueError(f"reset option layout must order {sorted(self.corners)}; got {options['layout']!r}")
        doors = tuple(int(i) for i in options.get("doors", self.doors))
        m = self.middle
        if len(doors) != 4 or not all(
            low <= d < high for d, (low, high) in zip(doors, ((1, m), (m + 1, self.size - 1)) * 2, strict=True)
        ):
            raise ValueError(f"reset option doors must be four places in the wall's arms (y, y, x, x); got {doors}")
        return dataclasses.replace(self, cue=options.get("cue", self.cue), corners=corners, doors=doors)

    def starts(self, start: str, sees_cue: np.ndarray) -> np.ndarray:
        room = np.zeros((self.size, self.size, 4), bool)
        room[1 : self.middle, 1 : self.middle] = True
        room[self.cue_pos] = False
        return np.argwhere(room & sees_cue if start == "cue_room" else room)


def layouts(config: MinigridFourRoomConfig) -> list[tuple[FourRoomLayout, float]]:
    """Every layout of the world with its probability."""
    kinds = KINDS[: config.n_candidates]
    corners = sorted(set(itertools.permutations((*kinds, *[""] * (3 - len(kinds))))))
    found = [
        FourRoomLayout(config.size, cue, order, doors)
        for doors in arrangements(config.size, config.door_layouts) for cue in kinds for order in corners
    ]
    return [(layout, 1 / len(found)) for layout in found]


def arrangements(size: int, count: int) -> list[tuple[int, int, int, int]]:
    """`count` different ways to place the four doors. The first has them in the middle of each arm."""
    m = size // 2
    near, far = m // 2, m + (size - 1 - m) // 2
    found = [(near, far, near, far)]
    rng = np.random.default_rng([DOOR_SEED, size])
    while len(found) < count:
        north, west = (int(i) for i in rng.integers(1, m, 2))
        south, east = (int(i) for i in rng.integers(m + 1, size - 1, 2))
        if (north, south, west, east) not in found:
            found.append((north, south, west, east))
    return found


def _beside(pos: Cell, size: int) -> tuple[Cell, ...]:
    """The inner cells at Manhattan distance 1."""
    around = [(pos[0] + dx, pos[1] + dy) for dx, dy in HEADINGS]
    return tuple(cell for cell in around if all(0 < i < size - 1 for i in cell))
