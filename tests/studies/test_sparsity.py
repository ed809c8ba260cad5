"""Measures of sparsity, by hand, and the false discovery rate behind "these units hold the cue"."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchmem.analysis.nulls import false_discoveries
from torchmem.studies.memory_sparsity import gini, hoyer, measure_sparsity, participation, treves_rolls
from torchmem.studies.sizes import steps_to

ONE, ALL = np.array([0.0, 0, 5, 0]), np.full(4, 2.0)


def test_measures_at_their_ends():
    for rule, one, every in ((participation, 1, 4), (hoyer, 1, 0), (gini, 0.75, 0), (treves_rolls, 0.25, 1)):
        assert rule(ONE) == pytest.approx(one) and rule(ALL) == pytest.approx(every), rule.__name__
        assert rule(3 * ONE) == pytest.approx(one)  # no matter the scale


def test_benjamini_and_hochberg_by_hand():
    p = np.array([0.9, 0.01, 0.03, 0.021, np.nan])
    # sorted 0.01 <= 0.05/5, 0.021 > 0.02, 0.03 <= 0.03: the largest that passes takes all below with it
    assert false_discoveries(p, 0.05).tolist() == [False, True, True, True, False]
    assert not false_discoveries(np.array([0.2, 0.5])).any()
    rng = np.random.default_rng(0)
    false = [false_discoveries(rng.uniform(size=200)).any() for _ in range(200)]
    assert np.mean(false) < 0.1  # nothing there: one alarm in twenty tests at most, and some


def test_units_that_hold_the_cue_are_found_and_noise_is_not():
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(200) % 2
    over_time = torch.randn(200, 6, 50, generator=generator)
    over_time[:, :, :3] += 3.0 * kinds[:, None, None]  # three units, at all steps
    over_time[:, 3:, 2] -= 3.0 * kinds[:, None]  # the third lets go at lag 3
    lags = torch.arange(6).expand(200, -1)
    found = measure_sparsity(over_time[:, 5], kinds, over_time, lags, draws=200)
    assert np.flatnonzero(found["held"]).tolist() == [0, 1]
    assert found["lasts"][[0, 1, 2]].tolist() == [5, 5, 2] and found["over_time"].shape == (5, 50)
    few = measure_sparsity(over_time[:30, 5], kinds[:30], over_time[:30], lags[:30], draws=50)
    assert np.isnan(few["over_time"]).all()  # 15 episodes of each cue are too few to follow


def test_steps_to_a_level_that_stays():
    x = np.array([1.0, 2, 3, 4])
    assert steps_to(x, np.array([0.95, 0.5, 0.9, 0.99]), 0.9) == 3
    assert np.isnan(steps_to(x, np.array([1.0, 1, 1, 0]), 0.9))
