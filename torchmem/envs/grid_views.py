"""What an agent sees from every pose of every layout, all at once in numpy: minigrid's partial view and its occlusion.

Rules: minigrid 3.2.0, `MiniGridEnv.gen_obs_grid` and `Grid.process_vis`. The view is square, the agent stands in the
middle of its near edge and looks towards the far one; sight spreads row by row away from the agent and a wall is seen
but not seen through. Tests compare every pose with the package.

N states, v view, S size, K layouts. A view cell is (column i from the left, row j from the far edge).
"""

from __future__ import annotations

import numpy as np

from torchmem.envs.minigrid_layouts import HEADINGS

CHUNK = 65536  # states whose views are computed at once


def view_cells(grids: np.ndarray, outside: int, layout: np.ndarray, poses: np.ndarray, view: int) -> np.ndarray:
    """The cells in view. grids (K, S, S) -> (N, v, v) of the same dtype; `outside` stands beyond the grid.

    layout: int (N). poses: int (N, 3) of x, y, heading.
    """
    padded = np.pad(grids, ((0, 0), (view, view), (view, view)), constant_values=outside)
    ahead = np.array(HEADINGS)[poses[:, 2]]  # (N, 2)
    right = np.stack([-ahead[:, 1], ahead[:, 0]], -1)
    i, j = np.meshgrid(np.arange(view), np.arange(view), indexing="ij")
    depth, side = (view - 1 - j)[None, ..., None], (i - view // 2)[None, ..., None]
    cells = poses[:, None, None, :2] + ahead[:, None, None] * depth + right[:, None, None] * side + view
    return padded[layout[:, None, None], cells[..., 0], cells[..., 1]]


def sight(opaque: np.ndarray) -> np.ndarray:
    """Which cells of a view are seen. opaque: bool (N, v, v), True where nothing behind is seen -> bool (N, v, v)."""
    n, v, _ = opaque.shape
    seen = np.zeros((n, v, v), bool)
    seen[:, v // 2, v - 1] = True
    for j in reversed(range(v)):
        for order, step in ((range(v - 1), 1), (range(v - 1, 0, -1), -1)):
            for i in order:
                through = seen[:, i, j] & ~opaque[:, i, j]
                seen[:, i + step, j] |= through
                if j > 0:
                    seen[:, i + step, j - 1] |= through
                    seen[:, i, j - 1] |= through
    return seen
