"""A scripted walker for Memory Maze: to free cells drawn at random, one after another, with noisy actions.

It reads the truth (place, heading, layout), never a picture. The published offline set was made so too (README of
jurgisp/memory-maze): such a walker sees the whole maze, and comes by the same places again and again.
"""

from __future__ import annotations

from collections import deque

import numpy as np

FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = 1, 2, 3, 4, 5
ACTIONS = 6
STRAIGHT, WIDE = 0.25, 0.9  # radians off the way: below the first it goes straight on, above the second it only turns
NEIGHBOURS = ((0, 1), (0, -1), (1, 0), (-1, 0))


class MazeWalker:
    """Walks in one maze after another. noise: share of actions that are drawn at random."""

    def __init__(self, rng: np.random.Generator, noise: float = 0.2) -> None:
        self._rng, self.noise = rng, noise
        self._layout: np.ndarray | None = None
        self._goal: tuple[int, int] | None = None  # row, column
        self._distance = np.zeros((0, 0), np.int64)

    def act(self, pos: np.ndarray, heading: float, layout: np.ndarray) -> int:
        """The next action. pos (2,) in cells, heading in radians from +x to +y, layout [row y, column x], 1 = free."""
        if self._layout is None or not np.array_equal(layout, self._layout):
            self._layout, self._goal = np.array(layout), None
        cell = cell_of(pos, layout)
        if self._goal is None or cell == self._goal:
            self._choose(cell)
        if self._rng.random() < self.noise:
            return int(self._rng.integers(ACTIONS))
        row, column = self._next(cell)
        ahead = np.arctan2(row + 0.5 - pos[1], column + 0.5 - pos[0])
        off = (ahead - heading + np.pi) % (2 * np.pi) - np.pi  # left is positive
        if abs(off) < STRAIGHT:
            return FORWARD
        if abs(off) > WIDE:
            return LEFT if off > 0 else RIGHT
        return FORWARD_LEFT if off > 0 else FORWARD_RIGHT

    def _choose(self, cell: tuple[int, int]) -> None:
        """A new goal among the cells that can be reached from here."""
        assert self._layout is not None
        reach = distances(self._layout, cell)
        rows, columns = np.nonzero(reach > 0)
        if not len(rows):
            self._goal, self._distance = cell, reach
            return
        drawn = int(self._rng.integers(len(rows)))
        self._goal = int(rows[drawn]), int(columns[drawn])
        self._distance = distances(self._layout, self._goal)

    def _next(self, cell: tuple[int, int]) -> tuple[int, int]:
        """The neighbour that is nearer to the goal."""
        height, width = self._distance.shape
        best = cell
        for dy, dx in NEIGHBOURS:
            row, column = cell[0] + dy, cell[1] + dx
            if 0 <= row < height and 0 <= column < width and 0 <= self._distance[row, column] < self._distance[best]:
                best = row, column
        return best


def cell_of(pos: np.ndarray, layout: np.ndarray) -> tuple[int, int]:
    """Row and column of the free cell where `pos` is: the nearest free one where it leans over a wall."""
    row, column = (int(np.clip(np.floor(p), 0, n - 1)) for p, n in zip(pos[::-1], layout.shape, strict=True))
    if layout[row, column]:
        return row, column
    rows, columns = np.nonzero(layout)
    nearest = int(np.argmin((rows + 0.5 - pos[1]) ** 2 + (columns + 0.5 - pos[0]) ** 2))
    return int(rows[nearest]), int(columns[nearest])


def distances(layout: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """Steps between neighbouring free cells from `start`, (rows, columns) int; -1 where there is no way."""
    out = np.full(layout.shape, -1, np.int64)
    out[start] = 0
    queue = deque([start])
    while queue:
        row, column = queue.popleft()
        for dy, dx in NEIGHBOURS:
            there = row + dy, column + dx
            inside = 0 <= there[0] < layout.shape[0] and 0 <= there[1] < layout.shape[1]
            if inside and layout[there] and out[there] < 0:
                out[there] = out[row, column] + 1
                queue.append(there)
    return out
