from __future__ import annotations

import numpy as np

from tests.analysis.recordings import clock
from torchmem.analysis.nulls import deal_folds, exchange_rows, p_value, resample_groups, shift_rows, spans


def test_exchange_moves_whole_episodes_and_keeps_the_step():
    episode, step = clock(12, 9)
    source = exchange_rows(episode, np.random.default_rng(0))
    for rows in spans(episode):
        assert len(set(episode[source[rows]])) == 1, "labels of one donor"
        donor = step[episode == episode[source[rows[0]]]]
        np.testing.assert_array_equal(step[source[rows]], np.minimum(step[rows], donor.max()))
    donors = [episode[source[rows[0]]] for rows in spans(episode)]
    assert sorted(donors) == list(range(12)) and donors != list(range(12))


def test_exchange_of_groups_keeps_together_what_belongs_together():
    episode, _ = clock(12, 5)
    layout = episode // 3
    source = exchange_rows(episode, np.random.default_rng(0), layout)
    for group in range(4):
        assert len(set(layout[source[layout == group]])) == 1
    np.testing.assert_array_equal(episode[source] % 3, episode % 3)


def test_shift_turns_each_episode_by_its_own_number_of_steps():
    episode, step = clock(30, 9)
    source = shift_rows(episode, np.random.default_rng(0))
    np.testing.assert_array_equal(episode[source], episode)
    offsets = []
    for rows in spans(episode):
        turned = (step[source[rows]] - step[rows]) % len(rows)
        assert len(set(turned)) == 1 and turned[0] != 0
        offsets.append(turned[0])
    assert len(set(offsets)) > 4
    np.testing.assert_array_equal(shift_rows(np.arange(3), np.random.default_rng(0)), np.arange(3))


def test_spans_follow_the_recording_not_the_ids():
    assert [list(rows) for rows in spans(np.array([7, 7, 2, 2, 2]))] == [[0, 1], [2, 3, 4]]


def test_folds_hold_whole_groups_and_about_equal_rows():
    group = np.repeat(np.arange(23), np.random.default_rng(0).integers(1, 30, 23))
    fold = deal_folds(group, 5, np.random.default_rng(1))
    assert all(len(set(fold[group == g])) == 1 for g in range(23))
    counts = np.bincount(fold)
    assert len(counts) == 5 and counts.max() - counts.min() < 10
    assert (fold != deal_folds(group, 5, np.random.default_rng(2))).any()


def test_p_values_are_uniform_under_the_null_and_never_zero():
    rng = np.random.default_rng(0)
    p = p_value(rng.normal(size=4000), rng.normal(size=(19, 4000)))
    assert p.min() == 0.05 and abs((p <= 0.05).mean() - 0.05) < 0.012
    assert np.isnan(p_value(np.array([np.nan]), np.zeros((3, 1)))).all()


def test_resamples_draw_as_many_groups_as_there_are():
    weights = resample_groups(7, 50, np.random.default_rng(0))
    assert weights.shape == (50, 7) and (weights.sum(1) == 7).all() and weights.max() > 1
