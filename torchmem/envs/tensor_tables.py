"""A whole family of grids as lookup tables: every state, where each action leads, what is seen there, what is best.

A state is a layout and a reachable pose; there are a few thousand (S13: 288, S17 random: 2992), at most a million, so
that stepping and seeing are one lookup each. Built in numpy from the layouts alone, without the minigrid package.

N states, K layouts, S size, v view, U different views, A = 3 actions (left, right, forward).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from torchmem.envs.grid_views import CHUNK, sight, view_cells
from torchmem.envs.minigrid_layouts import EMPTY, HEADINGS, WALL, GridLayout

RUNNING, SUCCESS, WRONG = range(3)
UNSEEN = 0  # index of the kind of cell that is out of sight


@dataclasses.dataclass(frozen=True)
class Tables:
    """See the module's docstring. All arrays are numpy."""

    layouts: tuple[GridLayout, ...]
    mark_names: tuple[str, ...]
    layout: np.ndarray  # (N) index into layouts
    poses: np.ndarray  # (N, 3) x, y, heading
    ids: np.ndarray  # (K, S, S, 4) state of a pose, -1 where nobody can stand
    following: np.ndarray  # (N, A) state after an action; an end leads to itself
    end: np.ndarray  # (N) RUNNING, SUCCESS or WRONG
    views: np.ndarray  # (U, v, v, 3) uint8, as minigrid encodes them
    view_of: np.ndarray  # (N) index into views
    marks: np.ndarray  # (N, len(mark_names)) bool: which marks are in sight
    distance: np.ndarray  # (N) actions to success past no failure, -1 where there is no way
    best: np.ndarray  # (N, A) uint8: 1 where the action leads one step nearer
    starts: np.ndarray  # (M) states that open an episode
    chances: np.ndarray  # (M) with these probabilities


def build_tables(layouts: Sequence[tuple[GridLayout, float]], view: int, start: str) -> Tables:
    """The tables of a family. layouts: with probabilities. start: a word that `GridLayout.starts` knows."""
    grids = tuple(layout for layout, _ in layouts)
    coded = np.stack([layout.codes() for layout in grids])  # (K, S, S, 3)
    kinds, cells = np.unique(coded.reshape(-1, 3), axis=0, return_inverse=True)
    kinds = np.concatenate([np.zeros((1, 3), np.uint8), kinds])
    cells = (cells.reshape(coded.shape[:3]) + 1).astype(np.uint8)
    empty, wall = (int(np.flatnonzero((kinds == code).all(-1))[0]) for code in (EMPTY, WALL))

    free = cells == empty
    start_cells = np.zeros_like(free)
    anywhere = np.ones((*free.shape[1:], 4), bool)
    for k, layout in enumerate(grids):
        x, y, _ = layout.starts("stock", anywhere).T
        start_cells[k, x, y] = True
    layout_of, x, y = np.nonzero(connected(start_cells & free, free))
    layout_of, x, y = (np.repeat(a, 4) for a in (layout_of, x, y))
    poses = np.stack([x, y, np.tile(np.arange(4), len(x) // 4)], -1)
    ids = np.full((*free.shape, 4), -1, np.int64)
    ids[layout_of, x, y, poses[:, 2]] = np.arange(len(poses))

    end = _ends(grids, ids, len(poses))
    following = _following(ids, layout_of, poses, end)
    distance, best = shortest(following, end == SUCCESS, end == RUNNING)
    names = tuple(grids[0].marks())
    spots = np.zeros((*free.shape,), np.uint8)
    for k, layout in enumerate(grids):
        for bit, places in enumerate(layout.marks().values()):
            for place in places:
                spots[k][place] |= 1 << bit
    views, view_of, marks = _see(cells, kinds, spots, layout_of, poses, view, (empty, wall), len(names))
    starts, chances = _starts(layouts, ids, start, marks[:, names.index("cue")])
    return Tables(grids, names, layout_of, poses, ids, following, end, views, view_of, marks, distance, best, starts,
                  chances)


def connected(seed: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The free cells that can be walked to from `seed`: bool (K, S, S), 4-neighbours."""
    reached = seed.copy()
    while True:
        grown = reached.copy()
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown[:, :, 1:] |= reached[:, :, :-1]
        grown[:, :, :-1] |= reached[:, :, 1:]
        grown &= free
        if (grown == reached).all():
            return reached
        reached = grown


def shortest(following: np.ndarray, goal: np.ndarray, running: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (N) and best actions (N, A) to a goal, by breadth-first search from all goals at once.

    goal: bool (N). running: bool (N), False where no action leads on. -1 where no goal can be reached.
    """
    distance = np.where(goal, 0, -1)
    open_states = np.flatnonzero(running & ~goal)
    steps = 0
    while len(open_states):
        reaches = (distance[following[open_states]] == steps).any(-1)
        if not reaches.any():
            break
        steps += 1
        distance[open_states[reaches]] = steps
        open_states = open_states[~reaches]
    nearer = (distance[following] == distance[:, None] - 1) & (distance > 0)[:, None]
    return distance, nearer.astype(np.uint8)


def _ends(grids: Sequence[GridLayout], ids: np.ndarray, states: int) -> np.ndarray:
    end = np.full(states, RUNNING, np.int64)
    for k, layout in enumerate(grids):
        for kind, places in ((SUCCESS, layout.success_cells), (WRONG, layout.failure_cells)):
            for place in places:
                here = ids[k][place]
                end[here[here >= 0]] = kind
    return end


def _following(ids: np.ndarray, layout: np.ndarray, poses: np.ndarray, end: np.ndarray) -> np.ndarray:
    x, y, heading = poses.T
    here = np.arange(len(poses))
    ahead = poses[:, :2] + np.array(HEADINGS)[heading]
    forward = ids[layout, ahead[:, 0], ahead[:, 1], heading]
    after = np.stack([
        ids[layout, x, y, (heading - 1) % 4], ids[layout, x, y, (heading + 1) % 4],
        np.where(forward >= 0, forward, here)], -1)
    return np.where((end == RUNNING)[:, None], after, here[:, None])


def _see(
    cells: np.ndarray, kinds: np.ndarray, spots: np.ndarray, layout: np.ndarray, poses: np.ndarray, view: int,
    empty_wall: tuple[int, int], mark_count: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different views, which one each state has, and the marks in it."""
    empty, wall = empty_wall
    shown, marks = [], []
    for first in range(0, len(poses), CHUNK):
        rows = slice(first, first + CHUNK)
        seen_cells = view_cells(cells, wall, layout[rows], poses[rows], view)
        seen = sight(seen_cells == wall)
        marked = np.where(seen, view_cells(spots, 0, layout[rows], poses[rows], view), 0)
        marks.append(np.bitwise_or.reduce(marked.reshape(len(marked), -1), axis=1))
        seen_cells[:, view // 2, view - 1] = empty  # the agent does not see itself
        shown.append(np.where(seen, seen_cells, UNSEEN).reshape(len(seen), -1))
    flat = np.concatenate(shown)
    # rows as opaque bytes: sorting these is many times faster than np.unique(axis=0)
    rows = np.ascontiguousarray(flat).view(f"V{flat.shape[1]}").ravel()
    _, first_of, view_of = np.unique(rows, return_index=True, return_inverse=True)
    views = kinds[flat[first_of]].reshape(-1, view, view, 3)
    bits = np.concatenate(marks)[:, None] >> np.arange(mark_count)
    return views, view_of.reshape(-1), (bits & 1).astype(bool)


def _starts(
    layouts: Sequence[tuple[GridLayout, float]], ids: np.ndarray, start: str, sees_cue: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    starts, chances = [], []
    for k, (layout, chance) in enumerate(layouts):
        sees = (ids[k] >= 0) & sees_cue[ids[k]]
        found = ids[k][tuple(layout.starts(start, sees).T)]
        starts.append(found)
        chances.append(np.full(len(found), chance / len(found)))
    return np.concatenate(starts), np.concatenate(chances)
