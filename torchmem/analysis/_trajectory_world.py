"""The world as a picture and what is seen of it, from what a recording holds: a map in its truth, or its images."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

MAPS = ("materials", "maze_layout")  # covariates (steps, H, W): [row y, column x]
COLOURS = {
    "outside": (30, 30, 30), "water": (86, 140, 214), "grass": (134, 184, 102), "stone": (140, 140, 145),
    "path": (203, 187, 145), "sand": (236, 222, 160), "tree": (58, 112, 62), "lava": (224, 96, 44),
    "coal": (66, 66, 72), "iron": (208, 168, 148), "diamond": (236, 246, 250), "table": (146, 102, 58),
    "furnace": (96, 84, 84), "free": (238, 238, 232),
}  # fmt: skip
FREE = ("grass", "sand", "path", "free")  # one can stand there
BLANK = (244, 244, 244)
ROWS = 2000  # of images that a mosaic is made of, at most
CRAFTER_VIEW = (9, 7)  # columns and rows of tiles in the package's image
CRAFTER_ACTIONS = (
    "noop", "left", "right", "up", "down", "do", "sleep", "place stone", "place table", "place furnace", "place plant",
    "make wood pickaxe", "make stone pickaxe", "make iron pickaxe", "make wood sword", "make stone sword",
    "make iron sword",
)
TURNED = ("noop", "left", "right", "forward", "backward")  # the first ones, in the egocentric view
MAZE_ACTIONS = ("noop", "forward", "left", "right", "forward left", "forward right")
GRID_ACTIONS = ("left", "right", "forward")


@dataclasses.dataclass(frozen=True)
class Picture:
    """image: (h, w, 3) uint8 of `pixels` per tile, the upper left corner at tile `origin`. free: (H, W) bool of tiles
    where one can stand, from `origin`, or empty. source: the covariate it was made from, or ""."""

    image: np.ndarray
    pixels: int
    origin: tuple[int, int]
    free: np.ndarray
    source: str


@dataclasses.dataclass(frozen=True)
class Sight:
    """What an agent sees around it. columns, rows: tiles in view, 0: unknown. turned: it looks ahead from the lowest
    row, else it is in the middle. actions: names. moves: actions that ought to change the place."""

    columns: int = 0
    rows: int = 0
    turned: bool = False
    actions: tuple[str, ...] = ()
    moves: tuple[int, ...] = ()


def sight_of(recording: Any) -> Sight:
    """By the world that the recording names, if it names one."""
    plan = getattr(recording, "plan", {}) or {}
    config = recording.provenance.config if hasattr(recording, "provenance") else {}
    env, kwargs = plan.get("env", ""), plan.get("kwargs", {})
    if env == "crafter" or config.get("importer") == "dreamerv3f":
        tiles = kwargs.get("egocentric_view", 0)
        if not tiles:
            return Sight(*CRAFTER_VIEW, False, CRAFTER_ACTIONS, (1, 2, 3, 4))
        side = kwargs.get("image", 64)
        rows = tiles + -(2 * side // 9) // (side // tiles)  # less the rows, rounded up, that the inventory covers
        return Sight(tiles, rows, True, TURNED + CRAFTER_ACTIONS[5:], (1, 2, 3, 4))
    if str(env).startswith("minigrid"):
        return Sight(kwargs.get("view", 0), kwargs.get("view", 0), True, GRID_ACTIONS, (2,))
    return Sight(actions=MAZE_ACTIONS) if env == "memory_maze" else Sight()


def world_picture(
    recording: Any, rows: np.ndarray, tile: np.ndarray, source: str | None, sight: Sight
) -> Picture:
    """The world in the steps `rows`. tile: (len(rows), 2). source: a covariate with a map, "mosaic" (of images that
    show the world from above, upright), "none", or None: what there is, in this order. Raises ValueError."""
    columns = recording.covariates
    if source is None:
        source = next((name for name in MAPS if name in columns), None)
        flat = "obs.image" in columns and sight.columns and not sight.turned
        source = source or ("mosaic" if flat else "none")
    if source == "none":
        low, high = tile.min(0) - 1, tile.max(0) + 2
        size = high - low
        return Picture(np.full((size[1], size[0], 3), BLANK, np.uint8), 1, _place(low), np.zeros((0, 0), bool), "")
    if source == "mosaic":
        if "obs.image" not in columns or not sight.columns or sight.turned:
            raise ValueError("a mosaic needs images that show the world from above, upright, a known number of tiles: "
                             "the package's view of Crafter; give --source none")
        return _mosaic(recording, rows, tile, sight)
    if source not in columns:
        raise ValueError(f"no covariate {source!r} in this recording; a map is {' or '.join(MAPS)}; or mosaic, none")
    drawn = np.asarray(columns[source][int(rows[0])])
    if drawn.ndim != 2 or drawn.dtype.kind not in "iub":
        raise ValueError(f"{source} has shape {drawn.shape} and dtype {drawn.dtype} per step; a map is (H, W) integers")
    if (tile.min(0) < 0).any() or (tile.max(0) >= drawn.shape[::-1]).any():
        raise ValueError(f"positions reach from {tile.min(0)} to {tile.max(0)}, beyond the map {source} of "
                         f"{drawn.shape[1]} x {drawn.shape[0]} tiles")
    names = legend(recording.units, source)
    colours = np.array([COLOURS.get(names.get(i, ""), (i * 37 % 128 + 60,) * 3) for i in range(int(drawn.max()) + 1)])
    free = np.isin(drawn, [i for i, name in names.items() if name in FREE])
    return Picture(colours[drawn].astype(np.uint8), 1, (0, 0), free, source)


def legend(units: Mapping[str, str], name: str) -> dict[int, str]:
    """Number -> name, where the unit of a covariate says so: "0 outside, 1 water" or "1 = free"."""
    return {int(i): word for i, word in re.findall(r"(\d+) (?:= )?([a-z_]+)", units.get(name, ""))}


def _mosaic(recording: Any, rows: np.ndarray, tile: np.ndarray, sight: Sight) -> Picture:
    """The mean of all images, each laid down where it was seen."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(ROWS, len(rows))).astype(int))
    images = recording.covariates["obs.image"]
    half = np.array([sight.columns // 2, sight.rows // 2])
    low, high = tile[chosen].min(0) - half, tile[chosen].max(0) + half + 1
    unit = images.shape[2] // sight.columns
    size = (high - low) * unit
    total, count = np.zeros((size[1], size[0], 3)), np.zeros((size[1], size[0], 1))
    wide, tall = sight.columns * unit, sight.rows * unit
    for at in np.array_split(chosen, max(1, len(chosen) // 256)):
        for image, place in zip(np.asarray(images[rows[at]]), (tile[at] - half - low) * unit):
            part = np.s_[place[1] : place[1] + tall, place[0] : place[0] + wide]
            total[part] += image[:tall, :wide]
            count[part] += 1
    mean = np.where(count > 0, total / np.maximum(count, 1), BLANK).astype(np.uint8)
    return Picture(mean, unit, _place(low), np.zeros((0, 0), bool), "mosaic")


def _place(tile: np.ndarray) -> tuple[int, int]:
    return int(tile[0]), int(tile[1])
