"""Four-Room-Memory: geometry, ends and chance as defined, batched and alone, with exact counterfactuals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.envs.replay import package_sightings, replay
from torchmem.envs import env_spec, make_env
from torchmem.envs.configs import MinigridFourRoomConfig
from torchmem.envs.minigrid_four_room import _warn
from torchmem.envs.minigrid_four_room_layouts import FourRoomLayout, arrangements, layouts
from torchmem.envs.minigrid_geometry import count_joint
from torchmem.envs.tensor_world import TensorWorld, family_tables

NAME = "minigrid_four_room"
PICTURE = """
#########
#K..#..B#
#.......#
#...#...#
##.###.##
#...#...#
#.......#
#K..#..X#
#########
"""


@pytest.mark.parametrize("kwargs", [
    {"size": 9}, {"size": 13, "n_candidates": 2, "door_layouts": 4, "direction": True, "actions": 7},
    {"size": 11, "view": 3, "start": "cue_room"}, {"size": 9, "view": 5, "obs": "rgb", "door_layouts": 2}])
def test_batched_equals_gymnasium(kwargs):
    count = replay(NAME, {"obs": "symbolic", "max_steps": 40, **kwargs}, n=12, steps=110, greedy=0.5)
    assert count["transitions"] > 1000
    assert count["success"] > 0
    assert count["wrong"] + count["timeout"] > 0


def test_the_grid_looks_as_defined():
    layout = FourRoomLayout(9, "key", ("ball", "key", "box"), arrangements(9, 1)[0])
    letters = {1: ".", 2: "#", 5: "K", 6: "B", 7: "X"}
    rows = ["".join(letters[int(c)] for c in row) for row in layout.codes()[..., 0].T]
    assert rows == PICTURE.split()
    assert layout.target_pos == (1, 7)
    assert set(layout.success_cells) == {(1, 6), (2, 7)}
    assert set(layout.failure_cells) == {(6, 1), (7, 2), (6, 7), (7, 6)}


@pytest.mark.parametrize("size", [9, 11, 13, 17])
def test_doors_are_in_the_middle_or_elsewhere_but_never_the_same(size):
    m = size // 2
    near, far = m // 2, m + (size - 1 - m) // 2
    found = arrangements(size, 40)
    assert found[0] == (near, far, near, far)
    assert found[:7] == arrangements(size, 7)
    assert len(set(found)) == 40
    for north, south, west, east in found:
        assert 0 < north < m < south < size - 1
        assert 0 < west < m < east < size - 1


@pytest.mark.parametrize("n_candidates", [2, 3])
def test_every_start_cue_and_corner_is_equally_likely(n_candidates):
    n = 30_000
    world = TensorWorld(NAME, {"n_candidates": n_candidates, "size": 9}, n)
    _, truth = world.step(None)
    targets = {corner: float((truth["target_pos"] == torch.tensor(corner)).all(-1).float().mean())
               for corner in ((7.0, 1.0), (1.0, 7.0), (7.0, 7.0))}
    assert all(abs(share - 1 / 3) < 4 * np.sqrt(2 / 9 / n) for share in targets.values())
    kinds = truth["cue_type"].bincount() / n
    assert len(kinds) == n_candidates
    assert (kinds - 1 / n_candidates).abs().max() < 4 * np.sqrt(0.25 / n)
    assert ((truth["candidates"] >= 0).sum(1) == n_candidates).all()
    assert {tuple(pos) for pos in truth["pos"].tolist()} == {(x, y) for x in (1, 2, 3) for y in (1, 2, 3)} - {(1, 1)}
    assert len(truth["heading"].unique()) == 4


@pytest.mark.parametrize(("size", "view", "joint"), [
    (9, 7, True), (9, 5, False), (11, 7, False), (13, 7, False), (17, 7, False), (13, 3, False)])
def test_only_the_smallest_can_be_solved_without_memory(size, view, joint):  # circuits spec 5.3
    family = [layout for layout, _ in layouts(MinigridFourRoomConfig(size=size, view=view))]
    assert (count_joint(family, view, "cue") > 0) == joint


@pytest.mark.parametrize("view", [3, 7])
def test_sight_is_the_packages(view):
    tables = family_tables(NAME, MinigridFourRoomConfig(size=11, view=view, door_layouts=2, n_candidates=2))
    for k in (0, len(tables.layouts) - 1):
        mine = tables.layout == k
        x, y, d = tables.poses[mine].T
        for index, (name, seen) in enumerate(package_sightings(tables.layouts[k], view).items()):
            assert tables.mark_names[index] == name
            np.testing.assert_array_equal(tables.marks[mine, index], seen[x, y, d])


def test_counterfactual_pairs_differ_only_where_the_cue_is_in_view():
    n = 200
    pair = [TensorWorld(NAME, {}, n, seed=4) for _ in range(2)]
    now = [world.reset({"cue": kind}) for world, kind in zip(pair, ("key", "box"), strict=True)]
    open_ = torch.ones(n, dtype=torch.bool)
    rng = torch.Generator().manual_seed(1)
    compared = 0
    for _ in range(60):
        (seen, truth), (seen2, truth2) = now
        same = (seen["view"] == seen2["view"]).all(-1)
        assert torch.equal(same[open_], ~truth["cue_visible"][open_])
        assert not (truth["target_pos"] == truth2["target_pos"]).all(-1)[open_].any()
        assert torch.equal(truth["candidates"][open_], truth2["candidates"][open_])
        compared += int(open_.sum())
        open_ &= ~seen["is_last"]
        actions = {"action": torch.randint(3, (n,), generator=rng)}
        now = [world.step(actions) for world in pair]
    assert compared > 5000


def test_options_and_what_they_refuse():
    env = make_env(NAME, size=9)
    options = {"cue": "box", "layout": ("box", "key", "ball"), "doors": (1, 6, 3, 5), "agent_pos": (2, 2),
               "agent_dir": 1}
    truth = env.reset(seed=0, options=options)[1]["truth"]
    assert truth["target_pos"].tolist() == [7, 1]
    assert truth["candidates"].tolist() == [2, 0, 1]
    state = env.get_state()
    env.reset(seed=1)
    env.set_state(state)
    for wrong, word in (({"cue": "door"}, "cue"), ({"layout": ("key", "key", "ball")}, "layout"),
                        ({"doors": (1, 6, 3, 4)}, "doors"), ({"hallway_end": 3}, "no reset option"),
                        ({"agent_pos": (4, 4)}, "agent_pos"), ({"agent_pos": (6, 1), "layout": ("box", "key", "ball")},
                                                               "agent_pos")):
        with pytest.raises(ValueError, match=word):
            env.reset(seed=0, options=wrong)
    with pytest.raises(ValueError, match="never draws"):
        TensorWorld(NAME, {"size": 9}, 2).reset({"doors": (1, 6, 3, 5)})
    for kwargs in ({"size": 7}, {"n_candidates": 4}, {"door_layouts": 65}, {"start": "at_cue"}):
        with pytest.raises(ValueError, match="must be"):
            env_spec(NAME, **kwargs)


def test_it_warns_where_memory_is_not_needed(caplog):
    _warn.cache_clear()
    assert env_spec(NAME, size=9).levels["chance"] == 1 / 3
    assert "without memory" in caplog.text
    caplog.clear()
    assert env_spec(NAME, n_candidates=2).levels["chance"] == 1 / 2
    assert not caplog.text
