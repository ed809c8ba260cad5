"""From guesses of the tile to errors in tiles, probabilities and bits, with intervals over resampled episodes."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis._position_data import Grid, PositionData

METRICS = ("manhattan", "median", "accuracy", "expected", "nll", "bits")
LOWER = frozenset({"manhattan", "median", "expected", "nll"})  # is better


@dataclasses.dataclass
class Guesses:
    """What S decoders said of each held-out step. best: (S, N, 2) int16, the likeliest tile, from the grid's origin.
    expected: (S, N, 2), mean position. log_p: (S, N) nats, of the true tile. maps: (S, M, W, H) at the steps `shown`.
    Steps that were never held out hold -1 and NaN."""

    grid: Grid
    shown: np.ndarray
    best: np.ndarray
    expected: np.ndarray
    log_p: np.ndarray
    maps: np.ndarray

    @classmethod
    def empty(cls, sites: int, grid: Grid, shown: np.ndarray) -> Guesses:
        n = len(grid.y)
        return cls(
            grid, shown, np.full((sites, n, 2), -1, np.int16), np.full((sites, n, 2), np.nan, np.float32),
            np.full((sites, n), np.nan, np.float32), np.zeros((sites, len(shown), *grid.shape), np.float32),
        )  # fmt: skip

    def note(
        self, rows: np.ndarray, p: Tensor, cells: np.ndarray, floor: np.ndarray, at: slice = slice(None),
        mean: Tensor | None = None,
    ) -> None:  # fmt: skip
        """p: (S, n, C) over the tiles `cells` (C, 2), of the sites `at`. floor: (n,). mean: (S, n, 2), else from p."""
        where = torch.as_tensor(cells).to(p)
        p_np_best = p.argmax(-1).cpu().numpy()
        centre = p @ where if mean is None else mean
        nearest = cells[p_np_best]
        if mean is not None:
            top = np.array(self.grid.shape) - 1
            nearest = np.clip(np.rint(mean.cpu().numpy()), 0, top)
        width = self.grid.shape[1]
        column = np.full(self.grid.shape[0] * width, -1)
        column[cells[:, 0] * width + cells[:, 1]] = np.arange(len(cells))
        mine = column[self.grid.tile[rows, 0] * width + self.grid.tile[rows, 1]]
        index = torch.as_tensor(mine.clip(0), device=p.device).expand(len(p), -1)[..., None]
        truth = p.gather(-1, index)[..., 0].cpu().numpy() * (mine >= 0)
        self.best[at, rows] = nearest
        self.expected[at, rows] = centre.cpu().numpy()
        self.log_p[at, rows] = np.log(truth * (1 - floor) + floor / np.prod(self.grid.shape))
        seen = np.flatnonzero(np.isin(self.shown, rows))
        if len(seen):
            place = torch.as_tensor(np.searchsorted(rows, self.shown[seen]), device=p.device)
            maps = np.zeros((len(p), len(seen), *self.grid.shape), np.float32)
            maps[:, :, cells[:, 0], cells[:, 1]] = p[:, place].cpu().numpy()
            self.maps[at, seen] = maps


def occupancy(data: PositionData, f: int) -> np.ndarray:
    """(K,) share of the training steps of fold f in each visited tile."""
    visits = np.bincount(data.grid.y[data.fold != f], minlength=len(data.grid.cells))
    return visits / visits.sum()


def prior_log_p(data: PositionData) -> np.ndarray:
    """(N,) log probability of the true tile for who knows the training occupancy alone, with the same floor."""
    out = np.full(len(data.fold), np.nan)
    for f in data.tested:
        rows = data.fold == f
        share = occupancy(data, f)[data.grid.y[rows]]
        floor = data.floor[rows]
        out[rows] = np.log(share * (1 - floor) + floor / np.prod(data.grid.shape))
    return out


class Errors:
    """Sums per group of steps, which add up for any resampling of the groups.

    spread: (S, E, M) steps at each Manhattan distance; rest: (S, E, 4) sums of hits, expected error, nll, bits.
    """

    def __init__(self, spread: np.ndarray, rest: np.ndarray) -> None:
        self.spread, self.rest = spread, rest

    @classmethod
    def of(cls, guesses: Guesses, unit: np.ndarray, prior: np.ndarray) -> Errors:
        """unit: (N,) group of each step, from 0. Steps that were not held out do not count."""
        grid, units = guesses.grid, int(unit.max()) + 1
        reach = sum(grid.shape)
        rows = np.flatnonzero(np.isfinite(guesses.log_p[0]))
        spread, rest = [], []
        for best, mean, log_p in zip(guesses.best, guesses.expected, guesses.log_p):
            distance = np.abs(best[rows] - grid.tile[rows]).sum(1)
            counts = np.bincount(unit[rows] * reach + distance, minlength=units * reach)
            spread.append(counts.reshape(units, reach))
            off = np.abs(mean[rows] - grid.tile[rows]).sum(1)
            gained = (log_p[rows] - prior[rows]) / np.log(2)
            columns = (distance == 0, off, -log_p[rows], gained)
            rest.append(np.stack([np.bincount(unit[rows], c, units) for c in columns], 1))
        return cls(np.stack(spread).astype(np.float64), np.stack(rest))

    def scores(self, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """metric -> (S,), or (B, S) for weights (B, E): how often each group was drawn."""
        one = weights is None
        w = np.ones((1, self.spread.shape[1])) if weights is None else weights.astype(np.float64)
        spread, rest = (np.einsum("be,sem->bsm", w, a, optimize=True) for a in (self.spread, self.rest))
        n = spread.sum(-1)
        reach = np.arange(spread.shape[-1])
        below = np.cumsum(spread, -1)
        low, high = ((below >= need[..., None]).argmax(-1) for need in (n / 2, np.floor(n / 2) + 1))
        mean = rest / n[..., None]
        found = {
            "manhattan": spread @ reach / n, "median": (low + high) / 2, "accuracy": mean[..., 0],
            "expected": mean[..., 1], "nll": mean[..., 2], "bits": mean[..., 3],
        }  # fmt: skip
        return {name: values[0] if one else values for name, values in found.items()}


def chance(data: PositionData, kind: str, unit: np.ndarray, prior: np.ndarray) -> Errors:
    """A rival that looks at nothing: "uniform" over the grid, "occupancy" (draws tiles as often as the training steps
    visited them), or "modal tile" (always the one visited most)."""
    grid = data.grid
    units, reach = int(unit.max()) + 1, sum(grid.shape)
    spread, rest = np.zeros((1, units, reach)), np.zeros((1, units, 4))
    every = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 2)
    for f in data.tested:
        rows = np.flatnonzero(data.fold == f)
        share = occupancy(data, f)
        if kind == "uniform":
            cells, q = every, np.full(len(every), 1 / len(every))
        elif kind == "occupancy":
            cells, q = grid.cells, share
        else:
            cells, q = grid.cells[[share.argmax()]], np.ones(1)
        mean = q @ cells
        for y in np.unique(grid.y[rows]):  # steps in one tile fare alike
            mine = rows[grid.y[rows] == y]
            steps = np.bincount(unit[mine], minlength=units)
            away = np.abs(cells - grid.cells[y]).sum(1)
            spread[0] += steps[:, None] * np.bincount(away, q, reach)
            hit = q[away == 0].sum()
            floor = data.floor[mine[0]]
            odds = hit * (1 - floor) + floor / len(every)
            log_p = np.log(odds) if kind != "uniform" else -np.log(len(every))
            gained = (log_p - prior[mine[0]]) / np.log(2)
            rest[0] += steps[:, None] * [hit, np.abs(mean - grid.cells[y]).sum(), -log_p, gained]
    return Errors(spread, rest)
