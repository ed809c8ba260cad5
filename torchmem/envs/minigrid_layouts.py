"""The grids of the MiniGrid memory worlds: what lies where, which cells end the episode, what must be remembered.

A layout is frozen and hashable and names one grid; an episode never changes it (objects cannot be taken). Every world
here is a family of layouts, and one episode is a layout and a start pose. Nothing in this file simulates anything.

Coordinates: x to the east, y to the south, in cells. Headings 0 east, 1 south, 2 west, 3 north. c = size // 2.
A pose is (x, y, heading). Cells are coded as minigrid codes them: object, colour, state.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from torchmem.envs.configs import MinigridMemoryConfig

Cell = tuple[int, int]
Pose = tuple[int, int, int]
Facts = dict[str, np.ndarray]

CUES = ("key", "ball")
KINDS = ("key", "ball", "box")
HEADINGS = ((1, 0), (0, 1), (-1, 0), (0, -1))
# minigrid.core.constants: OBJECT_TO_IDX, COLOR_TO_IDX (a test compares the grids)
EMPTY, WALL, BOX_RED = (1, 0, 0), (2, 5, 0), (7, 0, 0)
GREEN = {"key": (5, 1, 0), "ball": (6, 1, 0), "box": (7, 1, 0)}


class GridLayout(abc.ABC):
    """What any layout answers. Subclasses are frozen dataclasses."""

    size: int
    OPTIONS: ClassVar[tuple[str, ...]]  # reset options that name a layout of the family

    @abc.abstractmethod
    def codes(self) -> np.ndarray:
        """The grid: uint8 (size, size, 3), indexed [x, y]."""

    @property
    @abc.abstractmethod
    def success_cells(self) -> tuple[Cell, ...]:
        """Standing on one of them ends the episode with a reward."""

    @property
    @abc.abstractmethod
    def failure_cells(self) -> tuple[Cell, ...]:
        """Standing on one of them ends the episode without."""

    @abc.abstractmethod
    def marks(self) -> dict[str, tuple[Cell, ...]]:
        """Objects whose sight the truth keeps track of: "cue", "choice" and what else the world has."""

    @property
    def deciding(self) -> tuple[str, ...]:
        """The marks that one must have seen to know the target."""
        return ("cue",)

    @abc.abstractmethod
    def facts(self) -> Facts:
        """Truth that holds for the whole episode."""

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """The reset options that name this layout: `changed(other.options()) == other`."""

    @abc.abstractmethod
    def changed(self, options: Mapping[str, Any]) -> Self:
        """This layout with some of its options replaced. Raises ValueError for one that cannot be."""

    @abc.abstractmethod
    def starts(self, start: str, sees_cue: np.ndarray) -> np.ndarray:
        """Equally likely first poses, int (n, 3). sees_cue: bool (size, size, 4)."""

    def clip(self, pose: Pose) -> Pose:
        """A pose drawn for another layout of the family, moved into this one."""
        return pose

    @abc.abstractmethod
    def choices(self) -> dict[str, tuple[Cell, ...]]:
        """The ends by where they are: name -> cells. One of them is the success."""

    @abc.abstractmethod
    def plain(self) -> Self:
        """The layout with the same marks in the same places whose objects are all of one kind."""


@dataclasses.dataclass(frozen=True)
class Layout(GridLayout):
    """MiniGrid-Memory (circuits spec section 4). cue: in the start room. top: the choice object at the north end."""

    OPTIONS = ("cue", "layout", "hallway_end")

    size: int
    hallway_end: int
    cue: str
    top: str

    @property
    def middle(self) -> int:
        return self.size // 2

    @property
    def cue_pos(self) -> Cell:
        return 1, self.middle - 1

    @property
    def choice_pos(self) -> tuple[Cell, Cell]:
        """North, south."""
        x = self.hallway_end + 1
        return (x, self.middle - 2), (x, self.middle + 2)

    @property
    def target(self) -> str:
        """What to go to at the end of the hallway."""
        return self.cue

    @property
    def success_pos(self) -> Cell:
        return self.hallway_end + 1, self.middle + (-1 if self.target == self.top else 1)

    @property
    def failure_pos(self) -> Cell:
        return self.hallway_end + 1, self.middle + (1 if self.target == self.top else -1)

    def choices(self) -> dict[str, tuple[Cell, ...]]:
        x = self.hallway_end + 1
        return {"north": ((x, self.middle - 1),), "south": ((x, self.middle + 1),)}

    def plain(self) -> Self:
        return dataclasses.replace(self, cue=CUES[0], top=CUES[0])

    @property
    def success_cells(self) -> tuple[Cell, ...]:
        return (self.success_pos,)

    @property
    def failure_cells(self) -> tuple[Cell, ...]:
        return (self.failure_pos,)

    def codes(self) -> np.ndarray:
        s, c, end = self.size, self.middle, self.hallway_end
        grid = walled(s)
        grid[1:5, [c - 2, c + 2]] = WALL
        grid[4:5, [c - 1, c + 1]] = WALL
        grid[5:end, [c - 1, c + 1]] = WALL
        grid[end, [y for y in range(s) if y != c]] = WALL
        grid[end + 2] = WALL
        grid[self.cue_pos] = GREEN[self.cue]
        for pos, kind in zip(self.choice_pos, (self.top, other(self.top)), strict=True):
            grid[pos] = GREEN[kind]
        return grid

    def marks(self) -> dict[str, tuple[Cell, ...]]:
        return {"cue": (self.cue_pos,), "choice": self.choice_pos}

    def facts(self) -> Facts:
        cue = np.array(CUES.index(self.cue), np.int64)
        return {
            "cue_type": cue, "target_type": np.array(CUES.index(self.target), np.int64),
            "success_pos": np.array(self.success_pos, np.float32),
            "failure_pos": np.array(self.failure_pos, np.float32),
        }

    def options(self) -> dict[str, Any]:
        return {"cue": self.cue, "layout": self.top, "hallway_end": self.hallway_end}

    def changed(self, options: Mapping[str, Any]) -> Self:
        for key in ("cue", "layout"):
            one_of(options, key, CUES)
        one_of(options, "hallway_end", range(self.shortest, self.size - 2))
        names = {"cue": "cue", "layout": "top", "hallway_end": "hallway_end"}
        return dataclasses.replace(self, **{names[k]: v for k, v in options.items() if k in names})

    @property
    def shortest(self) -> int:
        """The nearest hallway end that a random length may have."""
        return 4

    def starts(self, start: str, sees_cue: np.ndarray) -> np.ndarray:
        if start == "stock":
            return np.array([(x, self.middle, 0) for x in range(1, self.hallway_end + 1)])
        if start == "at_cue":
            return np.array([(self.cue_pos[0], self.cue_pos[1] + 1, 0)])
        room = sees_cue.copy()
        room[4:] = False  # x = 1..3 is the room
        return np.argwhere(room)

    def clip(self, pose: Pose) -> Pose:
        return min(pose[0], self.hallway_end), pose[1], pose[2]


def other(kind: str) -> str:
    """The other of key and ball."""
    return CUES[1 - CUES.index(kind)]


def one_of(options: Mapping[str, Any], key: str, valid: Sequence[Any]) -> None:
    """Raise ValueError where the option is given and is none of `valid`."""
    if key in options and options[key] not in valid:
        values = f"{valid[0]}..{valid[-1]}" if isinstance(valid, range) else ", ".join(map(str, valid))
        raise ValueError(f"reset option {key} must be one of {values}; got {options[key]!r}")


def walled(size: int) -> np.ndarray:
    """An empty grid inside its outer wall."""
    grid = np.empty((size, size, 3), np.uint8)
    grid[:] = EMPTY
    grid[[0, -1]], grid[:, [0, -1]] = WALL, WALL
    return grid


def layouts(config: MinigridMemoryConfig) -> list[tuple[Layout, float]]:
    """Every layout of MiniGrid-Memory with its probability."""
    ends = range(4, config.size - 2) if config.random_length else [config.size - 3]
    found = [Layout(config.size, end, cue, top) for end in ends for cue in CUES for top in CUES]
    return [(layout, 1 / len(found)) for layout in found]
