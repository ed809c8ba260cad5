"""A layout on the minigrid package: its dynamics, what is seen from a pose, what is best to do there.

An episode's grid never changes (objects cannot be taken), so everything here is a function of the layout and of the
pose, computed once and kept. Layouts and coordinates: `minigrid_layouts.py`.
"""

from __future__ import annotations

import collections
import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from minigrid.core.actions import Actions
from minigrid.core.grid import Grid
from minigrid.core.mission import MissionSpace
from minigrid.core.world_object import Key
from minigrid.envs.memory import MemoryEnv
from minigrid.minigrid_env import MiniGridEnv

from torchmem.envs.minigrid_layouts import CUES, EMPTY, HEADINGS, GridLayout, Layout, Pose
from torchmem.envs.tensor_tables import RUNNING, build_tables

log = logging.getLogger("torchmem")


class PosedEnv(MiniGridEnv):
    """What every world here adds to minigrid's: a layout, a pose that can be read and set, views only when asked for.

    choose: what a counterfactual reset fixes. It replaces drawn values after all draws were made, so that the same
    seed draws the same rest.
    """

    choose: dict[str, Any] = {}
    layout: GridLayout

    def gen_obs(self) -> dict[str, Any]:
        return {}  # stock reset and step build a view here; ours are looked up

    def pose(self) -> Pose:
        x, y = self.agent_pos
        return int(x), int(y), int(self.agent_dir)

    def place(self, x: int, y: int, heading: int) -> None:
        self.agent_pos, self.agent_dir = np.array((x, y)), heading

    def look(self) -> np.ndarray:
        """What minigrid shows here: uint8 (view, view, 3) of object, colour, state; 0 is unseen."""
        return super().gen_obs()["image"]

    def place_chosen(self, pose: Pose) -> None:
        """Start at a drawn pose, or where `choose` says. Raises ValueError if nobody can stand there."""
        x, y = self.choose.get("agent_pos", pose[:2])
        if self.grid.get(x, y) is not None:
            raise ValueError(f"reset option agent_pos {(x, y)} is a wall or an object in this layout")
        self.place(x, y, self.choose.get("agent_dir", pose[2]))


class StockMemory(PosedEnv, MemoryEnv):
    """minigrid's Memory with its own dynamics and random draws."""

    layout: Layout

    def _gen_grid(self, width: int, height: int) -> None:
        super()._gen_grid(width, height)
        end = int(self.success_pos[0]) - 1
        spots = ((1, height // 2 - 1), (end + 1, height // 2 - 2))
        cue, top = ("key" if isinstance(self.grid.get(*spot), Key) else "ball" for spot in spots)
        drawn = Layout(width, end, cue, top)
        self.layout = drawn.changed(self.choose)
        if self.layout != drawn:
            self.grid = Grid.decode(self.layout.codes())[0]
            self.success_pos, self.failure_pos = self.layout.success_pos, self.layout.failure_pos
        self.place_chosen(self.layout.clip(self.pose()))


class LayoutEnv(PosedEnv):
    """A world made of layouts, with minigrid's moves and Memory's reward and ends.

    draw: a function of the world's generator that gives a layout and a start pose, after `choose` was obeyed.
    """

    def __init__(self, draw: Callable[[np.random.Generator], tuple[GridLayout, Pose]], **kwargs: Any) -> None:
        self._draw = draw
        super().__init__(mission_space=MissionSpace(mission_func=lambda: ""), see_through_walls=False, **kwargs)

    def _gen_grid(self, width: int, height: int) -> None:
        self.layout, pose = self._draw(self.np_random)
        self.grid = Grid.decode(self.layout.codes())[0]
        self.mission = ""
        self.place_chosen(pose)

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        # nothing can be taken, opened or dropped: those actions only pass the time
        moves = (Actions.left, Actions.right, Actions.forward)
        obs, _, _, truncated, info = super().step(action if action in moves else Actions.done)
        cell = self.pose()[:2]
        success = cell in self.layout.success_cells
        terminated = success or cell in self.layout.failure_cells
        return obs, self._reward() if success else 0.0, terminated, truncated, info


@functools.lru_cache(maxsize=2048)
def best_actions(layout: GridLayout) -> tuple[np.ndarray, np.ndarray]:
    """Breadth-first search backwards from success over (cell, heading), never through another end.

    Returns distance int32 (size, size, 4) in actions, -1 where success is out of reach, and a mask uint8
    (size, size, 4, 3) of the actions left, right, forward that lead one step nearer.
    """
    size, goals, failures = layout.size, set(layout.success_cells), set(layout.failure_cells)
    free = (layout.codes() == EMPTY).all(-1)
    distance = np.full((size, size, 4), -1, np.int32)
    queue = collections.deque((*goal, d) for goal in goals for d in range(4))
    for pose in queue:
        distance[pose] = 0
    while queue:
        x, y, d = queue.popleft()
        dx, dy = HEADINGS[d]
        before = [] if (x, y) in goals else [(x, y, (d + 1) % 4), (x, y, (d - 1) % 4)]  # the episode ends at a goal
        before.append((x - dx, y - dy, d))
        for pose in before:
            cell = pose[:2]
            if free[cell] and cell not in failures and cell not in goals and distance[pose] < 0:
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


def sightings(layout: GridLayout, view: int) -> dict[str, np.ndarray]:
    """From which poses each mark of the layout is seen: bool (size, size, 4), by its name.

    False where no agent can stand. Objects never hide what is behind them, so their kinds do not matter.
    """
    return _sightings(layout.plain(), view)


@functools.lru_cache(maxsize=256)
def _sightings(layout: GridLayout, view: int) -> dict[str, np.ndarray]:
    tables = build_tables([(layout, 1.0)], view, "stock")
    seen = {}
    for index, name in enumerate(tables.mark_names):
        array = seen[name] = np.zeros(tables.ids.shape[1:], bool)
        array[tuple(tables.poses.T)] = tables.marks[:, index]
        array.setflags(write=False)
    return seen


def visible(layout: Layout, view: int) -> tuple[np.ndarray, np.ndarray]:
    """`sightings` of the cue, and of a choice object."""
    seen = sightings(layout, view)
    return seen["cue"], seen["choice"]


@functools.cache
def joint_poses(size: int, view: int, random_length: bool = False) -> int:
    """How many poses show the cue and a choice object at once, over all hallway lengths: above 0, memory is not needed.

    Terminal cells do not count (the episode is over there).
    """
    ends = range(4, size - 2) if random_length else [size - 3]
    total = count_joint([Layout(size, end, CUES[0], CUES[0]) for end in ends], view, "cue")
    if total:
        log.warning(
            "minigrid_memory size=%d view=%d%s: %d poses show the cue and a choice object at once, so this can be "
            "solved without memory; view=3 never does", size, view, " random_length" if random_length else "", total)
    return total


def count_joint(layouts: Iterable[GridLayout], view: int, mark: str) -> int:
    """How many poses that do not end the episode show both `mark` and a choice object, over layouts that differ."""
    different = {layout.plain(): layout for layout in layouts}  # kinds do not matter
    tables = build_tables([(layout, 1.0) for layout in different.values()], view, "stock")
    both = tables.marks[:, tables.mark_names.index(mark)] & tables.marks[:, tables.mark_names.index("choice")]
    return int((both & (tables.end == RUNNING)).sum())
