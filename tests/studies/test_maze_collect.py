"""`torchmem collect`: what the walker does, that a set goes on where it stopped, and that it is what was played."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from torchmem import cli
from torchmem.envs.maze_walker import MazeWalker, cell_of, distances
from torchmem.envs.seeds import episode_seed
from torchmem.studies.maze import collect as collecting
from torchmem.studies.maze.collect import CollectPlan, collect
from torchmem.studies.maze.sight import in_view
from torchmem.studies.maze.trajectories import MazeSetError, Trajectory, open_set

# all actions drawn, so that they show which stream they come from
PLAN = CollectPlan(size=7, trajectories=3, held_out=1, steps=10, worlds=2, seed=4, noise=1.0)
LAYOUT = np.array([[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [0, 0, 1, 0, 1], [1, 0, 1, 1, 1]], np.uint8)


def test_ways_go_around_walls():
    found = distances(LAYOUT, (0, 0))
    assert found[2, 2] == 4 and found[4, 4] == 8 and found[4, 2] == 6
    assert found[1, 1] == -1 and found[4, 0] == -1  # a wall, and a cell that is shut off
    assert cell_of(np.array([1.9, 1.1]), LAYOUT) == (0, 1)  # leaning over the wall above (0, 1)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_walker_reaches_one_goal_after_another(noise):
    """In a world of its own: a turn is 0.3 rad, a step 0.25 cells, walls stop it."""
    walker, pos, heading = MazeWalker(np.random.default_rng(1), noise), np.array([0.5, 0.5]), 0.3
    goals, where, actions = [], set(), []
    for _ in range(600):
        action = walker.act(pos, heading, LAYOUT)
        heading += 0.3 * ((action in (2, 4)) - (action in (3, 5)))
        ahead = pos + 0.25 * np.array([np.cos(heading), np.sin(heading)]) * (action in (1, 4, 5))
        if (ahead >= 0).all() and (ahead < 5).all() and LAYOUT[int(ahead[1]), int(ahead[0])]:
            pos = ahead
        where.add(cell_of(pos, LAYOUT))
        actions.append(action)
        if walker._goal not in goals[-1:]:
            goals.append(walker._goal)
    assert len(goals) > 15 and len(where) == int(LAYOUT.sum()) - 1  # all but the cell that is shut off
    assert (4, 0) not in goals
    assert (0 in actions) == (noise > 0)  # only chance stands still


def test_a_set_goes_on_where_it_stopped_and_is_what_was_played(tmp_path, monkeypatch):
    whole = collect(tmp_path / "whole", PLAN)

    def full_disk(file, arrays, write=collecting.write):
        if file.name == "00001.npz":
            raise OSError(28, "No space left on device")
        return write(file, arrays)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(collecting, "write", full_disk)
        collect(tmp_path / "cut", PLAN)
    assert not list((tmp_path / "cut").rglob("00001*"))
    collect(tmp_path / "cut", PLAN)
    files = sorted(whole.rglob("*.npz"))
    assert [f.relative_to(whole).as_posix() for f in files] == ["eval/00002.npz", "train/00000.npz", "train/00001.npz"]
    for file in files:
        with np.load(file) as a, np.load(tmp_path / "cut" / file.relative_to(whole)) as b:
            assert all(np.array_equal(a[key], b[key]) for key in a)
    with pytest.raises(MazeSetError, match=r"holds another set .*noise was 1\.0, is 0\.5"):
        collect(tmp_path / "cut", dataclasses.replace(PLAN, noise=0.5))
    with pytest.raises(MazeSetError, match="not made by `torchmem collect`"):
        collect(tmp_path, PLAN)

    from torchmem.envs.make import make_env

    env = make_env("memory_maze", size=7)
    train, held = open_set(whole)
    walk = held[0]  # the second episode of world 0
    walked = [tuple(w.action) for w in (*train, walk)]
    assert len(set(walked)) == 3, "two walks drew the same actions"
    obs, info = env.reset(seed=episode_seed("record", 4, 0, 1))
    np.testing.assert_array_equal(obs["image"], walk.image[0])
    for t in range(PLAN.steps or 0):
        obs, _, _, _, info = env.step(int(walk.action[t]))
        np.testing.assert_array_equal(obs["image"], walk.image[t + 1])
        truth = info["truth"]
        np.testing.assert_allclose(truth["targets_vec"], walk.vec[t + 1], rtol=1e-6)
        np.testing.assert_allclose(np.arctan2(*walk.dir[t + 1][::-1]), truth["heading"], atol=1e-6)
    env.close()


def test_what_is_called_in_view_is_in_the_picture():
    """Against the renderer: a ball is in the picture where taking it away changes inner pixels."""
    from torchmem.envs.maze_task import Simulator
    from torchmem.envs.vector import VectorEnv

    walker, agree, seen = MazeWalker(np.random.default_rng(0)), [], []
    none = np.zeros(0)
    with VectorEnv("memory_maze", {"size": 7}, 1, split="record", seed=5) as env:
        _, truth = env.step(None)
        sim = env._groups[0]._host.worlds[0]._sim  # type: ignore[union-attr]
        assert isinstance(sim, Simulator)
        for step in range(160):
            place, heading, layout = truth["pos"][0], float(truth["heading"][0]), truth["maze_layout"][0]
            if step % 4 == 0:
                ahead = np.array([[np.cos(heading), np.sin(heading)]])
                walk = Trajectory(none, none, none, layout.astype(bool), place[None], ahead, truth["targets_vec"][:1])
                with_all = sim.picture().astype(int)
                for ball, told in zip(sim.targets, in_view(walk)[0], strict=True):
                    material = sim.physics.bind(ball._material)
                    alpha, material.rgba[-1] = float(material.rgba[-1]), 0
                    changed = (np.abs(sim.picture().astype(int) - with_all).max(-1) > 8)[4:-4, 4:-4].sum()
                    material.rgba[-1] = alpha
                    agree.append(bool(told) == (changed >= 6))
                    seen.append(changed >= 6)
            _, truth = env.step({"action": np.array([walker.act(place, heading, layout)])})
    assert np.mean(agree) > 0.95 and 0.05 < np.mean(seen) < 0.6


def test_wrong_plans_are_told(tmp_path, capsys):
    for words, said in (
        (["--held-out", "60"], "held_out must lie between 0 and trajectories=60; is 60"),
        (["--noise", "1.5"], "noise must be a share between 0 and 1; got 1.5"),
        (["--size", "7", "--steps", "501"], "an episode of this maze has 500 steps: 501 are too many"),
        (["--size", "8"], "size"),
    ):
        assert cli.main(["collect", str(tmp_path / "x"), *words])
        assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.npz"))
