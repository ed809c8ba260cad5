"""Crafter seen by the player: a view that turns with it. Imports the package.

The player is in the middle of the lowest row and looks up; what is behind it is not seen. Below are the two rows of the
inventory, as large as in the package's image. Arrays are indexed [x, y] until the end, as in the package.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from crafter import engine, objects

from torchmem.envs.crafter_picture import InventoryView, MaterialView, textures

INVENTORY = (9, 2)  # columns and rows of items
SPRITE = "player-down"  # always the same, so that it does not tell the direction


def right_of(facing: Any) -> tuple[int, int]:
    """The direction on the right hand of one who looks along `facing` (x right, y down)."""
    return -facing[1], facing[0]


class EgocentricView:
    """tiles: columns, of side // tiles pixels. Rows: as many as fit above the inventory, the player's among them."""

    def __init__(self, world: Any, tiles: int, side: int, upright: bool) -> None:
        self.unit, self.side, self._world, self._textures = side // tiles, side, world, textures()
        bar = INVENTORY[1] * side // INVENTORY[0]
        self.columns, self.rows = tiles, tiles - math.ceil(bar / self.unit)
        self._upright = upright
        self._light = MaterialView(world, [self.columns, self.rows])  # lends its night and sleep
        self._items = InventoryView(INVENTORY)

    def __call__(self, player: Any) -> np.ndarray:
        """uint8 (side, side, 3)."""
        facing, unit = (int(player.facing[0]), int(player.facing[1])), self.unit
        right = right_of(facing)
        seen = np.full((self.columns * unit, self.rows * unit, 3), 127.0)
        for i in range(self.columns):
            for j in range(self.rows):
                aside, ahead = i - self.columns // 2, self.rows - 1 - j
                place = tuple(player.pos[axis] + aside * right[axis] + ahead * facing[axis] for axis in (0, 1))
                material, creature = self._world[place]
                if material is None:  # beyond the edge of the world
                    continue
                corner = (i * unit, j * unit)
                engine._draw(seen, corner, self._texture(material, facing))
                if creature is player:
                    engine._draw_alpha(seen, corner, self._texture(SPRITE, (0, -1)))
                elif creature is not None:
                    arrow = isinstance(creature, objects.Arrow)
                    engine._draw_alpha(seen, corner, self._texture(creature.texture, facing, arrow))
        seen = self._light._light(seen, self._world.daylight)
        if player.sleeping:
            seen = self._light._sleep(seen)
        canvas = np.zeros((self.side, self.side, 3), np.uint8)
        canvas[: seen.shape[0], : seen.shape[1]] = seen
        items = self._items(player.inventory, [self.side // INVENTORY[0]] * 2)
        below = self.rows * unit
        canvas[: len(items), below : below + INVENTORY[1] * (self.side // INVENTORY[0])] = items
        return canvas.transpose((1, 0, 2))

    def _texture(self, name: str, facing: tuple[int, int], turns: bool = False) -> np.ndarray:
        upright = self._upright and not turns
        return self._turned(name, (0, -1) if upright else facing)

    @functools.cache  # noqa: B019  one view per game
    def _turned(self, name: str, facing: tuple[int, int]) -> np.ndarray:
        """A texture (unit, unit, channels), turned so that `facing` is up."""
        texture = self._textures.get(name, (self.unit, self.unit))
        right = right_of(facing)
        middle = (self.unit - 1) / 2
        a, b = np.meshgrid(np.arange(self.unit) - middle, np.arange(self.unit) - middle, indexing="ij")
        x, y = (np.rint(middle + a * right[axis] - b * facing[axis]).astype(int) for axis in (0, 1))
        return np.ascontiguousarray(texture[x, y])
