"""What the MiniGrid memory worlds show of a view: one-hot, integer grids or a picture. Shared by both backends."""

from __future__ import annotations

from typing import Any

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.core.grid import Grid

from torchmem.types import Space

LAYERS = {"object": len(OBJECT_TO_IDX), "colour": len(COLOR_TO_IDX), "state": len(STATE_TO_IDX)}
IMAGE_SIDE, TILE = 64, 8  # pixels
NORTH = 3  # the agent looks up in its own picture


def obs_spaces(config: Any) -> dict[str, Space]:
    """The observation keys of a world with this config (its fields view, obs and direction)."""
    view = config.view
    spaces = {
        "symbolic_onehot": {"view": Space((view * view * sum(LAYERS.values()),), "float32", low=0.0, high=1.0)},
        "symbolic": {k: Space((view, view), "uint8", classes=n) for k, n in LAYERS.items()},
        "rgb": {"image": Space((IMAGE_SIDE, IMAGE_SIDE, 3), "uint8")},
    }[config.obs]
    return {**spaces, "direction": Space((), "int64", classes=4)} if config.direction else spaces


def encode(obs: str, view: np.ndarray) -> dict[str, np.ndarray]:
    """A view as minigrid encodes it, uint8 (v, v, 3), as the observation keys of `obs` (all but "direction")."""
    if obs == "rgb":
        return {"image": enlarge(picture(view))}
    layers = dict(zip(LAYERS, np.moveaxis(view, -1, 0), strict=True))
    if obs == "symbolic":
        return {k: np.ascontiguousarray(v) for k, v in layers.items()}
    one_hot = [np.eye(n, dtype=np.float32)[layers[k]] for k, n in LAYERS.items()]
    return {"view": np.concatenate(one_hot, -1).reshape(-1)}


def picture(view: np.ndarray) -> np.ndarray:
    """minigrid's partial picture of a view: uint8 (v * TILE, v * TILE, 3)."""
    grid, seen = Grid.decode(view)
    side = len(view)
    return grid.render(TILE, agent_pos=(side // 2, side - 1), agent_dir=NORTH, highlight_mask=seen)


def enlarge(image: np.ndarray) -> np.ndarray:
    """Nearest neighbours, to IMAGE_SIDE."""
    nearest = np.arange(IMAGE_SIDE) * len(image) // IMAGE_SIDE
    return np.ascontiguousarray(image[nearest][:, nearest])
