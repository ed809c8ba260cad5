"""From the quality of single held-out steps to scores, through sums that add up over episodes and bins."""

from __future__ import annotations

import numpy as np

METRICS = {"logistic": ("accuracy", "balanced_accuracy"), "ridge": ("r2",), "circular": ("r2",)}


def _score(sums: np.ndarray, metric: str) -> np.ndarray:
    """sums: (..., K) -> (...). NaN where there is nothing to score, or no variance to explain."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric == "r2":
            n, error, square, total = sums[..., 0], sums[..., 1], sums[..., 2], sums[..., 3:]
            variance = square - (total**2).sum(-1) / n
            return np.where(variance > 1e-12 * square, 1 - error / variance, np.nan)
        count, hits = np.split(sums, 2, axis=-1)
        if metric == "accuracy":
            return hits.sum(-1) / count.sum(-1)
        present = count > 0
        return np.where(present, hits / count, 0).sum(-1) / present.sum(-1)


def _tally(
    quality: np.ndarray, y: np.ndarray, classes: int, unit: np.ndarray, bins: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Sums per cell, (S, E, J, K), of E units that can be resampled (episodes) and J bins.

    quality: (S, N) right or wrong (classes > 0), or squared error. y: (N, O) as in ProbeData. unit, bins: (N,) index.
    K: steps and hits of each class; or steps, squared error, |y|^2 and y.
    """
    cell = unit * shape[1] + bins
    cells = shape[0] * shape[1]

    def add(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, values, cells)

    if classes:
        index, width = cell * classes + y[:, 0], cells * classes
        count = np.bincount(index, minlength=width).reshape(cells, classes)
        hits = [np.bincount(index, q, width).reshape(cells, classes) for q in quality]
        sums = np.stack([np.concatenate([count, h], -1) for h in hits])
    else:
        y = y - y.mean(0)
        rest = [add((y**2).sum(1)), *(add(column) for column in y.T)]
        sums = np.stack([np.stack([np.bincount(cell, minlength=cells), add(q), *rest], -1) for q in quality])
    return sums.reshape(len(quality), *shape, -1).astype(np.float64)


class Tally:
    """The score of S sites, as a whole, per bin, and for resampled episodes. Arguments: see `_tally`."""

    def __init__(
        self, metric: str, quality: np.ndarray, y: np.ndarray, classes: int, unit: np.ndarray, bins: np.ndarray, *,
        shape: tuple[int, int],
    ) -> None:  # fmt: skip
        self.metric, self.sums = metric, _tally(quality, y, classes, unit, bins, shape)

    def total(self) -> np.ndarray:
        """(S,)"""
        return _score(self.sums.sum((1, 2)), self.metric)

    def by_bin(self) -> np.ndarray:
        """(S, J)"""
        return _score(self.sums.sum(1), self.metric)

    def resampled(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """weights: (B, E), how often each unit was drawn -> scores (B, S) and (B, S, J)."""
        drawn = np.einsum("be,sejk->bsjk", weights.astype(np.float64), self.sums, optimize=True)
        return _score(drawn.sum(2), self.metric), _score(drawn, self.metric)
