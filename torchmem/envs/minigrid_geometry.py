"""Geometry of MiniGrid-Memory, and the answers that follow from it: what is seen from a pose, what is best to do there.

An episode's grid never changes (objects cannot be taken), so everything here is a function of
(hallway end, which cue, order of the choice objects) and of the pose, computed once and kept.

Coordinates: x to the east, y to the south, in cells. Headings 0 east, 1 south, 2 west, 3 north. c = size // 2.
Layout facts: circuits spec section 4, from minigrid 3.2.0 `envs/memory.py`.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
from typing import Any

import numpy as np
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball, Key, Wall
from minigrid.envs.memory import MemoryEnv

CUES = ("key", "ball")
OBJECTS = {"key": Key, "ball": Ball}
HEADINGS = ((1, 0), (0, 1), (-1, 0), (0, -1))
log = logging.getLogger("torchmem")


@dataclasses.dataclass(frozen=True)
class Layout:
    """One of the grids that a size admits. cue: in the start room. top: the choice object at the north end."""

    size: int
    hallway_end: int
    cue: str
    top: str

    @property
    def middle(self) -> int:
        return self.size // 2

    @property
    def cue_pos(self) -> tuple[int, int]:
        return 1, self.middle - 1

    @property
    def choice_pos(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """North, south."""
        x = self.hallway_end + 1
        return (x, self.middle - 2), (x, self.middle + 2)

    @property
    def success_pos(self) -> tuple[int, int]:
        return self.hallway_end + 1, self.middle + (-1 if self.cue == self.top else 1)

    @property
    def failure_pos(self) -> tuple[int, int]:
        return self.hallway_end + 1, self.middle + (1 if self.cue == self.top else -1)

    def grid(self) -> Grid:
        """The grid as minigrid builds it."""
        s, c, end = self.size, self.middle, self.hallway_end
        grid = Grid(s, s)
        grid.wall_rect(0, 0, s, s)
        for x in range(1, 5):
            grid.set(x, c - 2, Wall())
            grid.set(x, c + 2, Wall())
        for x in (4, *range(5, end)):
            grid.set(x, c - 1, Wall())
            grid.set(x, c + 1, Wall())
        for y in range(s):
            if y != c:
                grid.set(end, y, Wall())
            grid.set(end + 2, y, Wall())
        grid.set(*self.cue_pos, OBJECTS[self.cue]("green"))
        for pos, kind in zip(self.choice_pos, (self.top, CUES[1 - CUES.index(self.top)]), strict=True):
            grid.set(*pos, OBJECTS[kind]("green"))
        return grid


class StockMemory(MemoryEnv):
    """minigrid's world with its own dynamics and random draws; views are computed here only when asked for.

    `choose` holds what a counterfactual reset fixes: it replaces drawn values after all draws were made, so that the
    same seed draws the same rest.
    """

    choose: dict[str, Any] = {}
    layout: Layout

    def _gen_grid(self, width: int, height: int) -> None:
        super()._gen_grid(width, height)
        end = int(self.success_pos[0]) - 1
        spots = ((1, height // 2 - 1), (end + 1, height // 2 - 2))
        cue, top = ("key" if isinstance(self.grid.get(*spot), Key) else "ball" for spot in spots)
        drawn = {"hallway_end": end, "cue": cue, "layout": top}
        chosen = {**drawn, **{k: v for k, v in self.choose.items() if k in drawn}}
        self.layout = Layout(width, chosen["hallway_end"], chosen["cue"], chosen["layout"])
        if chosen != drawn:
            self.grid = self.layout.grid()
            self.success_pos, self.failure_pos = self.layout.success_pos, self.layout.failure_pos
        x, y = (int(i) for i in self.agent_pos)
        x, y = self.choose.get("agent_pos", (min(x, self.layout.hallway_end), y))
        if self.grid.get(x, y) is not None:
            raise ValueError(f"reset option agent_pos {(x, y)} is a wall or an object in this layout")
        self.agent_pos = np.array((x, y))
        self.agent_dir = self.choose.get("agent_dir", self.agent_dir)

    def gen_obs(self) -> dict[str, Any]:
        return {}  # stock reset and step build a view here; ours are looked up

    def pose(self) -> tuple[int, int, int]:
        x, y = self.agent_pos
        return int(x), int(y), int(self.agent_dir)

    def place(self, x: int, y: int, heading: int) -> None:
        self.agent_pos, self.agent_dir = np.array((x, y)), heading

    def look(self) -> np.ndarray:
        """What minigrid shows here: uint8 (view, view, 3) of object, colour, state; 0 is unseen."""
        return super().gen_obs()["image"]


@functools.lru_cache(maxsize=256)
def best_actions(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Breadth-first search backwards from success over (cell, heading), never through failure.

    Returns distance int32 (size, size, 4) in actions, -1 where success is out of reach, and a mask uint8
    (size, size, 4, 3) of the actions left, right, forward that lead one step nearer.
    """
    size, grid = layout.size, layout.grid()
    free = np.array([[grid.get(x, y) is None for y in range(size)] for x in range(size)])
    distance = np.full((size, size, 4), -1, np.int32)
    goal = layout.success_pos
    queue = collections.deque((*goal, d) for d in range(4))
    distance[goal] = 0
    while queue:
        x, y, d = queue.popleft()
        dx, dy = HEADINGS[d]
        before = [] if (x, y) == goal else [(x, y, (d + 1) % 4), (x, y, (d - 1) % 4)]  # the episode ends at the goal
        before.append((x - dx, y - dy, d))
        for pose in before:
            cell = pose[:2]
            if free[cell] and cell != layout.failure_pos and cell != goal and distance[pose] < 0:
                distance[pose] = distance[x, y, d] + 1
                queue.append(pose)
    best = np.zeros((size, size, 4, 3), np.uint8)
    for x, y, d in zip(*np.nonzero(distance > 0), strict=True):
        dx, dy = HEADINGS[d]
        after = ((x, y, (d - 1) % 4), (x, y, (d + 1) % 4), (x + dx, y + dy, d))
        best[x, y, d] = [free[p[:2]] and distance[p] == distance[x, y, d] - 1 for p in after]
    distance.setflags(write=False)
    best.setflags(write=False)
    return distance, best


@functools.lru_cache(maxsize=256)
def visible(layout: Layout, view: int) -> tuple[np.ndarray, np.ndarray]:
    """From which poses the cue, and from which a choice object, is seen: two bool arrays (size, size, 4).

    False where no agent can stand. Objects never hide what is behind them, so neither depends on their types.
    """
    env = StockMemory(size=layout.size, agent_view_size=view)
    env.reset(seed=0)
    env.grid = layout.grid()
    distance, _ = best_actions(layout)
    cue, choice = np.zeros((2, layout.size, layout.size, 4), bool)
    standable = distance >= 0
    standable[layout.failure_pos] = True
    for x, y, d in zip(*np.nonzero(standable), strict=True):
        env.place(int(x), int(y), int(d))
        _, mask = env.gen_obs_grid()
        for seen, positions in ((cue, [layout.cue_pos]), (choice, layout.choice_pos)):
            spots = [env.relative_coords(*pos) for pos in positions]
            seen[x, y, d] = any(spot is not None and mask[int(spot[0]), int(spot[1])] for spot in spots)
    cue.setflags(write=False)
    choice.setflags(write=False)
    return cue, choice


@functools.cache
def joint_poses(size: int, view: int, random_length: bool = False) -> int:
    """How many poses show the cue and a choice object at once, over all hallway lengths: above 0, memory is not needed.

    Terminal cells do not count (the episode is over there).
    """
    total = 0
    for end in range(4, size - 2) if random_length else [size - 3]:
        layout = Layout(size, end, "key", "key")
        cue, choice = visible(layout, view)
        both = cue & choice
        both[layout.success_pos] = both[layout.failure_pos] = False
        total += int(both.sum())
    if total:
        log.warning(
            "minigrid_memory size=%d view=%d%s: %d poses show the cue and a choice object at once, so this can be "
            "solved without memory; view=3 never does", size, view, " random_length" if random_length else "", total)
    return total
