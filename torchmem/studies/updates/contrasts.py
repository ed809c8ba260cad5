"""Differences between conditions that were measured on paired episodes, with intervals over agents and episodes."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
from scipy import stats

CHUNK = 200  # bootstrap draws held in memory at once


@dataclasses.dataclass(frozen=True)
class Contrast:
    """mean(a) - mean(b). low, high: 95 % bootstrap over agents and, within them, paired episodes. t_low, t_high: 95 %
    Student interval over agents alone (NaN for one). p: exact two-sided sign-flip test over agents, never below
    2 / 2^S. by_seed: (S,) the difference of each agent.
    """

    estimate: float
    low: float
    high: float
    t_low: float
    t_high: float
    p: float
    by_seed: np.ndarray


def contrast(a: np.ndarray, b: np.ndarray, draws: int = 2000, seed: int = 0) -> Contrast:
    """a, b: (S, E) values of S agents (seeds) on E paired episodes; NaN where a measure does not count an episode.

    Raises ValueError where shapes differ, or an agent has no episode that counts under both.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"paired values must both be (seeds, episodes); got {a.shape} and {b.shape}")
    if not (np.isfinite(a).any(1) & np.isfinite(b).any(1)).all():
        raise ValueError("an agent has no episode in which this was measured: play more episodes")
    rng = np.random.default_rng(seed)
    by_seed = np.nanmean(a, 1) - np.nanmean(b, 1)
    agents, episodes = a.shape
    drawn = []
    for count in [CHUNK] * (draws // CHUNK) + [draws % CHUNK]:
        who = rng.integers(agents, size=(count, agents, 1))
        which = rng.integers(episodes, size=(count, agents, episodes))
        drawn.append((_mean(a[who, which]) - _mean(b[who, which])).mean(1))
    drawn = np.concatenate(drawn)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    t_low, t_high = _student(by_seed)
    estimate = float(by_seed.mean())
    return Contrast(estimate, float(low), float(high), t_low, t_high, sign_flip(by_seed), by_seed)


def _mean(values: np.ndarray) -> np.ndarray:
    """(..., E) -> (...) mean over finite entries; NaN where a draw has none."""
    good = np.isfinite(values)
    count = good.sum(-1)
    return np.where(count > 0, np.where(good, values, 0).sum(-1) / np.maximum(count, 1), np.nan)


def _student(values: np.ndarray) -> tuple[float, float]:
    n = len(values)
    if n < 2:
        return math.nan, math.nan
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n)
    return float(values.mean() - half), float(values.mean() + half)


def sign_flip(values: np.ndarray) -> float:
    """Share of all 2^S sign patterns whose mean is at least as far from 0; NaN for one value. At most 2^16 patterns."""
    n = len(values)
    if n < 2:
        return math.nan
    if n > 16:
        raise ValueError(f"an exact sign-flip test of {n} agents is too long: compare at most 16")
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    return float((np.abs(signs @ values) >= np.abs(values.sum()) - 1e-12).mean())
