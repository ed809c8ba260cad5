"""LunarLander: the stock task bit for bit, its reward in terms that add up, weights and own terms that change it."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from torchmem.envs import env_spec, make_env
from torchmem.envs.lunar_lander import TERMS, Motion
from torchmem.envs.seeds import episode_seed
from torchmem.envs.vector import VectorEnv

HOVER = "tests.envs.test_lunar_lander:hover"


def hover(before: Motion, action, after: Motion) -> float:
    return after.y + 10 * before.y + 100 * (action == 2)


def draw(rng, continuous):
    return rng.uniform(-1.3, 1.3, 2).astype(np.float32) if continuous else int(rng.integers(4))


def pilot(sim, vector, continuous):
    """gymnasium's hand-written pilot, to reach landings that random actions never see."""
    from gymnasium.envs.box2d.lunar_lander import heuristic

    return heuristic(sim, vector).astype(np.float32) if continuous else int(heuristic(sim, vector))


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("wind", [False, True])
def test_equal_to_the_stock_task_and_its_terms_add_up(continuous, wind):
    ours = make_env("lunar_lander", continuous=continuous, wind=wind)
    stock = gymnasium.make("LunarLander-v3", continuous=continuous, enable_wind=wind)
    rng, ends, used = np.random.default_rng(0), [], np.zeros(len(TERMS), bool)
    for seed in range(4):
        (obs, info), (expected, _) = ours.reset(seed=seed), stock.reset(seed=seed)
        assert not info["truth"]["terms"].any()
        over = False
        while not over:
            np.testing.assert_array_equal(obs["vector"], expected)
            flown = seed % 2 and rng.random() < 0.97
            action = pilot(stock.unwrapped, expected, continuous) if flown else draw(rng, continuous)
            obs, reward, terminated, truncated, info = ours.step(action)
            expected, wanted, *end, _ = stock.step(action)
            assert reward == wanted
            assert [terminated, truncated] == end
            terms = info["truth"]["terms"]
            assert abs(terms.sum() - wanted) < 1e-6
            used |= terms != 0
            over = any(end)
        ends.append(wanted)
    assert used.all(), dict(zip(TERMS, used, strict=True))
    assert -100 in ends


@pytest.mark.parametrize("continuous", [False, True])
def test_fuel_follows_from_the_action(continuous):
    """The fuel term of the isolated-update study: -0.3 x main engine, -0.03 x side engine."""
    env = make_env("lunar_lander", continuous=continuous)
    expected = (
        {(1.0, 0.0): -0.3, (0.5, 0.4): -0.225, (-0.1, 0.0): 0.0, (-1.0, -0.8): -0.024, (3.0, -3.0): -0.33}
        if continuous else {0: 0.0, 1: -0.03, 2: -0.3, 3: -0.03}
    )
    for action, fuel in expected.items():
        env.reset(seed=1)
        info = env.step(np.array(action, np.float32) if continuous else action)[4]
        np.testing.assert_allclose(info["truth"]["terms"][TERMS.index("fuel")], fuel, atol=1e-7)


def test_weights_and_own_terms_change_the_reward_and_nothing_else():
    only = {f"reward_{name}": 0.0 for name in TERMS if name != "fuel"}
    worlds = {
        "stock": make_env("lunar_lander"), "no_fuel": make_env("lunar_lander", reward_fuel=0),
        "scaled": make_env("lunar_lander", reward_fuel=5), "only": make_env("lunar_lander", **only),
        "own": make_env("lunar_lander", terms=[HOVER, f"0.5*{HOVER}"], reward_end=2),
    }
    rng = np.random.default_rng(3)
    obs = {name: env.reset(seed=2)[0]["vector"] for name, env in worlds.items()}
    terminated, reached = False, False
    while not terminated:
        action, height = int(rng.integers(4)), float(obs["stock"][1])
        steps = {name: env.step(action) for name, env in worlds.items()}
        obs = {name: step[0]["vector"] for name, step in steps.items()}
        for name in worlds:
            np.testing.assert_array_equal(obs[name], obs["stock"])
        reward = {name: step[1] for name, step in steps.items()}
        terminated = steps["stock"][2]
        fuel = 0.0 if terminated else {0: 0.0, 1: -0.03, 2: -0.3, 3: -0.03}[action]
        np.testing.assert_allclose(reward["no_fuel"], reward["stock"] - fuel, atol=1e-9)
        np.testing.assert_allclose(reward["scaled"], reward["stock"] + 4 * fuel, atol=1e-9)
        np.testing.assert_allclose(reward["only"], fuel, atol=1e-9)
        own = obs["stock"][1] + 10 * height + 100 * (action == 2)
        terms = steps["own"][4]["truth"]["terms"]
        np.testing.assert_allclose(terms[-2:], [own, own / 2], rtol=1e-5, atol=1e-5)
        end = -100.0 if terminated else 0.0
        np.testing.assert_allclose(reward["own"], reward["stock"] + end + 1.5 * own, rtol=1e-5, atol=1e-5)
        reached |= terminated
    assert reached


def test_truth_is_what_is_shown_in_metres():
    """Finite differences of the place give the velocity, of the angle the spin: units are right."""
    env = make_env("lunar_lander")
    obs, info = env.reset(seed=0)
    for _ in range(20):
        last, (obs, *_, info) = info["truth"], env.step(0)
        truth = info["truth"]
        np.testing.assert_allclose((truth["pos"] - last["pos"]) * 50, truth["vel"], rtol=0.02, atol=0.01)
        np.testing.assert_allclose((truth["angle"] - last["angle"]) * 50, truth["spin"], rtol=0.02, atol=0.01)
        np.testing.assert_allclose(obs["vector"][:2] * [10, 20 / 3], truth["pos"], atol=1e-5)
    assert truth["legs"].dtype == bool


def test_the_time_limit_truncates():
    env = make_env("lunar_lander", max_steps=3)
    env.reset(seed=0)
    assert [env.step(0)[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]
    assert env_spec("lunar_lander").kwargs["max_steps"] == 1000


def test_levels_belong_to_the_stock_reward_only():
    assert env_spec("lunar_lander").levels["solved"] == 200
    assert env_spec("lunar_lander", continuous=True).levels["chance"] < -100
    for other in ({"reward_fuel": 0.0}, {"wind": True}, {"gravity": -5.0}, {"terms": [HOVER]}):
        assert not env_spec("lunar_lander", **other).levels


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gravity": -12.0}, "gravity must be above -12"), ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"reward_fuel": float("nan")}, "reward_fuel must be a finite number"),
        ({"reward_feul": 1.0}, "did you mean 'reward_fuel'"), ({"terms": ["hover"]}, "no colon"),
        ({"terms": ["tests.envs.test_lunar_lander:lost"]}, "lost"), ({"terms": ["x*os:getcwd"]}, "env.terms"),
    ],
)
def test_what_is_wrong_is_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_env("lunar_lander", **kwargs)


def test_a_wrong_action_and_options_are_refused():
    env = make_env("lunar_lander")
    with pytest.raises(ValueError, match="no reset options"):
        env.reset(seed=0, options={"x": 1})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"0\.\.3, got 4"):
        env.step(4)


@pytest.mark.parametrize("workers", [0, 1])
def test_in_a_vector_it_plays_its_seeds_and_is_restored_in_mid_episode(workers):
    kwargs = {"wind": True, "terms": [HOVER]}
    with VectorEnv("lunar_lander", kwargs, 2, split="eval", seed=1, workers=workers) as env:
        data, _ = env.step(None)
        alone = make_env("lunar_lander", **kwargs)
        np.testing.assert_array_equal(data["vector"][1], alone.reset(seed=episode_seed("eval", 1, 1, 0))[0]["vector"])
        for _ in range(30):
            env.step({"action": np.array([2, 3])})
        state = env.state_dict()
        after = [env.step({"action": np.array([1, 2])}) for _ in range(20)]
        assert env.load_state_dict(state) == [True, True]
        again = [env.step({"action": np.array([1, 2])}) for _ in range(20)]
    for (data, truth), (data2, truth2) in zip(after, again, strict=True):
        np.testing.assert_equal(data, data2)
        np.testing.assert_equal(truth, truth2)
