"""The package's image, drawn faster, bit for bit the same. Imports the package.

Textures are read once per process, not once per world. The materials in view are looked up at once, not tile by tile;
creatures are found by the map of creatures, not by asking all; the inventory is drawn anew only when it has changed.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from crafter import constants, engine

OUTSIDE = 127  # grey of tiles beyond the edge


@functools.cache
def textures() -> Any:
    """Of all worlds of this process: nothing changes them, save that sizes are added."""
    return engine.Textures(constants.root / "assets")


@functools.cache
def vignette(shape: tuple[int, int], stddev: float) -> np.ndarray:
    """(W px, H px): how much of the night's noise is seen, by the package's formula.

    The package keeps ten for all worlds of a process: with more than ten it makes one per frame.
    """
    x, y = (np.linspace(-1, 1, side) for side in shape)
    return 1 - np.exp(-0.5 * (x[:, None] ** 2 + y[None] ** 2) / stddev**2)


class MaterialView(engine.LocalView):
    """engine.LocalView with another way to the same canvas (W px, H px, 3), [x, y]."""

    def __init__(self, world: Any, grid: Any) -> None:
        super().__init__(world, textures(), grid)
        self._tiles: dict[tuple[int, int], np.ndarray] = {}

    def __call__(self, player: Any, unit: Any) -> np.ndarray:
        columns, rows = self._grid.tolist()
        wide, tall = (int(pixels) for pixels in unit)
        left, top = (np.asarray(player.pos) - self._offset).tolist()
        width, height = self._world.area
        ids = np.full((columns, rows), -1, np.int64)
        x = slice(max(left, 0), min(left + columns, width))
        y = slice(max(top, 0), min(top + rows, height))
        ids[x.start - left : x.stop - left, y.start - top : y.stop - top] = self._world._mat_map[x, y]
        tiles = self._tiles_of((wide, tall))[ids]
        canvas = tiles.transpose(0, 2, 1, 3, 4).reshape(columns * wide, rows * tall, 3)
        creatures = self._world._obj_map[x, y]
        for i, j in zip(*np.nonzero(creatures)):
            texture = self._textures.get(self._world._objects[creatures[i, j]].texture, unit)
            engine._draw_alpha(canvas, ((x.start + i - left) * wide, (y.start + j - top) * tall), texture)
        canvas = self._light(canvas, self._world.daylight)
        return self._sleep(canvas) if player.sleeping else canvas

    def _vignette(self, shape: tuple[int, ...], stddev: float) -> np.ndarray:
        return vignette(shape[:2], stddev)

    def _tiles_of(self, unit: tuple[int, int]) -> np.ndarray:
        """(materials + 1, wide, tall, 3) uint8; the last one is outside."""
        if unit not in self._tiles:
            names = self._world._mat_names
            drawn = [self._textures.get(names[i], unit)[..., :3] for i in range(len(names))]
            self._tiles[unit] = np.stack([*drawn, np.full((*unit, 3), OUTSIDE, np.uint8)])
        return self._tiles[unit]


class InventoryView(engine.ItemView):
    """engine.ItemView that keeps its last canvas; do not write to it."""

    def __init__(self, grid: Any) -> None:
        super().__init__(textures(), grid)
        self._last: tuple[Any, np.ndarray] | None = None

    def __call__(self, inventory: Any, unit: Any) -> np.ndarray:
        key = tuple(inventory.values()), tuple(np.asarray(unit).tolist())
        if self._last is None or self._last[0] != key:
            self._last = key, super().__call__(inventory, unit)
        return self._last[1]


class NoSemantics(engine.SemanticView):
    """What the package's step tells of the whole world at every step; here nobody looks at it."""

    def __call__(self) -> None:
        return None
