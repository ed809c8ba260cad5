"""The game under the Crafter world: crafter.Env, made repeatable and drawn on demand. Imports the package."""

from __future__ import annotations

from typing import Any

import crafter
import numpy as np

VIEW = (9, 7)  # columns and rows of cells in view; two more rows show the inventory


class Game(crafter.Env):
    """crafter.Env whose step and reset draw no image. Same seed and actions: same game, in every process."""

    def __init__(self, length: int, side: int) -> None:
        super().__init__(size=(side, side), length=length, seed=0)
        self._before_noise: Any = None

    def open(self, seed: int) -> None:
        """The first episode of crafter.Env(seed=seed)."""
        self._seed, self._episode = seed, 0
        self.reset()

    @property
    def player(self) -> Any:
        return self._player

    @property
    def daylight(self) -> float:
        return self._world.daylight

    def picture(self) -> np.ndarray:
        """uint8 (side, side, 3). May be called any number of times: the game's random numbers are left alone."""
        random = self._world.random
        now = random.get_state()
        if self._before_noise is not None:
            random.set_state(self._before_noise)
        try:
            return self.render()
        finally:
            random.set_state(now)

    def semantic(self) -> np.ndarray:
        """uint8 (rows, columns) of the cells in view: materials, and creatures above them; 0 outside the world."""
        whole = self._sem_view()  # [x, y]
        columns, rows = VIEW
        padded = np.pad(whole, ((columns // 2, columns // 2), (rows // 2, rows // 2)))
        x, y = self.player.pos
        return np.ascontiguousarray(padded[x:x + columns, y:y + rows].T)

    def _obs(self) -> None:
        """In place of an image: at night, pass over the random numbers that the package's image takes."""
        random = self._world.random
        self._before_noise = None
        if self._world.daylight < 0.5:
            self._before_noise = random.get_state()
            unit = self._size // self._view
            random.uniform(size=(VIEW[0] * unit[0], VIEW[1] * unit[1]))

    def _balance_chunk(self, chunk: Any, objs: Any) -> None:
        """One of `objs` may be removed by its place in the list, so the list must not follow memory addresses."""
        in_order = sorted(objs, key=lambda creature: self._world._obj_map[tuple(creature.pos)])
        super()._balance_chunk(chunk, in_order)
