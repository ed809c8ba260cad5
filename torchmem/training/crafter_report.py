"""What evaluation adds in Crafter: how often each achievement was unlocked, and the benchmark's score of that."""

from __future__ import annotations

import numpy as np

from torchmem.envs.crafter import ACHIEVEMENTS
from torchmem.models.importers.dreamerv3f_logs import crafter_score

DRAWS = 1000  # bootstrap samples of episodes


def score_with_interval(unlocked: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    """(score, low, high) in percent, 95 % by bootstrap over episodes. unlocked: (episodes, 22) bool.

    The paper's score is that of all training episodes; this one is of the episodes given.
    """
    rng = np.random.default_rng(seed)
    episodes = len(unlocked)
    drawn = [crafter_score(100 * unlocked[rng.integers(0, episodes, episodes)].mean(0)) for _ in range(DRAWS)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return crafter_score(100 * unlocked.mean(0)), float(low), float(high)


def crafter_metrics(unlocked: np.ndarray, prefix: str) -> dict[str, float]:
    """Score and interval in percent, success rates in [0, 1]."""
    score, low, high = score_with_interval(unlocked)
    rates = {f"{prefix}/achievement/{name}": float(rate) for name, rate in zip(ACHIEVEMENTS, unlocked.mean(0))}
    told = {f"{prefix}/crafter_score": score, f"{prefix}/crafter_score_low": low, f"{prefix}/crafter_score_high": high}
    return told | rates


def crafter_text(unlocked: np.ndarray) -> str:
    """The score, and each achievement that was unlocked with its rate."""
    score, low, high = score_with_interval(unlocked)
    rates = sorted(zip(unlocked.mean(0), ACHIEVEMENTS), reverse=True)
    seen = ", ".join(f"{name} {100 * rate:.0f} %" for rate, name in rates if rate > 0)
    return f"crafter score {score:.2f} % [{low:.2f}, {high:.2f}]: {seen or 'nothing was achieved'}"
