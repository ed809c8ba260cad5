"""The dummy world: a reward known at every step."""

from __future__ import annotations

import numpy as np
import pytest

from torchmem.envs import make_env


def play(env, seed):
    env.reset(seed=seed)
    rewards, over = [], (False, False)
    while not any(over):
        _, reward, *over, _ = env.step(env.action_space.sample())
        rewards.append(reward)
    return rewards, tuple(over)


def test_reward_is_time_over_length_and_levels_are_its_sum():
    env = make_env("dummy", length=8)
    rewards, over = play(env, 0)
    np.testing.assert_allclose(rewards, np.arange(1, 9) / 8)
    assert sum(rewards) == env.env_spec.levels["oracle"] == 4.5
    assert over == (False, True)


@pytest.mark.parametrize(("ending", "expected"), [
    ("terminated", {(True, False)}), ("truncated", {(False, True)}), ("both", {(True, False), (False, True)})])
def test_endings_and_lengths_are_as_configured(ending, expected):
    env = make_env("dummy", ending=ending, vary=True, length=10)
    games = [play(env, seed) for seed in range(80)]
    assert {over for _, over in games} == expected
    assert {len(rewards) for rewards, _ in games} == set(range(5, 11))


def test_repeated_actions_are_world_steps_whose_rewards_add_up():
    rewards, _ = play(make_env("dummy", length=5, action_repeat=2), 0)
    np.testing.assert_allclose(rewards, [(1 + 2) / 5, (3 + 4) / 5, 5 / 5])


def test_actions_move_the_bright_column():
    env = make_env("dummy")
    start = env.reset(seed=0)[0]["image"]
    assert not np.array_equal(env.step(1)[0]["image"], start)
    env.reset(seed=0)
    stay = env.step(0)[0]
    env.reset(seed=0)
    move = env.step(4)[0]
    assert not np.array_equal(stay["image"], move["image"])
    assert stay["vector"][0] == move["vector"][0] == np.float32(0.05)
