"""Switching-Memory: what counts is what the definition says, batched and alone, with exact counterfactuals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.envs.replay import package_sightings, replay
from torchmem.envs import env_spec, make_env
from torchmem.envs.configs import MinigridSwitchingConfig
from torchmem.envs.minigrid_geometry import count_joint
from torchmem.envs.minigrid_switching import _warn
from torchmem.envs.minigrid_switching_layouts import SwitchingLayout, layouts
from torchmem.envs.tensor_world import TensorWorld, family_tables

NAME = "minigrid_switching"


def family(**kwargs) -> list[SwitchingLayout]:
    return [layout for layout, _ in layouts(MinigridSwitchingConfig(**kwargs))]


@pytest.mark.parametrize("kwargs", [
    {"size": 11}, {"size": 13, "view": 7, "mode": "rule", "actions": 7}, {"size": 9, "mode": "anti", "start": "at_cue"},
    {"size": 13, "n_switches": 3, "random_length": True, "start": "cue_room", "direction": True}, {"obs": "rgb"}])
def test_batched_equals_gymnasium(kwargs):
    count = replay(NAME, {"obs": "symbolic", "max_steps": 45, **kwargs}, n=12, steps=110, greedy=0.4)
    assert count["transitions"] > 1000
    assert min(count["success"], count["wrong"]) > 0


def test_a_layout_looks_as_defined():
    grid = SwitchingLayout(13, 10, "key", "ball", "cue", ("ball",)).codes()
    assert grid[7, 5].tolist() == [6, 1, 0]  # a green ball in the north wall, at column (5 + 9) // 2
    assert grid[7, 7].tolist() == grid[6, 5].tolist() == [2, 5, 0]
    grid = SwitchingLayout(13, 10, "key", "ball", "rule", (), True).codes()
    assert grid[1, 7].tolist() == [7, 0, 0]  # a red box below the cue
    assert grid[1, 5].tolist() == [5, 1, 0]


def test_the_last_cue_counts():
    for layout in family(n_switches=2):
        assert layout.target == layout.last_cue == layout.niche[-1]
        top = layout.codes()[layout.choice_pos[0]][0]
        beside = "key" if (top == 5) == (layout.success_pos[1] < layout.middle) else "ball"
        assert beside == layout.target
        assert bool(layout.facts()["switch"]) == (layout.niche[-1] != layout.cue)


def test_rule_is_an_exclusive_or_and_anti_its_opposite():
    for layout in family(mode="rule"):
        assert (layout.target == layout.cue) != layout.switch
    assert all(layout.target != layout.cue for layout in family(mode="anti"))


@pytest.mark.parametrize(("mode", "p"), [("cue", 0.5), ("cue", 0.1), ("rule", 0.3), ("cue", 0.0), ("rule", 1.0)])
def test_how_often_it_switches(mode, p):
    n = 8000
    _, truth = TensorWorld(NAME, {"mode": mode, "p_switch": p}, n).step(None)
    margin = 4 * np.sqrt(p * (1 - p) / n)
    assert abs(float(truth["switch"].float().mean()) - p) <= margin
    env = make_env(NAME, mode=mode, p_switch=p, size=9)
    drawn = np.mean([env.reset(seed=s)[1]["truth"]["switch"] for s in range(400)])
    assert abs(drawn - p) <= 4 * np.sqrt(p * (1 - p) / 400)
    balance = float((truth["success_pos"][:, 1] < 6).float().mean())
    assert abs(balance - 0.5) < 4 * np.sqrt(0.25 / n)  # neither end is favoured


# poses that show two things at once; circuits spec 5.2
@pytest.mark.parametrize(("size", "view", "cue_too", "choice_too"), [
    (9, 7, True, True), (11, 7, True, True), (13, 7, True, True), (17, 7, False, True),
    (11, 3, False, False), (13, 3, False, False), (17, 3, False, False)])
def test_what_is_seen_together(size, view, cue_too, choice_too):
    config = MinigridSwitchingConfig(size=size, view=view)
    tables = family_tables(NAME, config)
    cue, niche = (tables.marks[:, tables.mark_names.index(name)] for name in ("cue", "niche"))
    assert bool((cue & niche).any()) == cue_too
    assert (count_joint(family(size=size, view=view), view, "niche") > 0) == choice_too


def test_the_niche_is_seen_on_the_way_east():
    world = TensorWorld(NAME, {"size": 13, "start": "at_cue"}, 64)
    _, truth = world.step(None)
    for _ in range(9):
        _, truth = world.step({"action": torch.full((64,), 2)})
    assert (truth["steps_since_niche"] >= 0).all()
    assert (truth["phase"] > 0).all()


@pytest.mark.parametrize("mode", ["cue", "rule", "anti"])
def test_sight_is_the_packages(mode):
    config = MinigridSwitchingConfig(size=11, view=5, mode=mode)
    tables = family_tables(NAME, config)
    mine = tables.layout == 0
    x, y, d = tables.poses[mine].T
    for index, (name, seen) in enumerate(package_sightings(tables.layouts[0], 5).items()):
        assert tables.mark_names[index] == name
        np.testing.assert_array_equal(tables.marks[mine, index], seen[x, y, d])


def test_counterfactual_pairs_in_one_bit():
    """Only the last cue differs: equal wherever the niche is out of sight, with the other end the right one."""
    n = 200
    pair = [TensorWorld(NAME, {"size": 13}, n, seed=4) for _ in range(2)]
    now = [w.reset({"cue": "key", "niche": kind}) for w, kind in zip(pair, ("key", "ball"), strict=True)]
    twins = [make_env(NAME, size=13) for _ in range(2)]
    alone = [e.reset(seed=4, options={"cue": "key", "niche": k}) for e, k in zip(twins, ("key", "ball"), strict=True)]
    np.testing.assert_array_equal(alone[0][1]["truth"]["pos"], alone[1][1]["truth"]["pos"])
    open_ = torch.ones(n, dtype=torch.bool)
    rng = torch.Generator().manual_seed(1)
    compared = 0
    for _ in range(60):
        (seen, truth), (seen2, truth2) = now
        same = (seen["view"] == seen2["view"]).all(-1)
        assert torch.equal(same[open_], ~truth["niche_visible"][open_])
        assert torch.equal(truth["success_pos"][open_], truth2["failure_pos"][open_])
        compared += int(open_.sum())
        open_ &= ~seen["is_last"]
        actions = {"action": torch.randint(3, (n,), generator=rng)}
        now = [world.step(actions) for world in pair]
    assert compared > 5000


def test_options_and_what_they_refuse():
    env = make_env(NAME, n_switches=2)
    truth = env.reset(seed=0, options={"cue": "key", "niche": ("ball", "key")})[1]["truth"]
    assert (truth["first_cue"], truth["last_cue"], bool(truth["switch"])) == (0, 0, False)
    truth = env.reset(seed=0, options={"cue": "key", "switch": True})[1]["truth"]
    assert (truth["first_cue"], truth["last_cue"], bool(truth["switch"])) == (0, 1, True)
    state = env.get_state()
    env.reset(seed=1)
    env.set_state(state)
    rule, anti = make_env(NAME, mode="rule"), make_env(NAME, mode="anti")
    for world, options, word in ((env, {"niche": "key"}, "niche must be 2"), (rule, {"niche": "key"}, "mean switch"),
                                 (anti, {"switch": True}, "mode anti"), (env, {"box": 1}, "no reset option"),
                                 (env, {"niche": ("key", "key"), "switch": True}, "one of them")):
        with pytest.raises(ValueError, match=word):
            world.reset(seed=0, options=options)
    for kwargs in ({"p_switch": 1.5}, {"n_switches": 6, "size": 13}, {"n_switches": 2, "size": 9}, {"mode": "both"},
                   {"mode": "rule", "n_switches": 2}):
        with pytest.raises(ValueError, match="must be"):
            env_spec(NAME, **kwargs)


def test_it_warns_where_memory_is_not_needed(caplog):
    _warn.cache_clear()
    env_spec(NAME, view=7)
    assert "niche and a choice object at once" in caplog.text
    caplog.clear()
    env_spec(NAME, view=3, size=11)
    env_spec(NAME, view=3, mode="rule")
    assert not caplog.text
