"""The status bar of Crafter, drawn for any inventory into recorded pictures: what if the agent had been hungry?"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchmem.errors import TorchmemError

GRID = (9, 2)  # columns and rows of the bar
VITALS = ("health", "food", "drink", "energy")  # the first items of the inventory
HIGHEST = 9
SCHEMES = ("uniform", "one_low")


class BarError(TorchmemError, ValueError):
    """Pictures or inventories are not Crafter's; the message says which."""


def draw_vitals(scheme: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 4) of health, food, drink, energy. uniform: each of 1 to 9. one_low: one of them 1 or 2, the others 9."""
    if scheme == "uniform":
        return rng.integers(1, HIGHEST + 1, (count, len(VITALS)))
    if scheme != "one_low":
        raise BarError(f"vitals={scheme!r}: {' or '.join(SCHEMES)}")
    out = np.full((count, len(VITALS)), HIGHEST)
    out[np.arange(count), rng.integers(0, len(VITALS), count)] = rng.integers(1, 3, count)
    return out


@dataclasses.dataclass(frozen=True)
class Bar:
    """Where the status bar lies in the pictures of a recording: its upper left pixel, and the side of an item."""

    top: int
    left: int
    unit: int

    @classmethod
    def of(cls, recording: Any) -> Bar:
        """Found by drawing the bar of recorded inventories. Raises BarError where there is none."""
        for name in ("inventory", "obs.image"):
            if name not in recording.covariates:
                raise BarError(f"{recording.path} holds no {name!r}: other vitals can be shown in Crafter only")
        rows = np.unique(np.linspace(0, recording.steps - 1, 4).astype(int))
        pictures, inventory = recording.covariates["obs.image"][rows], recording.covariates["inventory"][rows]
        if pictures.ndim != 4 or pictures.shape[1] != pictures.shape[2] or inventory.ndim != 2:
            raise BarError(f"{recording.path}: pictures of Crafter are (side, side, 3), not {pictures.shape[1:]}")
        side = pictures.shape[1]
        unit = side // GRID[0]
        for top in range(side - GRID[1] * unit, -1, -1):
            for left in sorted({(side - GRID[0] * unit) // 2, 0}):
                found = cls(top, left, unit)
                if np.array_equal(found.draw(pictures, inventory), pictures):
                    return found
        raise BarError(f"{recording.path}: the recorded inventory is nowhere to be seen in the pictures, so its bar "
                       f"cannot be drawn anew")  # fmt: skip

    def draw(self, pictures: np.ndarray, inventory: np.ndarray) -> np.ndarray:
        """Pictures (n, side, side, 3) uint8 with the bars of the inventories (n, 16), counts from 0 to 9."""
        out = pictures.copy()
        rows = slice(self.top, self.top + GRID[1] * self.unit)
        columns = slice(self.left, self.left + GRID[0] * self.unit)
        for picture, counts in zip(out, inventory):
            picture[rows, columns] = bar(tuple(int(n) for n in counts), self.unit)
        return out


@functools.lru_cache(4096)
def bar(counts: tuple[int, ...], unit: int) -> np.ndarray:
    """(2 unit, 9 unit, 3) uint8."""
    view, names = _item_view()
    if len(counts) != len(names) or min(counts) < 0 or max(counts) > HIGHEST:
        raise BarError(f"an inventory is {len(names)} counts from 0 to {HIGHEST}, got {counts}")
    return view(dict(zip(names, counts)), (unit, unit)).transpose((1, 0, 2))


@functools.cache
def _item_view() -> tuple[Any, tuple[str, ...]]:
    from crafter import constants, engine

    return engine.ItemView(engine.Textures(constants.root / "assets"), GRID), tuple(constants.items)  # pyright: ignore[reportAttributeAccessIssue]


def changed(inventory: np.ndarray, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n, 16) with some items replaced: name -> (n,)."""
    names = _item_view()[1]
    out = inventory.copy()
    for name, column in values.items():
        if name not in names:
            raise BarError(f"no item {name!r} in Crafter; there are {', '.join(names)}")
        out[:, names.index(name)] = column
    return out
