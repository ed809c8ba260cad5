"""The batched MiniGrid-Memory: equal to the package, transition by transition, whatever is played."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from minigrid.core.grid import Grid
from minigrid.envs.memory import MemoryEnv

from tests.envs.replay import MOSTLY_FORWARD, package_sightings, replay
from torchmem.envs import env_spec
from torchmem.envs.minigrid_geometry import best_actions
from torchmem.envs.minigrid_layouts import Layout
from torchmem.envs.tensor_world import TensorWorld, family_tables

NAME = "minigrid_memory"
SIZES = [(7, False), (9, False), (11, False), (13, False), (13, True), (17, False), (17, True)]


@pytest.mark.parametrize("view", [3, 5, 7])
@pytest.mark.parametrize(("size", "random_length"), SIZES)
def test_equal_to_the_gymnasium_world(size, random_length, view):
    kwargs = {"size": size, "random_length": random_length, "view": view, "obs": "symbolic", "max_steps": 40}
    count = replay(NAME, kwargs, n=24, steps=100, seed=size + view, greedy=0.4)
    assert count["transitions"] > 2000
    assert min(count["success"], count["wrong"], count["timeout"]) > 0


@pytest.mark.parametrize("kwargs", [
    {"size": 9, "obs": "symbolic_onehot", "actions": 7, "direction": True, "start": "cue_room"},
    {"size": 11, "obs": "rgb", "view": 5, "start": "at_cue"}, {"size": 7, "max_steps": None, "view": 7}])
def test_equal_under_every_option(kwargs):
    assert replay(NAME, kwargs, n=12, steps=100)["transitions"] > 800


@pytest.mark.slow
@pytest.mark.parametrize(("size", "random_length"), SIZES)
def test_equal_for_a_million_transitions(size, random_length):
    total = 0
    for view in (3, 5, 7):
        kwargs = {"size": size, "random_length": random_length, "view": view, "obs": "symbolic", "actions": 7}
        total += replay(NAME, kwargs, n=128, steps=400, seed=view, greedy=0.2)["transitions"]
    assert total > 1e6 / len(SIZES)


@pytest.mark.parametrize("view", [3, 7])
@pytest.mark.parametrize(("size", "random_length"), SIZES)
def test_equal_to_stock_minigrid_for_200_episodes(size, random_length, view):
    """Without our own gymnasium world in between: the package's class, its seeds, its observations."""
    n = 200
    stock = [MemoryEnv(size=size, random_length=random_length, agent_view_size=view, max_steps=30) for _ in range(n)]
    images = [env.reset(seed=seed)[0]["image"] for seed, env in enumerate(stock)]
    world = TensorWorld(NAME, {"size": size, "random_length": random_length, "view": view, "obs": "symbolic",
                               "actions": 7, "max_steps": 30}, n)
    ends = [int(env.success_pos[0]) - 1 for env in stock]
    data, truth = world.reset({
        "hallway_end": ends, "cue": [env.grid.get(1, size // 2 - 1).type for env in stock],
        "layout": [env.grid.get(end + 1, size // 2 - 2).type for env, end in zip(stock, ends, strict=True)],
        "agent_pos": [tuple(int(i) for i in env.agent_pos) for env in stock]})
    rng = np.random.default_rng(size)
    playing = np.ones(n, bool)
    while playing.any():
        shown = torch.stack([data[k] for k in ("object", "colour", "state")], -1).numpy()
        for i in np.flatnonzero(playing):
            np.testing.assert_array_equal(shown[i], images[i])
            assert tuple(truth["pos"][i].tolist()) == tuple(stock[i].agent_pos)
        playing &= ~data["is_last"].numpy()
        actions = rng.choice(7, n, p=MOSTLY_FORWARD)
        data, truth = world.step({"action": torch.from_numpy(actions)})
        for i in np.flatnonzero(playing):
            obs, reward, terminated, truncated, _ = stock[i].step(int(actions[i]))
            images[i] = obs["image"]
            assert data["reward"][i] == np.float32(reward)
            assert data["is_terminal"][i] == terminated
            assert data["is_last"][i] == (terminated or truncated)


@pytest.mark.parametrize("size", [7, 11, 17])
def test_grids_are_the_packages(size):
    stock = MemoryEnv(size=size, random_length=True)
    for seed in range(20):
        stock.reset(seed=seed)
        end = int(stock.success_pos[0]) - 1
        spots = ((1, size // 2 - 1), (end + 1, size // 2 - 2))
        layout = Layout(size, end, *(stock.grid.get(*spot).type for spot in spots))
        np.testing.assert_array_equal(layout.codes(), stock.grid.encode())
        assert Grid.decode(layout.codes())[0] == stock.grid
        assert (layout.success_pos, layout.failure_pos) == (stock.success_pos, stock.failure_pos)


@pytest.mark.parametrize("view", [3, 5, 7])
def test_tables_agree_with_two_other_ways_to_compute_them(view):
    config = TensorWorld(NAME, {"size": 9, "random_length": True, "view": view}, 1).config
    tables = family_tables(NAME, config)
    poses = tuple(tables.poses.T)
    for k, layout in enumerate(tables.layouts):
        mine = tables.layout == k
        x, y, d = (p[mine] for p in poses)
        distance, best = best_actions(layout)
        np.testing.assert_array_equal(tables.distance[mine], distance[x, y, d])
        np.testing.assert_array_equal(tables.best[mine], best[x, y, d])
        for index, (name, seen) in enumerate(package_sightings(layout, view).items()):
            assert tables.mark_names[index] == name
            np.testing.assert_array_equal(tables.marks[mine, index], seen[x, y, d])
        # every pose that the search reached is a state, and no other
        assert mine.sum() == (distance >= 0).sum() + 4 * len(layout.failure_cells)


def test_starts_follow_the_packages_distribution():
    world = TensorWorld(NAME, {"size": 9, "random_length": True}, 60_000, seed=3)
    world.step(None)
    counts: dict[tuple, int] = {}
    for start in world._start.tolist():
        layout = world.tables.layouts[world.tables.layout[start]]
        key = (layout.hallway_end, layout.cue, layout.top, int(world.tables.poses[start][0]))
        counts[key] = counts.get(key, 0) + 1
    expected = {(end, cue, top, x): 60_000 / (3 * 4 * end) for end in (4, 5, 6)
                for cue in ("key", "ball") for top in ("key", "ball") for x in range(1, end + 1)}
    assert set(counts) == set(expected)
    deviation = sum((counts[k] - expected[k]) ** 2 / expected[k] for k in expected)
    assert deviation < 59 + 4 * np.sqrt(2 * 59)  # chi squared with 59 degrees of freedom


def test_spec_is_the_gymnasium_worlds():
    world = TensorWorld("torchmem/MemoryS11Random-v0", {"view": 5}, 4)
    assert world.spec == env_spec("torchmem/MemoryS11Random-v0", view=5)
    data, truth = world.step(None)
    assert set(data) == {*world.spec.obs, "reward", "is_first", "is_last", "is_terminal"}
    assert set(truth) == set(world.spec.truth)
    assert data["view"].shape == (4, *world.spec.obs["view"].shape)


def test_copies_are_reproducible_and_do_not_depend_on_each_other():
    def play(n, seed=1, split="train"):
        world = TensorWorld(NAME, {"size": 7, "max_steps": 9}, n, seed=seed, split=split)
        world.step(None)
        rng = torch.Generator().manual_seed(0)
        return torch.stack([
            world.step({"action": torch.randint(3, (8,), generator=rng).repeat(n // 8)})[0]["view"] for _ in range(60)])

    whole = play(32)
    assert torch.equal(whole, play(32))
    assert torch.equal(whole[:, :8], play(8))
    assert not torch.equal(whole, play(32, seed=2))
    assert not torch.equal(whole, play(32, split="eval"))
    assert not torch.equal(whole[:, :8], whole[:, 8:16])


def test_state_continues_exactly_and_belongs_to_its_world():
    first, second = (TensorWorld(NAME, {"size": 7, "max_steps": 12}, 16, seed=5) for _ in range(2))
    first.step(None)
    rng = torch.Generator().manual_seed(0)
    plan = [{"action": torch.randint(3, (16,), generator=rng)} for _ in range(60)]
    for actions in plan[:25]:
        first.step(actions)
    assert second.load_state_dict(first.state_dict()) == [True] * 16
    for actions in plan[25:]:
        for a, b in zip(first.step(actions), second.step(actions), strict=True):
            assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ValueError, match="seed was 5, is 6"):
        TensorWorld(NAME, {"size": 7, "max_steps": 12}, 16, seed=6).load_state_dict(first.state_dict())


def test_counterfactual_pairs_differ_only_where_the_cue_is_in_view():
    n = 256
    key, ball = (TensorWorld(NAME, {"size": 13, "random_length": True}, n, seed=2) for _ in range(2))
    free = TensorWorld(NAME, {"size": 13, "random_length": True}, n, seed=2).step(None)[1]
    pair = [world.reset({"cue": cue}) for world, cue in ((key, "key"), (ball, "ball"))]
    assert torch.equal(free["pos"], pair[0][1]["pos"])  # the option changed nothing else of the draw
    compared, open_ = 0, torch.ones(n, dtype=torch.bool)
    rng = torch.Generator().manual_seed(0)
    for _ in range(80):
        (seen, truth), (seen2, truth2) = pair
        same = (seen["view"] == seen2["view"]).all(-1)
        assert torch.equal(same[open_], ~truth["cue_visible"][open_])
        assert torch.equal(truth["success_pos"][open_], truth2["failure_pos"][open_])
        compared += int(open_.sum())
        open_ &= ~seen["is_last"]
        actions = {"action": torch.randint(3, (n,), generator=rng)}
        pair = [key.step(actions), ball.step(actions)]
    assert compared > 10_000


def test_what_is_wrong_is_refused():
    world = TensorWorld(NAME, {"size": 13}, 4)
    for options, word in (({"colour": "red"}, "colour"), ({"cue": "box"}, "cue"), ({"agent_pos": (0, 6)}, "agent_pos"),
                          ({"agent_pos": (5, 5)}, "agent_pos"), ({"hallway_end": 11}, "hallway_end"),
                          ({"hallway_end": 5}, "never draws"), ({"agent_dir": 4}, "agent_dir"),
                          ({"cue": ["key"]}, "1 values for 4 copies")):
        with pytest.raises(ValueError, match=word):
            world.reset(options)
    world.step(None)
    for actions, word in ((None, "4 open episodes"), ({"act": torch.zeros(4)}, "action keys"),
                          ({"action": torch.zeros(3, dtype=torch.int64)}, "shape"),
                          ({"action": torch.full((4,), 3)}, r"0\.\.2, got 3\.\.3")):
        with pytest.raises(ValueError, match=word):
            world.step(actions)
    with pytest.raises(ValueError, match="no batched form"):
        TensorWorld("dummy", {}, 4)


def test_thousands_of_copies_are_fast():
    world = TensorWorld(NAME, {"size": 13}, 4096)
    world.step(None)
    actions = torch.randint(3, (20, 4096))
    start = time.process_time()
    for row in actions:
        world.step({"action": row})
    assert 20 * 4096 / (time.process_time() - start) > 300_000  # steps per second of CPU


def test_a_step_compiles_into_one_graph_that_stays_valid():
    eager, compiled = (TensorWorld(NAME, {"size": 7, "max_steps": 20}, 16) for _ in range(2))
    eager.step(None), compiled.step(None)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        step = torch.compile(compiled.step, fullgraph=True, backend="aot_eager")
        for row in torch.randint(3, (40, 16)):
            for a, b in zip(eager.step({"action": row}), step({"action": row}), strict=True):
                assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.gpu
def test_equal_on_a_gpu():
    here, there = (TensorWorld(NAME, {"size": 13}, 512, device=d) for d in ("cpu", "cuda"))
    here.step(None), there.step(None)
    for row in torch.randint(3, (200, 512)):
        for a, b in zip(here.step({"action": row}), there.step({"action": row.cuda()}), strict=True):
            assert all(torch.equal(a[k], b[k].cpu()) for k in a)
