"""World: gymnasium's contract, the truth kept apart, an episode restored from its seed and actions."""

from __future__ import annotations

import typing

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tests.envs.worlds import PROCGEN, TwoHands, TwoHandsConfig
from torchmem.envs import make_env
from torchmem.envs.popgym_config import Task as PopGymTask
from torchmem.envs.protocol import RestoreError, check_keys, gym_space
from torchmem.types import Space

CASES = [
    ("dummy", {}), ("dummy", {"continuous": True, "vary": True, "ending": "both", "action_repeat": 2}),
    ("minigrid_memory", {"size": 7}), ("minigrid_memory", {"obs": "symbolic", "direction": True, "actions": 7}),
    ("minigrid_memory", {"obs": "rgb", "random_length": True, "start": "cue_room"}),
    ("minigrid_switching", {"n_switches": 2}), ("minigrid_switching", {"mode": "rule", "obs": "symbolic"}),
    ("minigrid_four_room", {"size": 9, "door_layouts": 3, "n_candidates": 2}),
    *[("popgym", {"task": task}) for task in typing.get_args(PopGymTask)],
    ("bsuite_memory_length", {"length": 6, "bits": 2}), ("bsuite_discounting_chain", {}), ("crafter", {}),
    *PROCGEN, ("lunar_lander", {}), ("lunar_lander", {"continuous": True, "wind": True, "reward_fuel": 0.0}),
]


@pytest.mark.parametrize(("name", "kwargs"), CASES)
@pytest.mark.filterwarnings("ignore:.*:UserWarning:gymnasium")  # opinions on shapes of boxes, not errors
def test_gymnasium_finds_nothing_wrong(name, kwargs):
    check_env(make_env(name, **kwargs), skip_render_check=True)


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_observations_and_truth_are_what_the_spec_says_at_every_step(name, kwargs):
    env = make_env(name, **kwargs)
    env.action_space.seed(1)
    obs, info = env.reset(seed=3)
    shapes = {k: (v.shape, v.dtype) for k, v in info["truth"].items()}
    for _ in range(30):
        check_keys(env.env_spec, obs, info["truth"])
        assert {k: (v.shape, v.dtype) for k, v in info["truth"].items()} == shapes
        obs, _, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            obs, info = env.reset()


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_a_restored_episode_goes_on_as_if_nothing_happened(name, kwargs):
    env, other = make_env(name, **kwargs), make_env(name, **kwargs)
    env.action_space.seed(2)
    env.reset(seed=11)
    for _ in range(4):
        env.step(env.action_space.sample())
    other.reset(seed=99)
    other.set_state(env.get_state())
    for _ in range(4):
        action = env.action_space.sample()
        (obs, *rest, info), (obs2, *rest2, info2) = env.step(action), other.step(action)
        assert rest == rest2
        for a, b in ((obs, obs2), (info["truth"], info2["truth"])):
            np.testing.assert_equal(a, b)
        if rest[1] or rest[2]:
            break


def test_two_action_keys_travel_as_a_dict_and_survive_a_reused_buffer():
    env, other = TwoHands(TwoHandsConfig()), TwoHands(TwoHandsConfig())
    env.reset(seed=0)
    right = np.array([0.5, -0.5], np.float32)
    for left in (1, 2):
        env.step({"left": left, "right": right})
        right += 0.25  # what a collector does that writes each action into one array
    other.set_state(env.get_state())
    np.testing.assert_allclose(other.sum, [4.25, 2.25])


def test_a_state_that_replays_to_another_world_is_refused():
    env = make_env("dummy")
    env.reset(seed=0)
    env.step(3)
    state = env.get_state()
    with pytest.raises(RestoreError, match="differs"):
        env.set_state({**state, "actions.action": np.array([4])})
    with pytest.raises(RestoreError, match="ended at step 20"):
        env.set_state({**state, "actions.action": np.zeros(30, np.int64)})
    with pytest.raises(RuntimeError, match="reset"):  # and no half-restored episode is left open
        env.step(0)


def test_stepping_a_finished_episode_is_refused():
    env = make_env("dummy", length=1)
    env.reset(seed=0)
    assert env.step(0)[3]
    with pytest.raises(RuntimeError, match="reset"):
        env.step(0)


@pytest.mark.parametrize("space", [
    Space((), "bool"), Space((3,), "bool"), Space((), "int32", classes=4), Space((2, 3), "uint8", classes=5),
    Space((8, 8, 3), "uint8"), Space((2,), "float32", low=-1, high=1), Space((), "float64")])
def test_each_kind_of_key_has_a_gymnasium_space_of_its_shape_and_type(space):
    sample = np.asarray(gym_space(space).sample())
    assert sample.shape == space.shape
    assert sample.dtype == np.dtype(space.dtype)
    if space.classes:
        assert sample.max() < space.classes
