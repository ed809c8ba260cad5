"""Procgen through EnvPool: levels kept apart, ends told apart, the reset row where it belongs, one by one or pooled."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest

from torchmem.envs import make_env
from torchmem.envs.make import make_config
from torchmem.envs.procgen_config import (
    EXPLORATION_LEVELS,
    GAMES,
    HELD_OUT,
    TRAINABLE,
    ProcgenConfig,
    levels,
    modes,
    time_limit,
)
from torchmem.envs.procgen_engine import draws, frames
from torchmem.envs.procgen_pool import ProcgenPool
from torchmem.envs.seeds import SPLITS, episode_seed
from torchmem.envs.vector import VectorEnv
from torchmem.errors import TorchmemError

pytest.importorskip("envpool", reason="EnvPool exists for Linux on x86-64 only")
SHORT = {"game": "leaper", "mode": "easy"}  # 500 steps at most, and random play dies or arrives within a few hundred


def random_play(worlds, steps, seed=0, first=True):
    """The (data, truth) of every step under reproducible actions; step 0 of a fresh one resets."""
    rng = np.random.default_rng(seed)
    rows = [worlds.step(None)] if first else []
    for _ in range(steps):
        rows.append(worlds.step({"action": rng.integers(0, 15, worlds.n)}))
    return rows


def assert_equal(rows, others):
    for (data, truth), (data2, truth2) in zip(rows, others, strict=True):
        np.testing.assert_equal(data, data2)
        np.testing.assert_equal(truth, truth2)


# Levels ---------------------------------------------------------------------------------------------------------------
def test_modes_and_time_limits_are_those_that_envpool_registers():
    from envpool.procgen.registration import distribution, procgen_game_config

    offered = {game: {distribution[m].lower() for m in numbers} for game, _, numbers in procgen_game_config}
    assert {game: set(modes(game)) for game in GAMES} == offered
    limits = {game: limit for game, limit, _ in procgen_game_config}
    others = {(game, mode) for game in GAMES for mode in modes(game) if time_limit(game, mode) != limits[game]}
    assert others == {("jumper", "memory")}
    assert set(EXPLORATION_LEVELS) == {game for game in GAMES if "exploration" in modes(game)}


@pytest.mark.parametrize("config", [
    ProcgenConfig(), ProcgenConfig(num_levels=200, start_level=500), ProcgenConfig(start_level=2**30 - 1),
    ProcgenConfig(num_levels=2**30)])
def test_training_evaluation_and_recording_never_share_a_level(config):
    ranges = sorted((levels(config, split) for split in SPLITS), key=lambda r: r.start)
    assert all(len(r) for r in ranges)
    assert all(a.stop <= b.start for a, b in itertools.pairwise(ranges))
    assert ranges[-1].stop <= 2**31 - 1
    train = levels(config, "train")
    assert train.start == config.start_level
    assert train.stop <= TRAINABLE.stop <= min(r.start for r in HELD_OUT.values())
    assert len(train) == config.num_levels or not config.num_levels


def test_held_out_levels_can_be_given_up_by_name():
    config = ProcgenConfig(num_levels=20, start_level=3, held_out=False)
    assert {levels(config, split) for split in SPLITS} == {range(3, 23)}
    config = ProcgenConfig(game="maze", mode="exploration", held_out=False)
    assert levels(config, "eval") == range(EXPLORATION_LEVELS["maze"], EXPLORATION_LEVELS["maze"] + 1)


@pytest.mark.parametrize(("kwargs", "message"), [
    ({"game": "pong"}, "game must be one of bigfish, .*starpilot; got 'pong'"),
    ({"mode": "memory"}, r"mode must be one that coinrun has \(easy, hard, exploration\), or game one that has it "
     r"\(caveflyer, dodgeball, heist, jumper, maze, miner\); got 'memory'"),
    ({"mode": "exploration"}, "held_out must be false in mode exploration"),
    ({"mode": "exploration", "held_out": False, "start_level": 5}, "start_level=5"),
    ({"mode": "exploration", "held_out": False, "num_levels": 5}, "num_levels must be 0"),
    ({"num_levels": 2**30, "start_level": 1}, "num_levels must be in 0..1073741823"),
    ({"num_levels": -1}, "num_levels must be in 0..1073741824"),
    ({"start_level": -1}, "start_level must be in"), ({"start_level": 2**30}, "start_level must be in"),
    ({"backend": "batched"}, "backend must be one of single, pool"), ({"threads": -1}, "threads must be at least 0")])
def test_what_does_not_exist_is_refused_before_envpool_ends_the_process(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_config("procgen", **kwargs)


def test_the_seed_alone_says_which_level_is_played():
    world, other = (make_env("procgen", num_levels=30, start_level=100) for _ in range(2))
    seen = {split: [] for split in SPLITS}
    for split in SPLITS:
        for episode in range(40):
            seed = episode_seed(split, 1, 0, episode)
            obs, info = world.reset(seed=seed)
            seen[split].append(int(info["truth"]["level_seed"]))
            if episode % 20 == 0:
                again, info2 = other.reset(seed=seed)
                np.testing.assert_array_equal(obs["image"], again["image"])
                assert info2["truth"] == info["truth"]
    assert set(seen["train"]) <= set(range(100, 130))
    assert len(set(seen["train"])) > 15
    assert all(level in HELD_OUT["eval"] for level in seen["eval"])  # a range knows this without listing its members
    assert all(level in HELD_OUT["record"] for level in seen["record"])
    assert len(set(seen["eval"] + seen["record"])) > 70
    with pytest.raises(ValueError, match="episode seed must be in"):
        world.reset(seed=3 << 61)


def test_a_level_can_be_asked_for_and_is_what_its_number_says():
    world = make_env("procgen")
    first = [world.reset(seed=s, options={"level": 7}) for s in (0, 1)]
    assert [int(info["truth"]["level_seed"]) for _, info in first] == [7, 7]
    np.testing.assert_array_equal(first[0][0]["image"], first[1][0]["image"])
    other, info = world.reset(seed=0, options={"level": 2**31 - 2})
    assert int(info["truth"]["level_seed"]) == 2**31 - 2
    assert not np.array_equal(other["image"], first[0][0]["image"])
    for options, message in (({"level": -1}, "level must be in 0..2147483646"), ({"size": 3}, "option level only")):
        with pytest.raises(ValueError, match=message):
            world.reset(seed=0, options=options)
    with pytest.raises(ValueError, match=r"action must be in 0\.\.14, got 15"):
        world.reset(seed=0), world.step(15)
    only = make_env("procgen", game="maze", mode="exploration", held_out=False)
    assert int(only.reset(seed=3)[1]["truth"]["level_seed"]) == EXPLORATION_LEVELS["maze"]
    with pytest.raises(ValueError, match=r"option level must be in 158988835\.\.158988835"):
        only.reset(options={"level": 1})


def test_backgrounds_can_be_switched_off():
    on, off = (make_env("procgen", use_backgrounds=b).reset(options={"level": 3})[0]["image"] for b in (True, False))
    assert (off == 0).all(-1).mean() > (on == 0).all(-1).mean() + 0.2


# One by one -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("game", "mode"), [(g, m) for g in GAMES for m in modes(g)])
def test_every_game_in_every_mode_resets_and_steps(game, mode):
    world = make_env("procgen", game=game, mode=mode, held_out=mode != "exploration")
    obs, info = world.reset(seed=0)
    level = int(info["truth"]["level_seed"])
    assert obs["image"].std() > 5
    obs, reward, _, _, info = world.step(7)
    assert np.isfinite(reward)
    assert int(info["truth"]["level_seed"]) == level
    assert int(info["truth"]["time"]) == 1
    assert "chance" in world.env_spec.levels


def play_out(world, action):
    """The last (obs, reward, terminated, truncated, info) of an episode of `action()`."""
    while True:
        now = world.step(action())
        if now[2] or now[3]:
            return now


def test_the_time_limit_truncates_and_a_goal_terminates():
    world = make_env("procgen", game="maze", mode="easy")
    world.reset(options={"level": 0})
    _, reward, terminated, truncated, info = play_out(world, lambda: 4)  # stands still
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert int(info["truth"]["time"]) == 500
    assert int(info["truth"]["level_complete"]) == 0
    rng = np.random.default_rng(0)
    for level in range(50):
        world.reset(options={"level": level})
        _, reward, terminated, truncated, info = play_out(world, lambda: int(rng.integers(15)))
        if reward:
            break
    assert (reward, terminated, truncated) == (10.0, True, False)
    assert int(info["truth"]["level_complete"]) == 1
    assert int(info["truth"]["level_seed"]) == level  # the level that ended, not the one that follows
    assert int(info["truth"]["time"]) < 500


def test_jumper_with_memory_has_twice_the_time_that_envpool_says():
    """Told 1,000, EnvPool would call a goal or a death at step 1,500 truncated."""
    config = {"game": "jumper", "mode": "memory", "num_levels": 1, "start_level": 3}
    with ProcgenPool("procgen", config, 1) as pool:
        pool.step(None)
        steps = 0
        while not (data := pool.step({"action": np.array([4])})[0])["is_last"][0]:
            steps += 1
    assert steps + 1 == 2000
    assert not data["is_terminal"][0]


def test_at_the_limit_a_goal_counts_as_terminated():
    info = {"prev_level_complete": np.array([0, 1, 0]), "level_seed": np.zeros(3), "elapsed_step": np.zeros(3)}
    now = frames(np.zeros(3), np.zeros(3), np.array([False, False, True]), np.array([True, True, False]), info)
    np.testing.assert_array_equal(now.terminated, [False, True, True])
    np.testing.assert_array_equal(now.truncated, [True, False, False])


def test_vector_env_goes_on_exactly_where_it_was_saved():
    def make():
        return VectorEnv("procgen", SHORT, 2, split="eval", seed=2)

    with make() as env:
        random_play(env, 30)
        state = env.state_dict()
        rest = random_play(env, 20, seed=9, first=False)
    with make() as again:
        assert again.load_state_dict(state) == [True, True]
        assert_equal(random_play(again, 20, seed=9, first=False), rest)


def test_workers_change_nothing():
    runs = []
    for workers in (0, 1):
        with VectorEnv("procgen", SHORT, 2, split="record", seed=4, workers=workers) as env:
            runs.append(random_play(env, 10))
    assert_equal(*runs)


# The pool -------------------------------------------------------------------------------------------------------------
def test_the_pool_opens_a_level_on_the_row_after_an_end_and_plays_what_the_single_world_plays():
    """Every episode of the pool is replayed in a single World: frames, rewards, flags and truth, row by row."""
    config = {**SHORT, "num_levels": 50, "start_level": 10}
    pool = ProcgenPool("procgen", config, 3, split="train", seed=1)
    rng = np.random.default_rng(3)
    world = make_env("procgen", **config)
    actions, ends = np.zeros(3, int), 0
    data, truth = pool.step(None)
    worlds = [make_env("procgen", **config) for _ in range(3)]
    assert data["is_first"].all()
    for _ in range(900):
        for i, world in enumerate(worlds):
            if data["is_first"][i]:
                obs, info = world.reset(seed=0, options={"level": int(truth["level_seed"][i])})
                reward, terminated, truncated = 0.0, False, False
            else:
                obs, reward, terminated, truncated, info = world.step(int(actions[i]))
            np.testing.assert_array_equal(data["image"][i], obs["image"])
            assert {k: v[i] for k, v in truth.items()} == info["truth"]
            assert (data["reward"][i], data["is_terminal"][i]) == (np.float32(reward), terminated)
            assert data["is_last"][i] == (terminated or truncated)
        ends += int(data["is_last"].sum())
        closed = data["is_last"]
        actions = rng.integers(0, 15, 3)
        data, truth = pool.step({"action": actions})
        np.testing.assert_array_equal(data["is_first"], closed)
        assert not data["reward"][closed].any()
    assert ends >= 6
    assert {k: v.dtype for k, v in data.items()} == {
        "image": np.uint8, "reward": np.float32, **dict.fromkeys(("is_first", "is_last", "is_terminal"), np.bool_)}
    pool.close()


def test_the_pool_draws_levels_of_its_split_by_its_seed():
    def opened(split, seed, n=40):
        pool = ProcgenPool("procgen", {"num_levels": 60, "start_level": 7}, n, split=split, seed=seed)
        return pool.step(None)[1]["level_seed"].tolist()

    train = opened("train", 0)
    assert set(train) <= set(range(7, 67))
    assert len(set(train)) > 20
    assert opened("train", 0) == train != opened("train", 1)
    assert all(level in HELD_OUT["eval"] for level in opened("eval", 0))
    assert all(level in HELD_OUT["record"] for level in opened("record", 0))
    assert opened("train", 0, n=2) == train[:2]
    only = ProcgenPool("procgen", {"game": "maze", "mode": "exploration", "held_out": False}, 2)
    assert set(only.step(None)[1]["level_seed"]) == {EXPLORATION_LEVELS["maze"]}


def test_the_levels_of_a_game_are_known_beforehand():
    from torchmem.envs.procgen_engine import Engine

    config = ProcgenConfig(num_levels=90, start_level=5)
    engine = Engine(config, range(5, 95), [11, 12])
    seen = np.stack([engine.reset().level for _ in range(6)])
    np.testing.assert_array_equal(seen.T, [draws(11, range(5, 95), 6), draws(12, range(5, 95), 6)])


def test_a_pool_goes_on_exactly_where_it_was_saved():
    def make(**more):
        return ProcgenPool("procgen", {**SHORT, **more}, 3, split="train", seed=5)

    pool = make()
    rows = random_play(pool, 700)
    closed = next(t for t, (data, _) in enumerate(rows) if t > 300 and data["is_last"].any())
    for steps in (0, closed, closed + 1, 650):  # fresh, with an ended copy, just reset, in between
        pool = make()
        if steps:
            random_play(pool, steps)
        state = pool.state_dict()
        again = make(threads=1)
        random_play(again, 5)  # whatever it did before must not matter
        assert again.load_state_dict(state) == [True] * 3
        assert_equal(random_play(again, 30, seed=9, first=not steps), random_play(pool, 30, seed=9, first=not steps))
        np.testing.assert_equal(again.state_dict(), pool.state_dict())


def test_a_pool_that_cannot_be_continued_opens_other_levels(caplog):
    pool = ProcgenPool("procgen", SHORT, 3, seed=5)
    before = random_play(pool, 10)[0][1]["level_seed"]
    state = pool.state_dict()
    state["check"][1] += 1
    assert pool.load_state_dict(state) == [False] * 3
    assert "differ" in caplog.text
    data, truth = pool.step({"action": np.full(3, 7)})
    assert data["is_first"].all()
    assert not set(truth["level_seed"]) & set(before)
    assert pool.load_state_dict(pool.state_dict()) == [True] * 3
    with pytest.raises(ValueError, match="seed was 5, is 6"):
        ProcgenPool("procgen", SHORT, 3, seed=6).load_state_dict(state)


def test_a_pool_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="dummy has no pool"):
        ProcgenPool("dummy", {}, 2)
    with pytest.raises(ValueError, match="n must be at least 1"):
        ProcgenPool("procgen", {}, 0)
    with ProcgenPool("torchmem/Procgen-Leaper-v0", {}, 2) as pool:
        assert pool.config.game == "leaper"
        pool.step(None)
        for actions, message in (
            (None, "2 open episodes"), ({"act": np.zeros(2)}, "action keys"),
            ({"action": np.zeros(3, int)}, r"shape \(3,\), expected \(2,\)"),
            ({"action": np.array([0, 15])}, r"in 0\.\.14, got 0\.\.15"),
        ):
            with pytest.raises(ValueError, match=message):
                pool.step(actions)


# What may be missing --------------------------------------------------------------------------------------------------
def test_missing_qt_and_missing_envpool_say_what_to_install(monkeypatch):
    import envpool.procgen

    monkeypatch.delattr(envpool.procgen, "ProcgenGymnasiumEnvPool")
    qt = ImportError("libQt5Core.so.5: cannot open shared object file: No such file or directory")
    monkeypatch.setattr(envpool.procgen, "_PROCGEN_IMPORT_ERROR", qt)
    with pytest.raises(TorchmemError, match="apt-get install -y libqt5core5a libqt5gui5"):
        make_env("procgen")
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(TorchmemError, match=r"pip install 'envpool>=1.2.5,<1.3'"):
        make_env("procgen")
