"""POPGym worlds: equal to the package step by step, and a truth that is enough to play them perfectly."""

from __future__ import annotations

import typing

import gymnasium
import numpy as np
import popgym.envs
import pytest

from torchmem.envs import env_spec, make_env
from torchmem.envs.popgym import CHANCE, spaces
from torchmem.envs.popgym_config import Difficulty, Task, class_name
from torchmem.envs.vector import VectorEnv

TASKS, LEVELS = typing.get_args(Task), typing.get_args(Difficulty)


def fits(ours, theirs) -> bool:
    if isinstance(theirs, gymnasium.spaces.Discrete):
        return ours.shape == () and ours.classes == theirs.n
    if isinstance(theirs, gymnasium.spaces.MultiDiscrete):
        return ours.shape == theirs.shape and set(theirs.nvec) == {ours.classes}
    return ours.shape == theirs.shape and not ours.discrete


@pytest.mark.parametrize("task", TASKS)
def test_equal_to_the_package_by_replay(task):
    """Spaces at every difficulty, and an episode of random actions at the two ends."""
    for level, difficulty in enumerate(LEVELS):
        stock = getattr(popgym.envs, class_name(task, difficulty))()
        keys, action = spaces(task, level)
        shown = stock.observation_space
        if isinstance(shown, gymnasium.spaces.MultiDiscrete) and len(keys) == 2:
            parts = [gymnasium.spaces.Discrete(n) for n in shown.nvec]
        else:
            parts = list(shown.spaces) if isinstance(shown, gymnasium.spaces.Tuple) else [shown]
        assert all(fits(ours, theirs) for ours, theirs in zip(keys.values(), parts, strict=True)), difficulty
        assert fits(action, stock.action_space)
        if difficulty == "medium":
            continue
        world = make_env("popgym", task=task, difficulty=difficulty)
        world.action_space.seed(0)
        (seen, _), (raw, _) = world.reset(seed=8), stock.reset(seed=8)
        for _ in range(60):
            flat = np.concatenate([np.ravel(value) for value in seen.values()])
            np.testing.assert_array_equal(flat, np.ravel(raw))
            action = world.action_space.sample()
            seen, *ours, _ = world.step(action)
            raw, *theirs, _ = stock.step(2 * action if "pendulum" in task else action)
            assert ours == theirs
            if ours[1] or ours[2]:
                break


def play(world, seed, policy) -> float:
    """Return of an episode of policy(truth)."""
    truth, total, over = world.reset(seed=seed)[1]["truth"], 0.0, False
    while not over:
        _, reward, terminated, truncated, info = world.step(policy(truth))
        total, truth, over = total + reward, info["truth"], terminated or truncated
    return total


def find_pair(truth):
    """A twin of the open card, else the first card that is still face down."""
    free = ~truth["matched"]
    card = int(truth["open"])
    if card < 0:
        return int(np.flatnonzero(free)[0])
    free[card] = False
    return int(np.flatnonzero(free & (truth["value"] == truth["value"][card]))[0])


ORACLES = {
    **dict.fromkeys(
        ("repeat_previous", "repeat_first", "autoencode", "count_recall"), lambda truth: max(int(truth["target"]), 0)),
    "concentration": find_pair,
    "battleship": lambda truth: np.argwhere(truth["ships"] & ~truth["guessed"])[0],
    "mine_sweeper": lambda truth: np.argwhere(~truth["mines"] & ~truth["viewed"])[0],
}


@pytest.mark.parametrize("difficulty", LEVELS)
@pytest.mark.parametrize("task", ORACLES)
def test_whoever_reads_the_truth_earns_everything(task, difficulty):
    world = make_env("popgym", task=task, difficulty=difficulty)
    assert world.env_spec.levels["oracle"] == 1.0
    for seed in (0, 1):
        assert play(world, seed, ORACLES[task]) == pytest.approx(1.0)


def test_the_oracle_of_higher_lower_loses_ties_only():
    world = make_env("popgym", task="higher_lower")
    returns = [play(world, seed, lambda truth: max(int(truth["target"]), 0)) for seed in range(200)]
    ties = 51 - 52 * np.array(returns)
    np.testing.assert_allclose(ties, np.round(ties), atol=1e-9)  # every step that is no tie paid 1/52
    error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - world.env_spec.levels["oracle"]) < 4 * error


def test_the_oracle_of_the_bandit_pulls_the_best_arm():
    world = make_env("popgym", task="multiarmed_bandit")
    returns = [play(world, seed, lambda truth: int(truth["target"])) for seed in range(150)]
    error = np.std(returns) / np.sqrt(len(returns))
    assert abs(np.mean(returns) - world.env_spec.levels["oracle"]) < 4 * error


@pytest.mark.parametrize(("difficulty", "k"), [("easy", 4), ("medium", 32), ("hard", 64)])
def test_repeat_previous_tells_what_was_shown(difficulty, k):
    world = make_env("popgym", difficulty=difficulty)
    seen, info = world.reset(seed=3)
    shown = [int(seen["card"])]
    for step in range(90):
        recent = info["truth"]["recent"]
        np.testing.assert_array_equal(recent, ([-1] * k + shown)[-k:])
        assert info["truth"]["target"] == (shown[step - k + 1] if step >= k - 1 else -1)
        seen, _, terminated, _, info = world.step(0)
        shown.append(int(seen["card"]))
        if terminated:
            break


def test_concentration_counts_as_seen_what_was_face_up():
    world = make_env("popgym", task="concentration", difficulty="hard")
    truth = world.reset(seed=0)[1]["truth"]
    assert not truth["seen"].any()
    seen, *_, info = world.step(7)
    assert seen["table"][7] == truth["value"][7]
    assert info["truth"]["open"] == 7
    world.step(9)
    info = world.step(7)[-1]
    assert np.flatnonzero(info["truth"]["seen"]).tolist() == [7, 9]


def test_velocity_only_starts_with_positions_as_the_package_does():
    world = make_env("popgym", task="velocity_only_cart_pole")
    seen, info = world.reset(seed=1)
    np.testing.assert_array_equal(seen["velocity"], info["truth"]["state"][[0, 2]])
    seen, *_, info = world.step(1)
    np.testing.assert_array_equal(seen["velocity"], info["truth"]["state"][[1, 3]])


@pytest.mark.parametrize("task", [task for task in CHANCE if not task.endswith(("pole", "pendulum"))])
def test_the_level_of_chance_is_that_of_random_actions(task):
    world = make_env("popgym", task=task)
    world.action_space.seed(5)
    returns = [play(world, 1000 + seed, lambda _: world.action_space.sample()) for seed in range(100)]
    error = np.std(returns) / np.sqrt(len(returns)) + 0.005  # the printed digits
    assert abs(np.mean(returns) - world.env_spec.levels["chance"]) < 4 * error


def test_names_and_ids():
    env = gymnasium.make("torchmem/POPGym-CountRecallHard-v0")
    assert env.unwrapped.config.task == "count_recall"
    assert env.action_space.n == 17
    assert env_spec("torchmem/POPGym-AutoencodeMedium-v0").kwargs == {"task": "autoencode", "difficulty": "medium"}
    with pytest.raises(ValueError, match=r"task must be one of repeat_previous, .*; got 'labyrinth'"):
        env_spec("popgym", task="labyrinth")
    with pytest.raises(ValueError, match="no reset options"):
        make_env("popgym").reset(options={"suit": 1})


@pytest.mark.parametrize("task", ["repeat_previous", "battleship"])
def test_workers_play_the_same_episodes_and_splits_play_others(task):
    def roll(split, workers):
        with VectorEnv("popgym", {"task": task}, 3, split=split, seed=1, workers=workers) as worlds:
            rng, space = np.random.default_rng(0), worlds.spec.action["action"]
            rows = [worlds.step(None)]
            for _ in range(130):
                rows.append(worlds.step({"action": rng.integers(space.classes, size=(3, *space.shape))}))
        return {key: np.stack([(data | truth)[key] for data, truth in rows]) for key in rows[0][0] | rows[0][1]}

    here, there = roll("train", 0), roll("train", 2)
    np.testing.assert_equal(here, there)
    key = {"repeat_previous": "card", "battleship": "ships"}[task]
    assert not np.array_equal(here[key], roll("eval", 0)[key])
