"""What tells one behaviour from another: what agent and world hold at a step, and how that changes after it.

Spec simulator.md 5.8: state and differences state_t - state_{t+k}, every number at its own standard deviation, turned
to principal components. A site with more numbers than its width gives that many components of itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from torchmem.analysis._probe_data import Recorded, lookup
from torchmem.analysis.nulls import spans

WIDTHS = {"memory": 64}  # of the agent's memory, as it is where it has so few units; of any other site:
WIDTH = 16
LIMIT = 1000.0  # features beyond it are cut, as the original does
FITTED = 20_000  # steps that a site's own components are found on, at most
DONORS = 16  # episodes that one of a mixture is made from


@dataclasses.dataclass(frozen=True)
class Features:
    """The R steps whose whole window lies in their episode. x (R, F); blocks: name -> columns. row (R,): which of all
    steps of all recordings in turn; episode (R,): unlike numbers across recordings."""

    x: np.ndarray
    blocks: dict[str, slice]
    row: np.ndarray
    episode: np.ndarray


@dataclasses.dataclass(frozen=True)
class Space:
    """Principal components of standardised features: scores (R, P) of x (R, F)."""

    centre: np.ndarray
    scale: np.ndarray
    axes: np.ndarray

    @classmethod
    def of(cls, x: np.ndarray, most: int, share: float = 1.0) -> Space:
        """At most `most` components, and no more than hold this share of the variance."""
        centre, spread = x.mean(0), x.std(0)
        scale = np.where(spread > 1e-9, spread, np.inf)  # what never varies says nothing
        z = (x - centre) / scale
        values, axes = np.linalg.eigh(z.T @ z / len(z))
        values, axes = values[::-1], axes.T[::-1]
        held = np.cumsum(values) / max(float(values.sum()), 1e-300)
        real = int((values > 1e-9 * max(float(values[0]), 1e-300)).sum())
        count = min(most, real, int(np.searchsorted(held, share - 1e-12)) + 1)
        if count < 1:
            raise ValueError("nothing varies in the chosen sites, so there are no behaviours to tell apart")
        return cls(centre, scale, axes[:count])

    def scores(self, x: np.ndarray) -> np.ndarray:
        return ((x - self.centre) / self.scale) @ self.axes.T


def read_features(
    recordings: Sequence[Recorded], sites: Sequence[str], lags: Sequence[int], skip: int = 0
) -> Features:
    """skip: first steps of every episode that are left out.

    Raises ValueError for a site that a recording lacks or has in another size, NaN, episodes that are too short.
    """
    columns = [[_site(rec, site) for site in sites] for rec in recordings]
    states, blocks, at = [], {}, 0
    for place, site in enumerate(sites):
        parts = [held[place] for held in columns]
        sizes = {part.shape[1] for part in parts}
        if len(sizes) > 1:
            raise ValueError(f"{site} has {sorted(sizes)} numbers in these recordings: give those of one agent")
        values, width = np.concatenate(parts), WIDTHS.get(site, WIDTH)
        if values.shape[1] > width:
            every = max(1, len(values) // FITTED)
            values = Space.of(values[::every].astype(np.float64), width).scores(values)
        blocks[site] = slice(at, at + values.shape[1])
        at += values.shape[1]
        states.append(values.astype(np.float32))
    state = np.concatenate(states, 1)
    episode = _episodes(recordings)
    reach = max(lags, default=0)
    row = np.concatenate([rows[skip : max(len(rows) - reach, 0)] for rows in spans(episode)])
    if not len(row):
        raise ValueError(f"no episode is longer than {reach + skip} steps: take smaller lags, or skip fewer")
    parts = [state[row]]
    for lag in lags:
        shift = at * len(parts)
        parts.append(state[row] - state[row + lag])
        blocks |= {f"{site} over {lag}": slice(blocks[site].start + shift, blocks[site].stop + shift) for site in sites}
    return Features(np.clip(np.concatenate(parts, 1), -LIMIT, LIMIT), blocks, row, episode[row])


def _site(rec: Recorded, site: str) -> np.ndarray:
    values = lookup(rec.activations, site, "site")
    values = values.reshape(len(values), -1)
    if not np.isfinite(values).all():
        raise ValueError(f"{site} holds NaN or infinity: record without it, or name other sites")
    return values


def _episodes(recordings: Sequence[Recorded]) -> np.ndarray:
    """(all steps,) of episode numbers that no two recordings share."""
    out, shift = [], 0
    for rec in recordings:
        numbers = np.unique(np.asarray(rec.episode), return_inverse=True)[1]
        out.append(numbers + shift)
        shift += int(numbers.max(initial=-1)) + 1
    return np.concatenate(out)


def mixed(points: np.ndarray, episode: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points (R, P) without clusters: each episode becomes a random mixture of others, step by step, which keeps every
    covariance between numbers and between steps and makes all else normal."""
    number = np.unique(episode, return_inverse=True)[1]
    weight = rng.normal(size=(int(number.max()) + 1, DONORS))
    weight /= np.linalg.norm(weight, axis=1, keepdims=True)
    out = np.zeros_like(points)
    for donor in range(DONORS):
        out += weight[number, donor, None] * points[donors(episode, rng)]
    return out


def donors(episode: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(R,) row of a random other (or the same) episode for each row, step by step. A shorter one begins again: if it
    stood still at its end, as in `exchange_rows`, the many equal rows would be a cluster."""
    pieces = spans(episode)
    source = np.empty(len(episode), np.int64)
    for taker, giver in zip(pieces, rng.permutation(len(pieces))):
        source[taker] = pieces[giver][np.arange(len(taker)) % len(pieces[giver])]
    return source


def exchanged(x: np.ndarray, blocks: dict[str, slice], episode: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Features (R, F) whose blocks come from different episodes each: every block as it was, together at random."""
    out = x.copy()
    for columns in blocks.values():
        out[:, columns] = x[donors(episode, rng)][:, columns]
    return out
