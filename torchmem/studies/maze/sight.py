"""When a ball was last in view, from the walls and places of a trajectory: the format has no mark for it."""

from __future__ import annotations

import numpy as np

from torchmem.studies.maze.trajectories import Trajectory

HALF_VIEW = np.deg2rad(40)  # the walker's camera has fovy 80 and a square picture (dm_control jumping_ball_with_head)
NEAR, SAMPLES = 0.3, 48  # cells before the ball that need not be free (its own radius), points looked at on the line


def in_view(walk: Trajectory) -> np.ndarray:
    """(L, N) bool: the middle of the ball is inside the picture's width and no wall stands before it."""
    right, ahead = walk.vec[..., 0], walk.vec[..., 1]
    inside = np.abs(np.arctan2(right, ahead)) <= HALF_VIEW
    side = np.stack([walk.dir[:, 1], -walk.dir[:, 0]], -1)  # the agent's right in the maze
    offset = right[..., None] * side[:, None] + ahead[..., None] * walk.dir[:, None]  # (L, N, 2)
    length = np.linalg.norm(offset, axis=-1)
    share = np.clip(1 - NEAR / np.maximum(length, 1e-6), 0, 1)
    along = np.linspace(0, 1, SAMPLES) * share[..., None]  # (L, N, P)
    points = walk.pos[:, None, None] + along[..., None] * offset[:, :, None]
    column, row = (np.clip(np.floor(points[..., i]).astype(int), 0, walk.layout.shape[1 - i] - 1) for i in (0, 1))
    return inside & walk.layout[row, column].all(-1)


def age(seen: np.ndarray) -> np.ndarray:
    """(L, N) steps since each ball was last in view: 0 now, -1 not yet."""
    steps = np.arange(len(seen))[:, None]
    last = np.maximum.accumulate(np.where(seen, steps, -1), 0)
    return np.where(last < 0, -1, steps - last)
