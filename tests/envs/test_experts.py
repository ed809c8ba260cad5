"""Scripted experts: always right, never longer than the specification's, and wrong where they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchmem.envs import make_env
from torchmem.envs.experts import Expert
from torchmem.envs.tensor_tables import RUNNING, shortest
from torchmem.envs.tensor_world import TensorWorld

SUCCESS, WRONG = 1, 2


def play(world: TensorWorld, mode: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """One episode of each copy: outcome, number of actions, what the expert had announced, last position."""
    data, truth = world.step(None)
    expert = Expert(world, mode)
    announced = expert.distance()
    outcome, length = torch.zeros(world.n, dtype=torch.int64), torch.zeros(world.n, dtype=torch.int64)
    where = torch.zeros(world.n, 2)
    steps = 0
    while bool((outcome == 0).any()):
        data, truth = world.step(expert.act())
        steps += 1
        now = data["is_last"] & (outcome == 0)
        outcome, length = torch.where(now, truth["outcome"], outcome), torch.where(now, steps, length)
        where = torch.where(now[:, None], truth["pos"], where)
    return outcome.numpy(), length.numpy(), announced.numpy(), where.numpy()


# mean and longest episode of who first goes to the nearest sight of the cue and then to the target: circuits spec,
# tables 4.4 and 5.3, from 150 to 200 episodes (so the longest may be missing)
MEMORY = [
    ({"size": 7, "view": 7}, 6.0, 7), ({"size": 9, "view": 7}, 7.7, 9), ({"size": 11, "view": 7}, 9.4, 11),
    ({"size": 13, "view": 7}, 11.7, 13), ({"size": 17, "view": 7}, 16.9, 21), ({"size": 7, "view": 3}, 7.6, 9),
    ({"size": 9, "view": 3}, 10.6, 13), ({"size": 11, "view": 3}, 13.7, 17), ({"size": 13, "view": 3}, 16.8, 21),
    ({"size": 17, "view": 3}, 22.9, 29), ({"size": 13, "view": 3, "random_length": True}, 12.7, 21),
    ({"size": 17, "view": 3, "random_length": True}, 16.0, 29),
]
FOUR = [({"size": 9}, 8.9, 14), ({"size": 11}, 11.4, 19), ({"size": 13}, 15.6, 22), ({"size": 17}, 21.5, 29)]
CASES = [("minigrid_memory", *case) for case in MEMORY] + [("minigrid_four_room", *case) for case in FOUR]


def two_stage(world: TensorWorld) -> tuple[np.ndarray, np.ndarray]:
    """Length of that episode from each start, and the starts' probabilities."""
    tables = world.tables
    running = tables.end == RUNNING
    sees = tables.marks[:, tables.mark_names.index("cue")]
    _, best = shortest(tables.following, sees & running, running)
    lengths = []
    for state in tables.starts:
        steps = 0
        while not sees[state]:
            state, steps = tables.following[state, best[state].argmax()], steps + 1
        lengths.append(steps + tables.distance[state])
    return np.array(lengths), tables.chances


@pytest.mark.parametrize(("name", "kwargs", "mean", "longest"), CASES)
def test_the_informed_expert_always_succeeds_and_is_optimal(name, kwargs, mean, longest):
    world = TensorWorld(name, kwargs, 2000)
    outcome, length, announced, _ = play(world, "informed")
    assert (outcome == SUCCESS).all()
    np.testing.assert_array_equal(length, announced)
    staged, chances = two_stage(world)
    spread = np.sqrt(chances @ (staged - chances @ staged) ** 2)
    assert abs(chances @ staged - mean) < 4 * spread / np.sqrt(150)
    assert longest <= staged.max() <= longest + 2
    # the search over both stages at once is at least as good, and better where seeing the cue can lie on the way
    assert length.mean() < chances @ staged + 4 * spread / np.sqrt(2000)
    assert length.max() <= staged.max()
    if kwargs == {"size": 9, "view": 7}:
        assert length.mean() < chances @ staged - 0.4


@pytest.mark.parametrize("kwargs", [{"size": 11}, {"mode": "rule"}, {"mode": "anti", "size": 17}, {"n_switches": 3},
                                    {"size": 17, "random_length": True}])
def test_the_informed_expert_solves_switching(kwargs):
    world = TensorWorld("minigrid_switching", kwargs, 2000)
    outcome, length, announced, _ = play(world, "informed")
    assert (outcome == SUCCESS).all()
    np.testing.assert_array_equal(length, announced)


@pytest.mark.parametrize(("name", "kwargs"), [
    ("minigrid_memory", {"size": 13}), ("minigrid_switching", {}), ("minigrid_four_room", {}),
    ("minigrid_four_room", {"n_candidates": 2, "size": 9, "view": 5})])
def test_other_experts_end_where_they_must(name, kwargs):
    def outcomes(mode):
        return play(TensorWorld(name, kwargs, 3000), mode)

    informed, oracle = outcomes("informed"), outcomes("oracle")
    assert (oracle[0] == SUCCESS).all()
    assert (oracle[1] <= informed[1]).all()
    assert oracle[1].mean() < informed[1].mean()
    assert (outcomes("anti")[0] == WRONG).all()
    chance = TensorWorld(name, kwargs, 1).spec.levels["chance"]
    places = ("north", "south") if name != "minigrid_four_room" else ("south_east",)
    for mode in ("random", *places):
        if kwargs.get("n_candidates") == 2 and mode != "random":
            continue  # that corner may be empty
        success = (outcomes(mode)[0] == SUCCESS).mean()
        assert abs(success - chance) < 4 * np.sqrt(chance * (1 - chance) / 3000)
    if name != "minigrid_four_room":
        size = kwargs.get("size", 13)
        assert (outcomes("north")[3][:, 1] == size // 2 - 1).all()
        assert (outcomes("south")[3][:, 1] == size // 2 + 1).all()


def test_optimal_actions_of_the_truth_are_the_oracles():
    world = TensorWorld("minigrid_memory", {"size": 11}, 200)
    _, truth = world.step(None)
    expert = Expert(world, "oracle")
    for _ in range(10):
        chosen = expert.act()["action"]
        running = truth["outcome"] == 0
        assert truth["optimal_actions"].gather(1, chosen[:, None])[running].all()
        assert torch.equal(expert.distance()[running], truth["distance_to_success"][running])
        _, truth = world.step({"action": chosen})


@pytest.mark.parametrize(("name", "kwargs"), [
    ("minigrid_memory", {"size": 13}), ("minigrid_switching", {"mode": "rule"}), ("minigrid_four_room", {"size": 9})])
def test_the_expert_plays_the_gymnasium_world_too(name, kwargs):
    expert = Expert(TensorWorld(name, kwargs, 1))
    env = make_env(name, **kwargs)
    for seed in range(15):
        env.reset(seed=seed)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(expert.act_in(env))
            over = terminated or truncated
        assert reward > 0


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="north, south"):
        Expert(TensorWorld("minigrid_memory", {}, 1), "up")
