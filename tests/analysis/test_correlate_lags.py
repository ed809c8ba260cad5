"""Lagged correlation and regression: numpy's numbers, masks, a planted VAR found, nothing found where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analysis.recordings import Memory, clock
from torchmem.analysis.correlate_lags import correlate_lags
from torchmem.analysis.find_directions import find_directions
from torchmem.result import load_result

RNG = np.random.default_rng


def var(matrix: np.ndarray, episodes: int = 60, length: int = 40, seed: int = 0) -> Memory:
    """y[t + 1] = matrix' y[t] + noise (row the cause, column the effect), each episode anew."""
    rng = RNG(seed)
    episode, step = clock(episodes, length)
    y = rng.normal(size=(len(episode), len(matrix)))
    for t in range(1, len(y)):
        if episode[t] == episode[t - 1]:
            y[t] += y[t - 1] @ matrix
    return Memory({"memory": y}, {"step": step}, episode)


def planted(size: int = 6, seed: int = 3) -> np.ndarray:
    matrix = 0.5 * np.eye(size)
    rng = RNG(seed)
    others = [(i, j) for i in range(size) for j in range(size) if i != j]
    for i, j in rng.permutation(others)[:7]:
        matrix[i, j] = rng.choice([-0.3, 0.3])
    return matrix


def test_numbers_are_those_of_numpy_and_masks_select():
    rec = var(planted())
    y, mask = rec.activations["memory"], rec.covariates["step"] % 3 == 1
    for where in (None, mask, "step >= 4"):
        found = correlate_lags(rec, lags=3, where=where, draws=3)
        chosen = {None: np.ones(len(y), bool)}.get(None if where is None else 0, mask)
        chosen = rec.covariates["step"] >= 4 if isinstance(where, str) else chosen
        for lag in range(4):
            rows = [t for t in range(len(y) - lag) if chosen[t] and rec.episode[t] == rec.episode[t + lag]]
            a, b = y[rows], y[np.array(rows) + lag]
            assert found.pairs[lag] == len(rows)
            np.testing.assert_allclose(found.correlation[lag], np.corrcoef(a.T, b.T)[:6, 6:], atol=1e-10)
            design = np.concatenate([np.ones((len(a), 1)), a], 1)
            np.testing.assert_allclose(found.regression[lag], np.linalg.lstsq(design, b, rcond=None)[0][1:], atol=1e-6)
    np.testing.assert_allclose(found.regression[0], np.eye(6), atol=1e-6)


def test_a_cluster_is_its_own_members():
    """The original took the first members of the data for every cluster."""
    rec = var(planted(), episodes=30)
    late = rec.episode >= 20
    alone = Memory({"memory": rec.activations["memory"][late]}, {}, rec.episode[late])
    some, same = correlate_lags(rec, lags=2, where=late, draws=0), correlate_lags(alone, lags=2, draws=0)
    np.testing.assert_allclose(some.correlation, same.correlation, atol=1e-10)
    assert not np.allclose(some.correlation, correlate_lags(rec, lags=2, where=~late, draws=0).correlation, atol=0.02)


def test_a_planted_var_is_found(tmp_path):
    matrix = planted()
    found = correlate_lags(var(matrix), lags=(1,))
    np.testing.assert_allclose(found.regression[0], matrix, atol=0.07)
    assert ((found.low <= matrix) & (matrix <= found.high)).mean() > 0.8
    off = ~np.eye(6, dtype=bool)
    hits, truth = found.edges()[0][off], matrix[off] != 0
    assert (hits & truth).sum() / max(hits.sum(), 1) >= 0.85 and (hits & truth).sum() == truth.sum()
    counts = {0.05: np.zeros(3), 0.01: np.zeros(3)}
    for seed in range(10):
        matrix = planted(seed=seed)
        again = correlate_lags(var(matrix, seed=seed), lags=(1,))
        for rate, sums in counts.items():
            hits, truth = again.edges(rate)[0][off], matrix[off] != 0
            sums += ((hits & truth).sum(), hits.sum(), truth.sum())
    for rate, least in ((0.05, 0.9), (0.01, 0.95)):
        right, told, there = counts[rate]
        assert right / told >= least and right / there >= 0.95, counts
    assert load_result(found.save(tmp_path / "lags")) == found and "regression" in found.summary()


def test_independent_signals_have_no_edges_and_shared_time_is_no_edge():
    """Slow signals, each by itself, beside one course of time that all episodes share."""
    hits = 0
    for seed in range(4):
        rec = var(0.9 * np.eye(5), seed=seed)
        rec.activations["memory"] += 3 * np.sin(rec.covariates["step"] / 8)[:, None]
        found = correlate_lags(rec, lags=(1, 3))
        hits += int(found.edges(what="correlation").sum())
        assert np.abs(found.correlation[0]).mean() > 0.2, "plain correlation would say otherwise"
    assert hits <= 4, "of 160 tests"


def test_along_directions_and_wrong_inputs():
    rec = var(planted())
    directions = find_directions(rec, count=3, draws=0)
    found = correlate_lags(rec, directions, lags=(0, 1), draws=5)
    np.testing.assert_allclose(found.correlation[0], np.eye(3), atol=1e-6)
    for how, match in [({"lags": 99}, "pairs of steps"), ({"where": "step > 98"}, "pairs"), ({"lags": (-1,)}, "from 0"),
                       ({"directions": "memry"}, "memory|it has")]:  # fmt: skip
        with pytest.raises(ValueError, match=match):
            correlate_lags(rec, **how)
    few = Memory({"memory": rec.activations["memory"][:80]}, {}, rec.episode[:80])
    with pytest.raises(ValueError, match="too few"):
        correlate_lags(few)
