"""No two of (split, run seed, env, episode) share a seed, so no evaluation is on a training episode."""

from __future__ import annotations

import itertools

import pytest

from torchmem.envs.seeds import SPLITS, episode_seed, narrow_seed


def test_seeds_never_meet_also_at_the_ends_of_the_ranges():
    arguments = list(itertools.product(SPLITS, (0, 1, 2**24 - 1), (0, 1, 2**12 - 1), (0, 1, 2**25 - 1)))
    seeds = {episode_seed(*a) for a in arguments}
    assert len(seeds) == len(arguments)
    assert all(0 <= s < 2**63 for s in seeds)


def test_narrow_seeds_of_different_splits_never_meet():
    ranges = {}
    for split in SPLITS:
        seeds = [narrow_seed(episode_seed(split, 7, 3, e)) for e in range(300)]
        assert len(set(seeds)) == 300
        assert all(0 <= s < 2**31 for s in seeds)
        ranges[split] = {s >> 29 for s in seeds}
    assert len(set.union(*ranges.values())) == len(SPLITS)
    assert narrow_seed(5, 0) != narrow_seed(5, 1)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(("test", 0, 0, 0), "split"), (("train", -1, 0, 0), "seed"), (("eval", 2**24, 0, 0), "seed"),
     (("eval", 0, 4096, 0), "env_index"), (("eval", 0, 0, 2**25), "episode")],
)
def test_what_does_not_fit_is_refused_by_name(arguments, word):
    with pytest.raises(ValueError, match=word):
        episode_seed(*arguments)
