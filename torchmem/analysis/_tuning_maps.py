"""Rate maps of all units at once, and what they tell: Skaggs information with its chance level, explained variance.

A map is the mean activation of a unit over its visits to each bin. Sums over visits are one product of a sparse matrix
(bins x steps) with the activations, so a thousand units cost little more than one.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import sparse

from torchmem.analysis.nulls import shift_rows


def visits(bins: np.ndarray, count: int) -> sparse.csr_matrix:
    """(count, T) float32: 1 where step t is in bin b. bins: (T,) int."""
    steps = len(bins)
    return sparse.csr_matrix((np.ones(steps, np.float32), (bins, np.arange(steps))), shape=(count, steps))


def mean_maps(activity: np.ndarray, bins: np.ndarray, count: int) -> np.ndarray:
    """(count, U) mean of each unit in each bin, NaN in bins without a visit. activity: (T, U)."""
    occupancy = np.bincount(bins, minlength=count)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (visits(bins, count) @ activity) / occupancy[:, None]


def skaggs(maps: np.ndarray, occupancy: np.ndarray) -> np.ndarray:
    """(U,) information in bits per unit of activity: sum p f / m log2(f / m), m = sum p f.

    maps: (bins, U), NaN without visits; occupancy: (bins,) steps. NaN for a unit without activity. Only meaningful for
    rates that are nowhere negative. Source: Skaggs, McNaughton, Gothard & Markus 1993.
    """
    seen = occupancy > 0
    p = (occupancy[seen] / occupancy.sum())[:, None]
    rate = maps[seen]
    mean = (p * rate).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = rate / mean
        terms = np.where(ratio > 0, p * ratio * np.log2(np.where(ratio > 0, ratio, 1)), 0.0)
        return np.where(mean > 0, terms.sum(0), np.nan)


@dataclasses.dataclass(frozen=True)
class Information:
    """raw: (U,) Skaggs bits. bias: mean of the shifts. p: share of shifts that reach raw, itself counted.
    corrected: raw less bias, NaN without shifts."""

    raw: np.ndarray
    bias: np.ndarray
    p: np.ndarray

    @property
    def corrected(self) -> np.ndarray:
        return self.raw - self.bias


def information(
    activity: np.ndarray, bins: np.ndarray, count: int, episode: np.ndarray, shifts: int, rng: np.random.Generator
) -> Information:
    """Skaggs information beside that of the same activity with the bins turned in a circle within each episode.

    activity: (T, U) >= 0, bins: (T,), episode: (T,). Turning keeps the occupancy and both autocorrelations, and cuts
    the link: what is left is the bias of few visits.
    """
    occupancy = np.bincount(bins, minlength=count)
    raw = skaggs(mean_maps(activity, bins, count), occupancy)
    if not shifts:
        return Information(raw, np.full_like(raw, np.nan), np.full_like(raw, np.nan))
    total, reached = np.zeros_like(raw), np.zeros(len(raw), np.int64)
    for _ in range(shifts):
        turned = skaggs(mean_maps(activity, bins[shift_rows(episode, rng)], count), occupancy)
        total += turned
        reached += turned >= raw
    p = np.where(np.isfinite(raw), (1 + reached) / (1 + shifts), np.nan)
    return Information(raw, total / shifts, p)


def explained(activity: np.ndarray, bins: np.ndarray, count: int, fold: np.ndarray | None = None) -> np.ndarray:
    """(U,) share of a unit's variance that its map predicts: in sample, or of held-out folds by the map of the others.

    fold: (T,) from 0. A bin that the other folds never visited is predicted by their mean. 0 for a constant unit; below
    0 where the map predicts worse than the mean. Held out, the error is the mean square; in sample it is the same.
    """
    activity = np.asarray(activity, np.float64)
    activity = activity - activity.mean(0)
    square = (activity**2).sum(0)
    if fold is None:
        fold, train_all = np.zeros(len(bins), np.int64), True
    else:
        train_all = False
    folds = int(fold.max()) + 1
    sums = (visits(fold * count + bins, folds * count).astype(np.float64) @ activity).reshape(folds, count, -1)
    counts = np.bincount(fold * count + bins, minlength=folds * count).reshape(folds, count, 1)
    error = np.zeros(activity.shape[1])
    for f in range(folds):
        n, s = (counts[f], sums[f]) if train_all else (counts.sum(0) - counts[f], sums.sum(0) - sums[f])
        guess = np.where(n > 0, s / np.maximum(n, 1), s.sum(0) / max(int(n.sum()), 1))
        error += ((activity[fold == f] ** 2).sum(0) - 2 * (guess * sums[f]).sum(0) + (guess**2 * counts[f]).sum(0))
    constant = square <= 1e-12 * len(bins)
    return np.where(constant, 0.0, 1 - error / np.where(constant, 1, square))
