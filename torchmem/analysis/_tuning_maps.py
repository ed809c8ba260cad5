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


def explained(
    activity: np.ndarray, bins: np.ndarray, count: int, fold: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(U,) share of a unit's variance that its map predicts: in sample, and of held-out folds by the map of the others.

    activity: (T, U). fold: (T,) from 0; None: no held-out share, NaN. A bin that the other folds never visited is
    predicted by their mean. 0 for a constant unit; below 0 where the map predicts worse than the mean.
    """
    activity = activity - activity.mean(0, dtype=np.float64).astype(activity.dtype)
    square = np.einsum("tu,tu->u", activity, activity, dtype=np.float64)
    folds = 1 if fold is None else int(fold.max()) + 1
    index = bins if fold is None else fold * count + bins
    used, index = np.unique(index, return_inverse=True)  # few of all bins were visited in each fold
    total = (visits(index, len(used)) @ activity).astype(np.float64)
    steps = np.bincount(index)[:, None]
    where = used % count
    places, where = np.unique(where, return_inverse=True)
    whole = np.zeros((len(places), activity.shape[1]))
    np.add.at(whole, where, total)
    counts = np.bincount(where, steps[:, 0])[:, None]
    constant = square <= 1e-12 * len(bins)
    safe = np.where(constant, 1, square)
    in_sample = np.where(constant, 0.0, (whole**2 / counts).sum(0) / safe)
    if fold is None:
        return in_sample, np.full_like(in_sample, np.nan)
    gained = np.zeros_like(square)  # less squared error than without a map
    for f in range(folds):
        mine = np.flatnonzero(used // count == f)
        n, s = counts[where[mine]] - steps[mine], whole[where[mine]] - total[mine]
        rest = -total[mine].sum(0) / (len(bins) - steps[mine].sum())  # mean of the others: all sum to 0
        guess = np.where(n > 0, s / np.maximum(n, 1), rest)
        gained += (guess * (2 * total[mine] - guess * steps[mine])).sum(0)
    return in_sample, np.where(constant, 0.0, gained / safe)
