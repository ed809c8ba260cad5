"""The two bsuite tasks against rewards worked out by hand."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from torchmem.envs import env_spec, make_env
from torchmem.envs.bsuite import pay_steps


def rewards(world, actions):
    """Rewards of an episode of these actions; it must end with the last one."""
    out = []
    for index, action in enumerate(actions):
        _, reward, terminated, truncated, _ = world.step(action)
        out.append(reward)
        assert (terminated, truncated) == (index == len(actions) - 1, False)
    return out


@pytest.mark.parametrize("context", [0, 1])
def test_memory_length_pays_for_the_context_at_the_last_step_only(context):
    world = make_env("bsuite_memory_length", length=4)
    for last in (0, 1):
        seen, info = world.reset(seed=0, options={"context": context})
        np.testing.assert_array_equal(seen["vector"], [1, 0, 2 * context - 1])
        assert info["truth"]["target"] == context
        assert rewards(world, [1 - last] * 3 + [last]) == [0, 0, 0, 1.0 if last == context else -1.0]


def test_memory_length_shows_context_first_and_question_last():
    world = make_env("bsuite_memory_length", length=3, bits=4)
    seen, info = world.reset(seed=0, options={"context": [1, 0, 0, 1], "query": 2})
    rows = [seen["vector"]]
    for _ in range(2):
        rows.append(world.step(0)[0]["vector"])
    np.testing.assert_allclose(rows, [[1, 0, 1, -1, -1, 1], [2 / 3, 0, 0, 0, 0, 0], [1 / 3, 2, 0, 0, 0, 0]], rtol=1e-6)
    assert info["truth"]["context"].tolist() == [1, 0, 0, 1]
    assert world.step(0)[1] == 1.0  # bit 2 is 0


def test_memory_length_of_one_shows_and_asks_at_once():
    world = make_env("bsuite_memory_length", length=1, bits=2)
    seen, _ = world.reset(seed=0, options={"context": [0, 1], "query": 1})
    np.testing.assert_array_equal(seen["vector"], [1, 1, -1, 1])
    assert rewards(world, [1]) == [1.0]


def test_memory_length_draws_every_context_and_query_equally():
    world = make_env("bsuite_memory_length", bits=3, length=2)
    truths = [world.reset(seed=seed)[1]["truth"] for seed in range(600)]
    contexts = np.stack([truth["context"] for truth in truths])
    np.testing.assert_allclose(contexts.mean(0), 0.5, atol=0.09)  # more than 4 standard errors
    np.testing.assert_allclose(np.bincount([int(t["query"]) for t in truths]) / 600, 1 / 3, atol=0.08)
    assert all(t["target"] == t["context"][t["query"]] for t in truths)


@pytest.mark.parametrize(("options", "message"), [
    ({"context": 2}, "context must be"), ({"context": [0, 1]}, "context must be"), ({"query": 1}, "query must be"),
    ({"cue": 0}, "no reset options")])
def test_memory_length_refuses_what_it_does_not_know(options, message):
    with pytest.raises(ValueError, match=message):
        make_env("bsuite_memory_length").reset(seed=0, options=options)


@pytest.mark.parametrize("chain", range(5))
def test_each_chain_pays_once_at_its_step(chain):
    for mapping in (0, 4):
        world = make_env("bsuite_discounting_chain", mapping=mapping)
        world.reset(seed=0)
        expected = np.zeros(100)
        expected[(1, 3, 10, 30, 100)[chain] - 1] = 1.1 if chain == mapping else 1.0
        later = (chain + 2) % 5  # must not matter
        assert rewards(world, [chain] + [later] * 99) == pytest.approx(expected.tolist())


def test_the_chain_is_shown_and_its_reward_counted_down():
    world = make_env("bsuite_discounting_chain", horizon=50)
    seen, info = world.reset(seed=0)
    assert pay_steps(50) == (1, 2, 5, 15, 50)
    assert seen["vector"].tolist() == [-1, 0]
    assert info["truth"]["steps_to_reward"] == -1
    seen, *_, info = world.step(2)
    np.testing.assert_allclose(seen["vector"], [2, 1 / 50])
    assert [int(info["truth"][key]) for key in ("chain", "steps_to_reward", "time")] == [2, 4, 1]
    for _ in range(4):
        *_, info = world.step(0)
    assert info["truth"]["steps_to_reward"] == -1


def test_levels_are_those_of_guessing_and_knowing():
    assert env_spec("bsuite_memory_length").levels == {"chance": 0.0, "oracle": 1.0}
    levels = env_spec("bsuite_discounting_chain", mapping=3).levels
    assert levels["chance"] == pytest.approx((4 + 1.1) / 5)
    assert levels["oracle"] == 1.1


def test_names_and_arguments():
    assert gymnasium.make("torchmem/BsuiteMemoryLength-v0", length=5).unwrapped.config.length == 5
    assert gymnasium.make("torchmem/BsuiteDiscountingChain-v0").action_space.n == 5
    with pytest.raises(ValueError, match=r"mapping must be in 0\.\.4"):
        env_spec("bsuite_discounting_chain", mapping=5)
    with pytest.raises(ValueError, match="horizon must be at least 50"):
        env_spec("bsuite_discounting_chain", horizon=20)
    world = make_env("bsuite_memory_length")
    world.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must be in 0\.\.1"):
        world.step(2)
