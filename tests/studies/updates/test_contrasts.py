"""Contrasts: planted differences, pairing, agents as what generalises, missing episodes."""

from __future__ import annotations

import numpy as np
import pytest

from torchmem.studies.updates.contrasts import contrast, sign_flip


def planted(agents=6, episodes=40, effect=1.0, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 10, (agents, episodes))  # episodes differ far more than conditions do
    return base + effect + rng.normal(0, 0.5, base.shape), base


def test_a_planted_effect_is_found_with_its_size():
    found = contrast(*planted())
    assert found.low < 1 < found.high and found.low > 0 and found.t_low > 0
    assert found.estimate == pytest.approx(1, abs=0.15)
    assert found.p == pytest.approx(2 / 2**6)


def test_nothing_is_found_where_nothing_is():
    hits = [not (c.low <= 0 <= c.high) for c in (contrast(*planted(effect=0.0, seed=s), draws=300) for s in range(40))]
    assert sum(hits) <= 8


def test_pairs_must_pair():
    a, b = planted()
    paired, mixed = contrast(a, b), contrast(a, b[:, np.random.default_rng(1).permutation(b.shape[1])])
    assert mixed.high - mixed.low > 3 * (paired.high - paired.low)
    with pytest.raises(ValueError, match="paired values"):
        contrast(a, b[:, 1:])


def test_agents_that_disagree_widen_the_interval():
    a, b = planted(effect=0.0)
    a = a + np.array([6, -6, 6, -6, 6, -6.0])[:, None]
    found = contrast(a, b)
    assert found.low < 0 < found.high and found.high - found.low > 4


def test_episodes_that_do_not_count_are_left_out():
    a, b = planted()
    gap = np.random.default_rng(0).random(a.shape) < 0.3
    found = contrast(np.where(gap, np.nan, a), np.where(gap, np.nan, b))
    assert found.estimate == pytest.approx(1, abs=0.2)
    with pytest.raises(ValueError, match="no episode"):
        contrast(np.full_like(a, np.nan), b)


def test_sign_flips_are_exact():
    assert sign_flip(np.array([1.0, 1.0, 1.0])) == 2 / 8
    assert sign_flip(np.array([1.0, -1.0])) == 1.0
    assert np.isnan(sign_flip(np.array([1.0])))
