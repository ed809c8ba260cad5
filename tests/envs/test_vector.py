"""VectorEnv: order, flags, workers that die, state that survives."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from torchmem.envs.make import make_env
from torchmem.envs.seeds import episode_seed
from torchmem.envs.vector import VectorEnv, WorldFailed

TROUBLE = "tests.envs.worlds:Trouble"


def roll(env, steps, seed=0, first=True):
    """Drive with reproducible actions; the list of (data, truth)."""
    rng = np.random.default_rng(seed)
    space = env.spec.action["action"]
    steps_ = [env.step(None)] if first else []
    for _ in range(steps):
        action = (
            rng.integers(space.classes, size=env.n) if space.discrete
            else rng.uniform(-1, 1, (env.n, *space.shape)).astype(np.float32)
        )
        steps_.append(env.step({"action": action}))
    return steps_


def assert_equal(a, b):
    for (data, truth), (data2, truth2) in zip(a, b, strict=True):
        np.testing.assert_equal(data, data2)
        np.testing.assert_equal(truth, truth2)


@pytest.mark.parametrize("workers", [0, 2])
def test_flags_rewards_and_resets_follow_the_diagram(workers):
    kwargs = {"length": 3, "image": 0, "ending": "both"}
    with VectorEnv("dummy", kwargs, 3, split="train", seed=1, workers=workers) as env:
        assert env.spec.name == "dummy"
        steps = roll(env, 8)
    first = np.stack([d["is_first"] for d, _ in steps])
    last = np.stack([d["is_last"] for d, _ in steps])
    terminal = np.stack([d["is_terminal"] for d, _ in steps])
    reward = np.stack([d["reward"] for d, _ in steps])
    np.testing.assert_array_equal(first, np.tile([[True], [False], [False], [False]], (3, 3))[:9])
    np.testing.assert_array_equal(last, np.tile([[False], [False], [False], [True]], (3, 3))[:9])
    np.testing.assert_allclose(reward[:5, 0], [0, 1 / 3, 2 / 3, 1, 0])
    assert reward.dtype == np.float32
    for i in range(3):
        for episode in range(2):
            row = 3 + 4 * episode
            assert terminal[row, i] == (episode_seed("train", 1, i, episode) % 2 == 0)
    assert not terminal[~last].any()
    assert set(steps[0][0]) == {"vector", "reward", "is_first", "is_last", "is_terminal"}
    assert set(steps[0][1]) == {"time", "place"}


@pytest.mark.parametrize("name", ["dummy", "minigrid_memory"])
def test_the_number_of_workers_changes_nothing(name):
    kwargs = {"size": 7, "max_steps": 9} if name == "minigrid_memory" else {"vary": True}
    runs = []
    for workers in (0, 1, 3):
        with VectorEnv(name, kwargs, 4, split="eval", seed=3, workers=workers) as env:
            runs.append(roll(env, 40))
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])


def test_each_env_plays_the_episodes_of_its_seeds():
    with VectorEnv("dummy", {"length": 2}, 2, split="record", seed=5) as env:
        steps = roll(env, 4)
    alone = make_env("dummy", length=2)
    for i, (episode, row) in [(0, (0, 0)), (1, (0, 0)), (0, (1, 3)), (1, (1, 3))]:
        obs, _ = alone.reset(seed=episode_seed("record", 5, i, episode))
        np.testing.assert_array_equal(steps[row][0]["image"][i], obs["image"])


@pytest.mark.parametrize(("name", "kwargs"), [
    ("dummy", {"vary": True, "ending": "both"}), ("dummy", {"continuous": True}),
    ("minigrid_memory", {"size": 9, "max_steps": 17, "random_length": True, "start": "cue_room"}),
    ("popgym", {"task": "concentration"}), ("bsuite_memory_length", {"length": 10, "bits": 3})])
@pytest.mark.parametrize("workers", [0, 2])
def test_restored_in_mid_episode_it_goes_on_as_if_nothing_happened(name, kwargs, workers):
    def make():
        return VectorEnv(name, kwargs, 3, split="train", seed=2, workers=workers)

    with make() as env:
        roll(env, 23)
        state = env.state_dict()
        assert not state["closed"].all()
        rest = roll(env, 40, seed=9, first=False)
    with make() as again:
        roll(again, 3)  # whatever it did before must not matter
        assert again.load_state_dict(state) == [True] * 3
        assert_equal(roll(again, 40, seed=9, first=False), rest)


def test_an_episode_that_cannot_be_restored_is_given_up_for_the_next(caplog):
    with VectorEnv("dummy", {"length": 5}, 2, split="train", seed=0) as env:
        roll(env, 2)
        state = env.state_dict()
        state["env1.check"] += 1
        assert env.load_state_dict(state) == [True, False]
        assert "env 1" in caplog.text
        data, _ = env.step({"action": np.zeros(2, np.int64)})
        np.testing.assert_array_equal(data["is_first"], [False, True])
        expected = make_env("dummy", length=5).reset(seed=episode_seed("train", 0, 1, 1))[0]["image"]
        np.testing.assert_array_equal(data["image"][1], expected)
        with pytest.raises(ValueError, match="seed was 0, is 1"):
            VectorEnv("dummy", {"length": 5}, 2, split="train", seed=1).load_state_dict(state)


@pytest.mark.parametrize("die", [False, True])
def test_a_world_that_fails_is_restarted_with_its_next_episode(die, tmp_path, caplog):
    kwargs = {"folder": str(tmp_path), "die": die}
    with VectorEnv(TROUBLE, kwargs, 4, split="train", seed=0, workers=2) as env:
        steps, restarted = [env.step(None)], [env.restarted]
        for _ in range(9):
            steps.append(env.step({"action": np.ones(4, np.int64)}))
            restarted.append(env.restarted)
    restarted = np.stack(restarted)
    first = np.stack([d["is_first"] for d, _ in steps])
    assert restarted.sum() >= 2  # both envs of the worker that failed; the other worker may be first or second
    row, env_index = np.argwhere(restarted)[0]
    assert row == 3
    assert first[row, env_index]
    assert not steps[row - 1][0]["is_last"][env_index]
    np.testing.assert_array_equal(restarted[3], first[3])
    assert restarted[3].sum() == 2  # the other worker's worlds were not touched
    assert steps[3][0]["reward"][env_index] == 0
    alone = make_env("dummy", length=6, image=0).reset(seed=episode_seed("train", 0, int(env_index), 1))[0]
    np.testing.assert_array_equal(steps[3][0]["vector"][env_index], alone["vector"])
    assert ("exit code 41" if die else "the world broke on purpose") in caplog.text
    assert [set(d) for d, _ in steps].count(set(steps[0][0])) == len(steps)


def test_in_this_process_only_the_failing_world_restarts(tmp_path, caplog):
    with VectorEnv(TROUBLE, {"folder": str(tmp_path)}, 3, split="train", seed=0) as env:
        roll(env, 2)
        env.step({"action": np.zeros(3, np.int64)})
        np.testing.assert_array_equal(env.restarted, [True, False, False])
    assert "the world broke on purpose" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_a_world_that_keeps_failing_ends_the_run_with_its_traceback(workers, tmp_path):
    kwargs = {"folder": str(tmp_path), "times": 100, "at": 1}
    env = VectorEnv(TROUBLE, kwargs, 2, split="train", seed=0, workers=workers)
    env.step(None)
    with pytest.raises(WorldFailed, match=r"4 times in a row(.|\n)*the world broke on purpose"):
        for _ in range(10):
            env.step({"action": np.zeros(2, np.int64)})
    with pytest.raises(WorldFailed, match="4 times in a row"):  # also where it never gets as far as a step
        VectorEnv(TROUBLE, {**kwargs, "at_reset": True}, 2, split="train", seed=0, workers=workers).step(None)


def test_on_error_raise_ends_the_run_at_once(tmp_path):
    env = VectorEnv(TROUBLE, {"folder": str(tmp_path)}, 2, split="train", seed=0, workers=2, on_error="raise")
    pids = [group.pid for group in env._groups]
    with pytest.raises(WorldFailed, match="the world broke on purpose"):
        roll(env, 5)
    assert all(gone(pid) for pid in pids)


def test_kill_minus_nine_is_survived_in_the_middle_of_a_run(caplog):
    with VectorEnv("dummy", {"length": 50}, 4, split="train", seed=0, workers=2) as env:
        roll(env, 5)
        killed = env._groups[1].pid
        os.kill(killed, signal.SIGKILL)
        data, _ = env.step({"action": np.zeros(4, np.int64)})
        np.testing.assert_array_equal(env.restarted, [False, False, True, True])
        np.testing.assert_array_equal(data["is_first"], env.restarted)
        roll(env, 5, first=False)
        assert not env.restarted.any()
        pids = [group.pid for group in env._groups]
        assert killed not in pids
    assert "exit code -9" in caplog.text
    assert all(gone(pid) for pid in [killed, *pids])


def test_what_cannot_be_made_or_is_not_asked_right_is_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'length'"):
        VectorEnv("dummy", {"lenght": 1}, 2, split="train", seed=0, workers=2)
    with pytest.raises(ValueError, match="split"):
        VectorEnv("dummy", {}, 2, split="test", seed=0)
    with VectorEnv("dummy", {}, 2, split="train", seed=0) as env:
        env.step(None)
        with pytest.raises(ValueError, match="2 open episodes"):
            env.step(None)
        with pytest.raises(ValueError, match=r"shape \(3,\), expected \(2,\)"):
            env.step({"action": np.zeros(3, np.int64)})
        with pytest.raises(ValueError, match="keys"):
            env.step({"act": np.zeros(2, np.int64)})


SCRIPT = """
    import os, signal, sys, time
    import numpy as np
    from torchmem.envs.vector import VectorEnv
    stop = []
    signal.signal(signal.SIGINT, lambda *_: stop.append(1))  # between two steps, as a sitting of training does
    if __name__ == "__main__":
        env = VectorEnv("dummy", {}, 2, split="train", seed=0, workers=2)
        env.step(None)
        sys.stdout.write(" ".join(str(g.pid) for g in env._groups) + "\\n")
        sys.stdout.flush()
        while not stop:
            env.step({"action": np.zeros(2, np.int64)})
            time.sleep(0.01)
        env.step({"action": np.zeros(2, np.int64)})  # the workers outlive ctrl-C, so that their state can be saved
        state = env.state_dict()
        sys.exit(7)
"""


@pytest.mark.parametrize("where", ["submit", "result"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_step_is_never_mistaken_for_the_next(where, workers, monkeypatch):
    go = {"action": np.zeros(2, np.int64)}
    with VectorEnv("dummy", {}, 2, split="train", seed=0, workers=workers) as env:
        env.step(None)
        saved = env.state_dict()
        data, truth = env.step(go)

        def interrupted(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(env._groups[1], where, interrupted)
            env.step(go)
        for act in (lambda: env.step(go), env.state_dict):  # the first group's answer still waits in its pipe
            with pytest.raises(RuntimeError, match="interrupted"):
                act()
        assert env.load_state_dict(saved) == [True, True]
        again, told = env.step(go)
        for before, after in ((data, again), (truth, told)):
            assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("workers", [0, 2])
def test_worlds_that_cannot_start_again_after_an_interrupt_are_told_as_such(workers, monkeypatch):
    go = {"action": np.zeros(2, np.int64)}
    with VectorEnv("dummy", {}, 2, split="train", seed=0, workers=workers) as env:
        env.step(None)
        saved = env.state_dict()

        def interrupted(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(env._groups[1], "result", interrupted)
            env.step(go)
        monkeypatch.setattr(env._groups[1], "_arguments", ("dummy", {"length": 0}, 1))
        with pytest.raises(WorldFailed, match="could not make dummy"):
            env.load_state_dict(saved)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 7), (signal.SIGKILL, -9)])
def test_no_worker_is_left_when_the_parent_goes(sent, code, tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(SCRIPT))
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True,
                              env={**os.environ, "PYTHONPATH": str(root)})
    try:
        pids = [int(p) for p in parent.stdout.readline().split()]
        assert len(pids) == 2
        time.sleep(0.2)
        if sent == signal.SIGINT:
            os.killpg(parent.pid, sent)  # ctrl-C reaches the whole group of processes
        else:
            os.kill(parent.pid, sent)
        assert parent.wait(30) == code
        assert all(gone(pid) for pid in pids)
    finally:
        parent.stdout.close()
        if parent.poll() is None:
            parent.kill()
            parent.wait()


def gone(pid: int, patience_s: float = 10.0) -> bool:
    """The process has ended and is no zombie."""
    until = time.monotonic() + patience_s
    while Path(f"/proc/{pid}").exists():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture(autouse=True)
def logged(caplog):
    caplog.set_level(logging.WARNING, logger="torchmem")
