"""The null of sign agreement (T11): gradients and recordings that know nothing of each other share half their signs."""

from __future__ import annotations

import numpy as np

from tests.analysis.recordings import Memory, clock
from torchmem.analysis.correlate_lags import correlate_lags
from torchmem.analysis.find_directions import find_directions
from torchmem.provenance import Provenance
from torchmem.studies.dynamics import compare_stories

COUNT, LAGS, SEEDS = 6, 2, 12


def independent(seed: int) -> Memory:
    """Slow signals, each by itself."""
    rng = np.random.default_rng(seed)
    episode, _ = clock(40, 30)
    y = rng.normal(size=(len(episode), COUNT))
    for t in range(1, len(y)):
        if episode[t] == episode[t - 1]:
            y[t] += 0.7 * y[t - 1]
    return Memory({"memory": y}, {}, episode)


def test_what_is_unrelated_agrees_in_half_of_the_signs():
    same, null, p, labels = [], [], [], []
    for seed in range(SEEDS):
        rec, rng = independent(seed), np.random.default_rng(100 + seed)
        directions = find_directions(rec, count=COUNT, draws=0)
        slopes = rng.normal(size=(COUNT, 1, LAGS + 1, COUNT)) + 0.1 * rng.normal(size=(COUNT, 8, LAGS + 1, COUNT))
        seen = correlate_lags(rec, directions, lags=LAGS, draws=60)
        found = compare_stories({"total": slopes}, seen, directions, np.arange(8), simulator="none", settings={},
                                provenance=Provenance(torchmem="0"))  # fmt: skip
        for kind in ("total", "total (r)"):
            rows = found.agreement[kind][1:]
            same += rows[:, 0].tolist()
            null += rows[:, 1].tolist()
            p += rows[:, 2].tolist()
            labels += rows[:, 3].tolist()
    signs = SEEDS * LAGS * COUNT * (COUNT - 1)  # regression and correlation share them
    assert abs(np.mean(same) - 0.5) < 3 * 0.5 / np.sqrt(signs), np.mean(same)
    assert abs(np.mean(null) - 0.5) < 0.02 and np.abs(np.array(null) - 0.5).max() < 0.1
    for values in (p, labels):
        assert np.mean(np.array(values) < 0.05) <= 0.15 and np.median(values) > 0.25
