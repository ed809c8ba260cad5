"""MiniGrid-Memory: equal to the package's world, with a truth that holds and counterfactuals that differ in the cue."""

from __future__ import annotations

import time

import numpy as np
import pytest
from minigrid.envs.memory import MemoryEnv

from torchmem.envs import make_env
from torchmem.envs.minigrid_geometry import Layout, joint_poses, visible

SYMBOLS = {"obs": "symbolic", "actions": 7}


@pytest.mark.parametrize("view", [3, 7])
@pytest.mark.parametrize(
    ("size", "random_length"), [(7, False), (9, False), (11, False), (13, False), (13, True), (17, True)])
def test_equal_to_stock_minigrid_by_replay(size, random_length, view):
    ours = make_env("minigrid_memory", size=size, random_length=random_length, view=view, max_steps=60, **SYMBOLS)
    stock = MemoryEnv(size=size, random_length=random_length, agent_view_size=view, max_steps=60)
    ends = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        seen, info = ours.reset(seed=seed)
        expected, _ = stock.reset(seed=seed)
        over = False
        while not over:
            shown = np.stack([seen[k] for k in ("object", "colour", "state")], -1)
            np.testing.assert_array_equal(shown, expected["image"])
            truth = info["truth"]
            np.testing.assert_array_equal(truth["pos"], stock.agent_pos)
            assert truth["heading"] == np.float32(stock.agent_dir * np.pi / 2)
            np.testing.assert_array_equal(truth["success_pos"], stock.success_pos)
            # Mostly forward, so that episodes end in all three ways.
            action = int(rng.choice(7, p=[0.15, 0.15, 0.5, 0.05, 0.05, 0.05, 0.05]))
            seen, reward, terminated, truncated, info = ours.step(action)
            expected, reward2, terminated2, truncated2, _ = stock.step(action)
            assert (reward, terminated, truncated) == (reward2, terminated2, truncated2 and not terminated2)
            over = terminated or truncated
        outcome = int(info["truth"]["outcome"])
        assert outcome == (1 if reward > 0 else 2 if terminated else 3)
        assert info["truth"]["phase"] == 3
        assert not info["truth"]["optimal_actions"].any()
        ends.add(outcome)
    assert len(ends) > 1


def test_default_limits_are_stock():
    assert make_env("minigrid_memory", size=17)._env.max_steps == 1445
    assert make_env("minigrid_memory", size=7, max_steps=9)._env.max_steps == 9


@pytest.mark.parametrize(("size", "random_length", "expected"), [  # circuits spec, table 4.4, views 7, 5, 3
    (7, False, (True, True, False)), (9, False, (True, False, False)), (11, False, (False, False, False)),
    (13, False, (False, False, False)), (17, False, (False, False, False)), (13, True, (True, True, False)),
    (17, True, (True, True, False))])
def test_which_worlds_can_be_solved_without_memory(size, random_length, expected):
    assert tuple(joint_poses(size, view, random_length) > 0 for view in (7, 5, 3)) == expected


def test_a_world_without_need_of_memory_says_so(caplog):
    joint_poses.cache_clear()
    make_env("minigrid_memory", size=7, view=7)
    assert "solved without memory" in caplog.text
    caplog.clear()
    make_env("minigrid_memory", size=7, view=3)
    assert not caplog.text


@pytest.mark.parametrize("start", ["stock", "cue_room", "at_cue"])
@pytest.mark.parametrize("view", [3, 5, 7])
def test_starts_other_than_stock_show_the_cue(start, view):
    env = make_env("minigrid_memory", size=11, view=view, start=start)
    truths = [env.reset(seed=s)[1]["truth"] for s in range(60)]
    seen = [bool(t["cue_visible"]) for t in truths]
    assert all(seen) if start != "stock" else not all(seen)
    assert all((t["steps_since_cue"] == 0) == s for t, s in zip(truths, seen, strict=True))
    if start == "cue_room":
        assert len({(*t["pos"], float(t["heading"])) for t in truths}) > 3
        assert max(t["pos"][0] for t in truths) <= 3


@pytest.mark.parametrize(
    "kwargs", [{"size": 7}, {"size": 13, "view": 7, "obs": "rgb"}, {"size": 17, "random_length": True}])
def test_optimal_actions_lead_to_success_in_the_stated_number_of_steps(kwargs):
    env = make_env("minigrid_memory", **kwargs)
    for seed in range(20):
        truth = env.reset(seed=seed)[1]["truth"]
        left = int(truth["distance_to_success"])
        over = False
        while not over:
            assert truth["distance_to_success"] == left
            action = int(np.random.default_rng(left).choice(np.flatnonzero(truth["optimal_actions"])))
            _, reward, over, _, info = env.step(action)
            truth, left = info["truth"], left - 1
        assert left == 0
        assert reward > 0
        assert truth["outcome"] == 1


def test_a_cue_swap_changes_nothing_but_the_cue():
    compared = 0
    worlds = ({"size": 9, "view": 7}, {"size": 13, "random_length": True}, {"size": 11, "start": "cue_room"})
    for kwargs in worlds:
        key, ball = make_env("minigrid_memory", **kwargs), make_env("minigrid_memory", **kwargs)
        for seed in range(15):
            pair = [env.reset(seed=seed, options={"cue": cue}) for env, cue in ((key, "key"), (ball, "ball"))]
            rng = np.random.default_rng(seed)
            over = False
            while not over:
                (seen, info), (seen2, info2) = pair
                truth, truth2 = info["truth"], info2["truth"]
                assert truth["cue_type"] == 0
                assert truth2["cue_type"] == 1
                np.testing.assert_array_equal(truth["success_pos"], truth2["failure_pos"])
                for same in ("pos", "heading", "cue_visible", "choice_visible"):
                    np.testing.assert_array_equal(truth[same], truth2[same])
                assert np.array_equal(seen["view"], seen2["view"]) == (not truth["cue_visible"])
                compared += 1
                action = int(rng.integers(3))
                steps = [env.step(action) for env in (key, ball)]
                pair = [(s[0], s[4]) for s in steps]
                over = any(steps[0][2:4])
                assert any(steps[1][2:4]) == over
    assert compared > 1000


def test_options_fix_what_they_name_and_survive_a_restore():
    env = make_env("minigrid_memory", size=13, random_length=True)
    options = {"layout": "ball", "hallway_end": 7, "agent_pos": (3, 6), "agent_dir": 2, "cue": "ball"}
    truth = env.reset(seed=4, options=options)[1]["truth"]
    assert tuple(truth["pos"]) == (3, 6)
    assert truth["heading"] == np.float32(np.pi)
    assert tuple(truth["success_pos"]) == (8, 5)  # north, beside the ball
    env.step(0)
    state = env.get_state()
    seen, *_ = env.step(2)
    env.reset(seed=5)
    env.set_state(state)
    np.testing.assert_array_equal(env.step(2)[0]["view"], seen["view"])
    assert env.reset(seed=4)[1]["truth"]["heading"] == 0  # options hold for one episode


@pytest.mark.parametrize("options", [
    {"colour": "red"}, {"cue": "box"}, {"agent_dir": 4}, {"hallway_end": 11}, {"agent_pos": (0, 6)},
    {"agent_pos": (5, 5)}])
def test_impossible_options_are_refused(options):
    env = make_env("minigrid_memory", size=13)
    with pytest.raises(ValueError, match=next(iter(options))):
        env.reset(seed=0, options=options)


def test_phases_follow_cue_then_choice():
    env = make_env("minigrid_memory", size=7, view=3)
    env.reset(seed=0, options={"agent_pos": (2, 3), "agent_dir": 2, "cue": "key", "layout": "key"})
    phases = []
    # Towards the cue, back, up the hallway to the junction, then north to the key.
    for action in (2, 0, 0, 2, 2, 2, 2, 0, 2):
        *_, info = env.step(action)
        phases.append((int(info["truth"]["phase"]), int(info["truth"]["steps_since_cue"])))
    assert phases[0] == (1, 0)
    assert phases[-1][0] == 3
    assert [p for p, _ in phases] == sorted(p for p, _ in phases)
    assert 2 in [p for p, _ in phases]
    assert info["truth"]["outcome"] == 1


def test_rgb_is_the_package_picture_enlarged():
    env = make_env("minigrid_memory", size=9, view=5, obs="rgb")
    image = env.reset(seed=1)[0]["image"]
    stock = MemoryEnv(size=9, agent_view_size=5)
    stock.reset(seed=1)
    small = stock.get_pov_render(8)
    rows = np.arange(64) * 40 // 64
    np.testing.assert_array_equal(image, small[rows][:, rows])


def test_visibility_agrees_with_what_is_drawn():
    env = make_env("minigrid_memory", size=9, view=7, obs="symbolic")
    layout = Layout(9, 6, "key", "ball")
    cue, choice = visible(layout, 7)
    options = {"cue": "key", "layout": "ball"}
    for x in (1, 3, 5, 6):
        for heading in range(4):
            seen = env.reset(seed=0, options={**options, "agent_pos": (x, 4), "agent_dir": heading})[0]["object"]
            objects = int(np.isin(seen, (5, 6)).sum())
            assert (objects > 0) == (cue[x, 4, heading] or choice[x, 4, heading])


def test_fast_enough_that_the_agent_is_the_bottleneck():
    env = make_env("minigrid_memory")
    rng = np.random.default_rng(0)
    actions = rng.integers(3, size=6000).tolist()
    start, over = time.process_time(), True
    for action in actions:
        if over:
            env.reset(seed=action)
        *_, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    assert 6000 / (time.process_time() - start) > 5000  # steps per second of CPU; about 40 000 on an idle core
