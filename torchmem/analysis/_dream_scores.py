"""Curves over the steps of dreams: how far from what came, how far from what came elsewhere, how smoothly."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Paths:
    """N decoded dreams in whole tiles, NaN where unknown. tile, real: (N, H + 1, 2); condition, start, copy, episode,
    warmup: (N,) as in DreamBatch. before: (N, B, 2). near: (N, H + 1) distance to the nearest waking state."""

    tile: np.ndarray
    real: np.ndarray
    before: np.ndarray
    near: np.ndarray
    condition: np.ndarray
    start: np.ndarray
    copy: np.ndarray
    episode: np.ndarray
    warmup: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def manhattan(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., 2), (..., 2) -> (...), NaN where either is unknown."""
    return np.abs(a - b).sum(-1)


def euclid(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(((a - b) ** 2).sum(-1))


def rotated_distance(paths: Paths, rotations: int) -> tuple[np.ndarray, int]:
    """((N, H + 1) mean Manhattan distance of each dream to the real futures of other starts, number of rotations).

    The real futures, in order of episode and step, are rotated against the dreams, by every shift or by `rotations` of
    them evenly spread (1: by half, as vviggyy/dreamerv3f does). A rotation that meets the dream's own episode does not
    count, as its places are near for a reason of their own. NaN where no future of another episode lasts so long.
    Raises ValueError where all dreams begin in one episode.
    """
    starts, first, which = np.unique(paths.start, return_index=True, return_inverse=True)
    count, episode, futures = len(starts), paths.episode[first], paths.real[first]
    if len(np.unique(episode)) < 2:
        raise ValueError("all dreams begin in one episode: chance needs the futures of another; dream from more")
    if rotations == 1:
        shifts = np.array([count // 2])
    elif count - 1 <= rotations:
        shifts = np.arange(1, count)
    else:
        shifts = np.unique(np.linspace(1, count - 1, rotations).round().astype(int))
    total, hits = np.zeros(paths.tile.shape[:2]), np.zeros(paths.tile.shape[:2])
    for shift in shifts:
        donor = (which + shift) % count
        distance = manhattan(paths.tile, futures[donor])
        known = np.isfinite(distance) & np.not_equal(episode[donor], paths.episode)[:, None]
        total[known] += distance[known]
        hits += known
    return np.divide(total, hits, out=np.full_like(total, np.nan), where=hits > 0), len(shifts)


def elsewhere_step(paths: Paths) -> np.ndarray:
    """(N, H + 1) step length if the next tile were that of another dream (of the same condition and copy, half the
    starts away, in another episode): what continuity must beat. NaN at index 0."""
    out = np.full(paths.tile.shape[:2], np.nan)
    for rows in _groups(paths.condition, paths.copy):
        rows = rows[np.argsort(paths.start[rows], kind="stable")]
        donor = np.roll(rows, -(len(rows) // 2))
        distance = euclid(paths.tile[donor, 1:], paths.tile[rows, :-1])
        out[rows, 1:] = np.where(np.not_equal(paths.episode[donor], paths.episode[rows])[:, None], distance, np.nan)
    return out


def _groups(*keys: np.ndarray) -> list[np.ndarray]:
    """Rows that agree in all keys."""
    which = np.unique(np.stack(keys, 1), axis=0, return_inverse=True)[1].reshape(-1)
    return np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])


def spread(paths: Paths) -> np.ndarray:
    """(N, H + 1) mean Manhattan distance between a dream and the others from the same start and condition; NaN where
    there is one copy only."""
    out = np.full(paths.tile.shape[:2], np.nan)
    for rows in _groups(paths.condition, paths.start):
        if len(rows) > 1:
            apart = manhattan(paths.tile[rows, None], paths.tile[None, rows])  # (n, n, H + 1)
            out[rows] = apart.sum(1) / (len(rows) - 1)
    return out


def measures(paths: Paths, rotations: int) -> tuple[dict[str, np.ndarray], int]:
    """Measure -> (N, H + 1), NaN where not defined; and the number of rotations behind "chance".

    divergence: Manhattan distance, in tiles, of the decoded from the real step. chance: from rotated futures (see
    `rotated_distance`). stay: what standing still at the real start would get. displacement: from the own decoded
    start. from_start: from the real start. spread: between copies. step: Euclidean length of the last step; stay_put: 1
    where it is 0; jump: its length where it is not; leap: 1 where it is longer than any step of the real futures;
    elsewhere: see `elsewhere_step`. near: cosine distance to the nearest waking state of another episode.
    """
    tile, real = paths.tile, paths.real
    known = np.asarray(np.isfinite(real).all(-1))
    step = np.full(tile.shape[:2], np.nan)
    step[:, 1:] = np.where(known[:, 1:], euclid(tile[:, 1:], tile[:, :-1]), np.nan)
    moved = np.isfinite(step)
    longest = np.nanmax(euclid(real[:, 1:], real[:, :-1]), initial=0.0)
    chance, rotated = rotated_distance(paths, rotations)
    everywhere = {
        "divergence": manhattan(tile, real), "chance": chance,
        "stay": np.where(np.isfinite(tile).all(-1), manhattan(real, real[:, :1]), np.nan),
        "displacement": manhattan(tile, tile[:, :1]), "from_start": manhattan(tile, real[:, :1]),
        "spread": spread(paths), "step": step, "stay_put": np.where(moved, step == 0, np.nan),
        "jump": np.where(moved & (step > 0), step, np.nan), "leap": np.where(moved, step > longest, np.nan),
        "elsewhere": elsewhere_step(paths), "near": paths.near,
    }  # fmt: skip
    return {name: np.where(known, values, np.nan) for name, values in everywhere.items()}, rotated


def curves(
    values: np.ndarray, condition: np.ndarray, episode: np.ndarray, conditions: int, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Means (C, H + 1) per condition, and the same for resampled episodes (R, C, H + 1). NaN does not count.

    values: (N, H + 1). episode: (N,) index into the columns of weights (R, E).
    """
    known = np.isfinite(values)
    shape = (conditions, weights.shape[1], values.shape[1])
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (condition, episode), np.where(known, values, 0))
    np.add.at(count, (condition, episode), known)
    with np.errstate(invalid="ignore", divide="ignore"):
        boot = np.einsum("re,ceh->rch", weights, total) / np.einsum("re,ceh->rch", weights, count)
        return total.sum(1) / count.sum(1), boot


def nearest(
    states: np.ndarray, episode: np.ndarray, wake: np.ndarray, wake_episode: np.ndarray
) -> np.ndarray:
    """(N,) smallest cosine distance of each state (N, D) to the waking states (M, D) of other episodes; NaN where the
    state is unknown, or zero throughout, or there is no other episode. Source: sleep-wake distance of pRNN."""
    def unit(x: np.ndarray) -> np.ndarray:
        norm = np.linalg.norm(x, axis=1, keepdims=True)
        return np.divide(x, norm, out=np.full(x.shape, np.nan, np.float32), where=norm > 0)

    awake = unit(wake.astype(np.float32))
    out = np.full(len(states), np.nan)
    for rows in np.array_split(np.arange(len(states)), 1 + len(states) // 4096):
        likeness = unit(states[rows].astype(np.float32)) @ awake.T
        likeness[episode[rows, None] == wake_episode[None]] = np.nan
        some = np.isfinite(likeness).any(1)
        out[rows[some]] = 1 - np.nanmax(likeness[some], 1)
    return out
