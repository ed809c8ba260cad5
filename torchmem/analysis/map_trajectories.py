"""Where an agent went: paths and occupancy on the world's map, how much of it was met, films of what it saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchmem.analysis._probe_data import Recorded, lookup, where_mask
from torchmem.analysis._trajectory_result import TrajectoriesResult
from torchmem.analysis._trajectory_world import MAPS, sight_of, world_picture
from torchmem.analysis.nulls import spans
from torchmem.result import Provenance

__all__ = ["TrajectoriesResult", "map_trajectories"]

HEADINGS = ("heading", "facing", "facing_from_actions")


def map_trajectories(
    recording: Recorded, target: str = "pos", *, heading: str | None = None, source: str | None = None,
    world: int | None = None, where: str | Sequence[str] | np.ndarray | None = None, cell: float = 1.0,
    episodes: int = 0, draws: int = 20, seed: int = 0,
) -> TrajectoriesResult:  # fmt: skip
    """The paths of a recording. target: covariate (steps, 2), x to the right and y down. heading: an angle in rad or a
    direction (steps, 2); None: "heading", "facing" or "facing_from_actions", whichever was recorded.

    source: of the world's picture: a covariate with a map, "mosaic" (of images seen from above), "none", or None for
    the first of these that there is. world: id in the covariate "world", or number of the map where maps tell episodes
    apart; None: the one with most steps. The others have another map: they are left out and noted. where: as in
    `probe_position`. cell: side of a tile in units of the target. episodes: only the first so many, 0: all. draws: of
    the control, the moves of each episode in random order.

    Raises ValueError for what was not recorded, positions that are no pairs of finite numbers, or no step left.
    """
    pos = lookup(recording.covariates, target, "covariate")
    if pos.ndim != 2 or pos.shape[1] != 2:
        raise ValueError(f"{target} has shape {pos.shape[1:]} per step; a position is x and y")
    if cell <= 0 or episodes < 0:
        raise ValueError(f"cell must be above 0 and episodes at least 0; got {cell} and {episodes}")
    keep = where_mask(recording, where)
    notes: list[str] = []
    numbers = np.asarray(recording.episode)
    if (worlds := _worlds(recording, numbers)) is not None:
        keep, found = _one_world(worlds, keep, world)
        notes += found
    elif world is not None:
        raise ValueError(f"world={world}: this recording has neither a covariate 'world' nor maps")
    if episodes:
        keep &= np.isin(numbers, np.unique(numbers[keep])[:episodes])
    rows = np.flatnonzero(keep)
    if not len(rows):
        raise ValueError(f"where={where!r} and world={world} leave no step")
    pos = pos[rows].astype(np.float32)
    if not np.isfinite(pos).all():
        raise ValueError(f"{target} is NaN or infinite in the chosen steps: leave those out with where=")
    tile = np.floor(pos / cell).astype(np.int64)
    sight = sight_of(recording)
    picture = world_picture(recording, rows, tile, source, sight)
    episode = numbers[rows]
    rewards = _column(recording, "reward", rows, 0.0)
    pieces = spans(episode)
    rng = np.random.default_rng(seed)
    own = getattr(recording, "provenance", None) or Provenance.here()
    return TrajectoriesResult(
        target=target, cell=cell, tiled=bool((pos / cell == tile).all()), rows=rows, pos=pos, episode=episode,
        heading=_angles(recording, heading, rows), action=_column(recording, "action", rows, -1).astype(np.int64),
        returns=np.array([rewards[one].sum() for one in pieces]), picture=picture.image, pixels=picture.pixels,
        origin=picture.origin, free=picture.free, source=picture.source,
        visited=np.array([len(np.unique(tile[one], axis=0)) for one in pieces]),
        shuffled=np.array([_disordered(tile[one], draws, rng) for one in pieces]),
        view=(sight.columns, sight.rows), turned=sight.turned, actions=sight.actions, moves=sight.moves,
        hz=float(getattr(recording, "control_hz", 1.0)), settings={"draws": draws, "seed": seed}, notes=tuple(notes),
        provenance=own.again(seeds={**own.seeds, "map_trajectories": seed}),
    )  # fmt: skip


def _worlds(recording: Any, episode: np.ndarray) -> np.ndarray | None:
    """(steps,) ids: as recorded, or by the map that an episode begins with."""
    if "world" in recording.covariates:
        return lookup(recording.covariates, "world", "covariate")
    name = next((name for name in MAPS if name in recording.covariates), None)
    if name is None:
        return None
    begins = [int(rows[0]) for rows in spans(episode)]
    maps = [np.asarray(recording.covariates[name][row]).tobytes() for row in begins]
    order = {drawn: number for number, drawn in enumerate(dict.fromkeys(maps))}
    return np.repeat([order[drawn] for drawn in maps], np.diff([*begins, len(episode)]))


def _one_world(worlds: np.ndarray, keep: np.ndarray, asked: int | None) -> tuple[np.ndarray, list[str]]:
    ids, steps = np.unique(worlds[keep], return_counts=True)
    if asked is not None and asked not in ids:
        raise ValueError(f"world={asked} is not among the {len(ids)} recorded worlds, such as {ids[:5].tolist()}")
    if not len(ids):
        return keep, []
    chosen = ids[steps.argmax()] if asked is None else asked
    notes = [] if len(ids) == 1 else [f"world {chosen} of {len(ids)}, the others are left out"]
    return keep & (worlds == chosen), notes


def _column(recording: Any, name: str, rows: np.ndarray, default: float) -> np.ndarray:
    if name not in recording.covariates:
        return np.full(len(rows), default)
    values = np.asarray(recording.covariates[name][:])[rows]
    return values if values.ndim == 1 else np.full(len(rows), default)


def _angles(recording: Any, name: str | None, rows: np.ndarray) -> np.ndarray:
    """(T,) rad from +x towards +y, NaN where nothing was recorded."""
    if name is None:
        name = next((one for one in HEADINGS if one in recording.covariates), None)
        if name is None:
            return np.full(len(rows), np.nan, np.float32)
    values = lookup(recording.covariates, name, "covariate")[rows]
    if values.ndim == 2 and values.shape[1] == 2:
        return np.arctan2(values[:, 1], values[:, 0]).astype(np.float32)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape[1:]} per step; a heading is an angle, or x and y")
    return values.astype(np.float32)


def _disordered(tile: np.ndarray, draws: int, rng: np.random.Generator) -> float:
    """Mean number of tiles visited by the same moves in random order: same speed and same end, no plan, no walls."""
    moves = np.diff(tile, axis=0)
    counts = []
    for _ in range(draws):
        path = np.concatenate([tile[:1], tile[:1] + np.cumsum(rng.permutation(moves), 0)])
        counts.append(len(np.unique(path, axis=0)))
    return float(np.mean(counts)) if counts else np.nan
