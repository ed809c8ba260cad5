"""The status bar of Crafter, drawn for any inventory into recorded pictures: what if the agent had been hungry?"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from torchmem.errors import TorchmemError

GRID = (9, 2)  # columns and rows of the bar; the picture has 9 x 9 cells
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


def check_recording(recording: Any) -> None:
    """Raise BarError where a recording is not of Crafter with pictures and inventory, or its bar is drawn otherwise."""
    for name in ("inventory", "obs.image"):
        if name not in recording.covariates:
            raise BarError(f"{recording.path} holds no {name!r}: other vitals can be shown to agents in Crafter only")
    rows = np.unique(np.linspace(0, recording.steps - 1, 4).astype(int))
    pictures, inventory = recording.covariates["obs.image"][rows], recording.covariates["inventory"][rows]
    if not np.array_equal(with_inventory(pictures, inventory), pictures):
        raise BarError(f"{recording.path}: the status bar is not the lowest two of nine rows of the picture, as in "
                       f"stock Crafter, so it cannot be drawn anew")  # fmt: skip


def with_inventory(pictures: np.ndarray, inventory: np.ndarray) -> np.ndarray:
    """Pictures (n, side, side, 3) uint8 with the bar of the inventories (n, 16), counts from 0 to 9."""
    if pictures.ndim != 4 or pictures.shape[1] != pictures.shape[2] or pictures.shape[1] < 4 * GRID[0]:
        raise BarError(f"pictures of Crafter are (n, side, side, 3), got {pictures.shape}")
    side = pictures.shape[1]
    unit = side // GRID[0]
    edge = (side - GRID[0] * unit) // 2
    top = edge + unit * (GRID[0] - GRID[1])
    out = pictures.copy()
    for picture, counts in zip(out, inventory):
        picture[top : top + GRID[1] * unit, edge : edge + GRID[0] * unit] = bar(tuple(int(n) for n in counts), unit)
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
