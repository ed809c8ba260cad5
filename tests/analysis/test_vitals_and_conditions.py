"""Planted habits and deaths are found; conditions stand side by side with their caveats."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.analysis.recordings import Memory, clock
from tests.analysis.test_probe_position import place_world
from torchmem.analysis.compare_conditions import compare_conditions
from torchmem.analysis.probe_position import probe_position
from torchmem.analysis.trace_vitals import trace_vitals
from torchmem.result import load_result

ENDS = {  # last two rows of health, food, drink, energy
    "hunger": [(1, 0, 5, 5), (0, 0, 5, 5)], "thirst": [(1, 3, 0, 5), (0, 3, 0, 5)],
    "lava": [(9, 5, 5, 5), (0, 5, 5, 5)],
    "combat": [(2, 5, 5, 5), (0, 5, 5, 5)], "unknown": [(1, 5, 5, 5), (0, 5, 5, 5)], "alive": [(9, 5, 5, 5)] * 2,
}  # fmt: skip


def survivor() -> Memory:
    """Eats (action 1) when food is low, does anything else at random; energy follows nothing."""
    rng = np.random.default_rng(0)
    episode, step = clock(12, 80)
    n = len(step)
    levels = np.stack([np.full(n, 9), 9 - step // 9 % 9, rng.integers(3, 9, n), rng.integers(3, 9, n)], 1)
    action = np.where(levels[:, 1] <= 3, 1, rng.integers(0, 5, len(step)))
    last = np.append(episode[1:] != episode[:-1], True)
    terminal = np.zeros(len(step), bool)
    for e, (cause, rows) in enumerate(list(ENDS.items()) * 2):
        at = np.flatnonzero(last)[e]
        levels[at - 1 : at + 1] = rows
        terminal[at] = cause != "alive"
    unlocked = (step >= 30)[:, None] & np.array([True, False])
    inventory = np.concatenate([levels, np.zeros((len(step), 12), int)], 1)
    return Memory({}, {"inventory": inventory, "action": action, "is_last": last, "is_terminal": terminal,
                       "achievements": unlocked.astype(int)}, episode)  # fmt: skip


def test_habits_unlocks_and_causes_of_death(tmp_path):
    found = trace_vitals(survivor(), draws=19)
    assert found.causes == dict.fromkeys(ENDS, 2)
    food, energy = found.vitals.index("food"), found.vitals.index("energy")
    assert found.bits[food] > 5 * found.chance[food] and found.p[food] == 0.05 and found.p[energy] > 0.05
    assert found.action_given_level[food, 2, 1] == 1 and found.action_given_level[food, 8, 1] < 0.5
    assert found.around_count == {"0": 12} and found.around["0"].shape == (4, 41)
    np.testing.assert_allclose(found.around["0"][food, 20], 9 - 30 // 9)
    assert "hunger 2" in found.summary() and load_result(found.save(tmp_path / "vitals")) == found


def test_vitals_that_were_not_recorded_are_named():
    with pytest.raises(ValueError, match="no covariate 'warmth'"):
        trace_vitals(survivor(), vitals=("warmth",))


def test_conditions_side_by_side(tmp_path):
    few = {"pixels": None, "draws": 1, "resamples": 20, "folds": 3}
    trained, untrained = place_world(), place_world(seed=1)
    untrained.activations = {"encoder": untrained.activations["encoder"]}
    results = {"trained": probe_position(trained, **few), "untrained": probe_position(untrained, **few)}
    warned = dataclasses.replace(results["trained"].provenance, caveats=("leaked",))
    results["trained"] = dataclasses.replace(results["trained"], provenance=warned)
    found = compare_conditions(results)
    assert found.sites == ("encoder", "dynamics.deter", "actor") and "CAVEAT: leaked" in found.summary()
    np.testing.assert_array_equal(found.values["manhattan"][0], results["trained"].scores["manhattan"])
    assert np.isnan(found.values["manhattan"][1, 1:]).all() and found.values["modal tile"][1, 0] > 2
    lines = found.save_csv(tmp_path / "summary.csv").read_text().splitlines()
    assert len(lines) == 1 + 5 * 2 * 3 and lines[0] == "condition,site,measure,value,low,high"
    assert load_result(found.save(tmp_path / "both")) == found
    with pytest.raises(ValueError, match="two or more"):
        compare_conditions({"one": results["trained"]})
    other = dataclasses.replace(results["untrained"], decoder="ridge")
    with pytest.raises(ValueError, match="decoder differs"):
        compare_conditions({"a": results["trained"], "b": other})
