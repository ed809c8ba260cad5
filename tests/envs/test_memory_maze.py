"""Memory Maze: equal to the package's own environments, reproducible from a seed, restorable, honest about GL."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from torchmem.envs import env_spec, make_env
from torchmem.envs.protocol import RestoreError
from torchmem.envs.seeds import episode_seed, narrow_seed
from torchmem.envs.vector import VectorEnv

SMALL = {"size": 7, "time_limit": 10.0}


@pytest.fixture(scope="module")
def small():
    env = make_env("memory_maze", **SMALL)
    yield env
    env.close()


def play(env, seed, actions):
    """Observations, rewards and truths of one episode, and how it ended."""
    steps = [(*env.reset(seed=seed), 0.0)]
    end = (False, False)
    for action in actions:
        obs, reward, *end, info = env.step(int(action))
        steps.append((obs, info, reward))
    return steps, tuple(end)


def same(a, b):
    for (obs, info, reward), (obs2, info2, reward2) in zip(a, b, strict=True):
        np.testing.assert_equal(obs, obs2)
        np.testing.assert_equal(info, info2)
        assert reward == reward2


@pytest.mark.slow
@pytest.mark.parametrize("size", [9, 15])
def test_equal_to_the_package_frame_by_frame(size):
    """Same numbers of the generators in both -> same maze, pictures, rewards and ExtraObs."""
    import labmaze

    ours = make_env("memory_maze", size=size)
    from memory_maze import tasks  # after ours: its import needs the stand-in for gym

    stock = getattr(tasks, f"memory_maze_{size}x{size}")(global_observables=True, seed=0)
    seed = 12
    maze = stock.task._maze_arena.maze
    labmaze.RandomMaze.__init__(
        maze, height=maze.height, width=maze.width, max_rooms=maze.max_rooms, room_min_size=maze.room_min_size,
        room_max_size=maze.room_max_size, max_variations=maze.max_variations, spawns_per_room=1, objects_per_room=1,
        simplify=True, random_seed=narrow_seed(seed, 0))
    stock.random_state.seed(narrow_seed(seed, 1))
    expected = stock.reset()
    obs, info = ours.reset(seed=seed)
    rng = np.random.default_rng(0)
    for step in range(60):
        truth, extra = info["truth"], expected.observation
        np.testing.assert_array_equal(obs["image"], extra["image"])
        np.testing.assert_array_equal(truth["maze_layout"], extra["maze_layout"])
        for key in ("pos", "targets_pos", "targets_vec", "target_pos", "target_vec", "target_color"):
            np.testing.assert_allclose(truth[key], extra["agent_pos" if key == "pos" else key], atol=1e-5)
        x, y = extra["agent_dir"]
        assert np.isclose(np.exp(1j * truth["heading"]), (x + 1j * y) / abs(x + 1j * y), atol=1e-5)
        assert truth["maze_layout"][int(truth["pos"][1]), int(truth["pos"][0])] == 1
        action = int(rng.choice(6, p=[0, 0.6, 0.1, 0.1, 0.1, 0.1])) if step < 58 else 1
        expected = stock.step(action)
        obs, reward, terminated, truncated, info = ours.step(action)
        assert reward == expected.reward
        assert not terminated
        assert not truncated
    ours.close()
    stock.close()


def test_an_episode_follows_from_its_seed_whatever_ran_before(small):
    actions = np.random.default_rng(1).integers(6, size=12)
    first, _ = play(small, 3, actions)
    other, _ = play(small, 4, actions)
    again, _ = play(small, 3, actions)
    same(first, again)
    assert not np.array_equal(first[0][1]["truth"]["maze_layout"], other[0][1]["truth"]["maze_layout"])
    fresh = make_env("memory_maze", **SMALL)
    same(play(fresh, 3, actions)[0], first)
    fresh.close()


def test_reaching_the_target_pays_one_and_changes_the_target(small):
    """Put the ball that pays where the agent stands: the next step earns 1, another ball pays, the frame changes."""
    obs, info = small.reset(seed=0)
    truth = info["truth"]
    sim = small._sim
    goal = sim.targets[int(truth["target"])]
    place = np.array(sim.physics.bind(sim.walker.root_body).xpos)
    sim.physics.bind(goal.geom).pos = [*place[:2], 0.0] - np.array(sim.physics.bind(goal.mjcf_model.parent_model.find(
        "attachment_frame", goal.mjcf_model.model)).pos)
    obs2, reward, _, _, info2 = small.step(0)
    assert reward == 1.0
    assert info2["truth"]["target"] != truth["target"]
    assert not np.array_equal(obs2["image"][0], obs["image"][0])
    np.testing.assert_array_equal(obs2["image"][0, 0], (info2["truth"]["target_color"] * 255 * 0.7).astype(np.uint8))


def test_it_ends_by_the_time_limit_only(small):
    _, end = play(small, 5, np.zeros(40, int))  # 10 s at 4 Hz
    assert end == (False, True)
    with pytest.raises(RuntimeError, match="reset"):
        small.step(0)


def go_on(env, actions):
    """The same as `play` gives, without the reset."""
    steps = [env.step(int(action)) for action in actions]
    return [(obs, info, reward) for obs, reward, _, _, info in steps]


def hop(env):
    """Put the agent onto the ball that pays, so that the next step earns 1 and draws another ball."""
    truth = env._truth()
    env._sim.physics.data.qpos[:2] += (truth["target_pos"] - truth["pos"]) * 2.0  # metres per cell


def journey(env, actions, since=0):
    """Steps from number `since` on, with hops before some of them: (obs, info, reward) of each."""
    rows = []
    for step, action in enumerate(actions[since:], since):
        if step in (5, 12):
            hop(env)
        rows += go_on(env, [action])
    return rows


@pytest.mark.parametrize("kwargs", [{}, {"randomize_colors": True, "n_targets": 3, "size": 9}])
def test_restored_it_goes_on_exactly(kwargs, monkeypatch):
    """At several moments, after another maze, in this world and in a fresh one: frames, truth and rewards bit-equal."""
    kwargs = {**SMALL, **kwargs}
    env, actions = make_env("memory_maze", **kwargs), np.random.default_rng(2).choice([1, 1, 4, 5], 20)
    env.reset(seed=8)
    states, whole = {0: env.get_state()}, []
    for step in range(20):
        whole += journey(env, actions[: step + 1], step)
        states[step + 1] = env.get_state()
    assert [step for step, row in enumerate(whole) if row[2]] == [5, 12]
    play(env, 9, actions[:2])
    fresh = make_env("memory_maze", **kwargs)
    for world, moments in ((env, (0, 7)), (fresh, (13, 1, 6))):
        for moment in moments:
            monkeypatch.setattr(world._sim, "picture", lambda: pytest.fail("restoring rendered"))
            world.set_state(states[moment])
            monkeypatch.undo()
            np.testing.assert_equal(world.get_state(), states[moment])
            same(journey(world, actions, moment), whole[moment:])
        world.close()


def test_in_the_same_maze_it_is_restored_without_building_it_again(small, monkeypatch):
    actions = np.random.default_rng(2).integers(6, size=12)
    play(small, 8, actions[:5])
    state = small.get_state()
    first = go_on(small, actions[5:])
    monkeypatch.setattr(small._sim, "reset", lambda seed: pytest.fail("the maze was built again"))
    small.set_state(state)
    same(go_on(small, actions[5:]), first)
    small.set_state(state)  # and at its very end: the time limit counts what was before
    _, _, terminated, truncated, _ = [small.step(0) for _ in range(35)][-1]
    assert (terminated, truncated) == (False, True)


def test_a_counterfactual_pair_differs_by_the_ball_that_pays(small):
    obs, info = small.reset(seed=8)
    other = 1 - int(info["truth"]["target"])
    small.step(1)
    state = small.get_state()
    kept = small.step(0)
    small.set_state(state)
    small.set_target(other)
    changed = small.step(0)
    obs2, info2 = small.reset(seed=8, options={"target": other})
    for (a, truth), (b, truth2) in ((((obs), info["truth"]), (obs2, info2["truth"])),
                                    ((kept[0], kept[4]["truth"]), (changed[0], changed[4]["truth"]))):
        assert truth2["target"] == other
        np.testing.assert_array_equal(a["image"][2:-2, 2:-2], b["image"][2:-2, 2:-2])
        assert not np.array_equal(a["image"][0], b["image"][0])
        for key in ("pos", "heading", "maze_layout", "targets_pos"):
            np.testing.assert_array_equal(truth[key], truth2[key])
    state = small.get_state()
    assert state["options"] == {"target": other}
    small.set_state(state)
    with pytest.raises(ValueError, match=r"target must be in 0\.\.1, got 2"):
        small.set_target(2)
    with pytest.raises(ValueError, match="reset option target"):
        small.reset(seed=8, options={"goal": 1})


def test_a_state_of_another_world_is_refused(small):
    small.reset(seed=8)
    state = small.get_state()
    with pytest.raises(RestoreError, match="saved by another"):
        small.set_state({**state, "physics": state["physics"][1:]})
    moved = state["physics"].copy()
    moved[1:4] += 0.1
    with pytest.raises(RestoreError, match="differs"):
        small.set_state({**state, "physics": moved})
    with pytest.raises(RuntimeError, match="reset"):
        small.step(0)


def test_a_state_of_actions_is_still_read(small):
    """Snapshots of runs that began before the physics was saved."""
    actions = np.random.default_rng(2).integers(6, size=8)
    play(small, 8, actions[:5])
    check = small.get_state()["check"]
    rest = go_on(small, actions[5:])
    small.set_state({"seed": 8, "options": None, "check": check, "actions.action": actions[:5]})
    same(go_on(small, actions[5:]), rest)


def test_in_workers_it_plays_its_seeds(small):
    with VectorEnv("memory_maze", SMALL, 1, split="eval", seed=1, workers=1) as env:
        data, truth = env.step(None)
        state = env.state_dict()
        after, _ = env.step({"action": np.array([1])})
        assert env.load_state_dict(state) == [True]
        again, _ = env.step({"action": np.array([1])})
    np.testing.assert_equal(after, again)
    obs, info = small.reset(seed=episode_seed("eval", 1, 0, 0))
    np.testing.assert_array_equal(data["image"][0], obs["image"])
    np.testing.assert_array_equal(truth["maze_layout"][0], info["truth"]["maze_layout"])


@pytest.mark.parametrize(("size", "targets", "steps"), [(9, 3, 1000), (11, 4, 2000), (13, 5, 3000), (15, 6, 4000)])
def test_published_tasks(size, targets, steps):
    from torchmem.envs.maze_task import TASKS

    assert TASKS[size][0] == targets
    assert TASKS[size][1] * 4 == steps
    spec = env_spec("memory_maze", size=size)
    assert spec.levels["human"] < spec.levels["oracle"]
    assert spec.obs["image"].shape == (64, 64, 3)
    assert "oracle" not in env_spec("memory_maze", size=size, time_limit=100.0).levels


def test_too_many_targets_for_the_maze_end_with_a_message(monkeypatch):
    from torchmem.envs import maze_task

    monkeypatch.setattr(maze_task, "MAX_LAYOUTS", 3)
    with pytest.raises(ValueError, match="holds 6 targets"):
        make_env("memory_maze", size=7, n_targets=6).reset(seed=0)


def test_without_gl_it_says_what_to_install():
    """EGL finds no driver: a message, not a crash."""
    code = "from torchmem.envs import make_env; make_env('memory_maze')"
    env = {**os.environ, "MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere.json"}
    env.pop("PYOPENGL_PLATFORM", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "GLError" in last
    assert "libegl1 libgl1" in last
    assert "torchmem doctor" in last


def test_each_rank_renders_on_its_own_device(monkeypatch):
    from torchmem.envs.gl import prepare_gl

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    prepare_gl()
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "5"
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "0")
    prepare_gl()
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "0"  # what the user has set stays
