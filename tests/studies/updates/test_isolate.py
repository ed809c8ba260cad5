"""isolate_update on small agents: branches share their seeds, taking away is exact, parts are kept, nulls are null."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.tiny import AGENT, LOOP
from torchmem.result import load_result
from torchmem.studies.updates.branch import State, begin, merged, train, words_of
from torchmem.studies.updates.episodes import play_episodes
from torchmem.studies.updates.isolate import as_long, isolate_update
from torchmem.studies.updates.measures import Measure, default_measures
from torchmem.surgery.weight_delta import WeightDelta

LANDER = "preset=lunar_lander env.max_steps=60 envs=4 batch=4 length=16 agent.head_units=8 workers=0".split()
CUE = (
    "agent=ppo env=minigrid_switching env.mode=rule env.p_switch=0 env.size=11 env.max_steps=12 env.backend=batched "
    "agent.units=8 agent.encoder_units=8 envs=8 batch=8 length=8 trainer.threads=1"
).split()


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture(scope="module")
def start():
    return train(LANDER, begin(LANDER, 0), 128, 0)


def test_a_branch_is_the_same_whenever_it_is_run(start):
    again, other = train(LANDER, start, 64, 5), train(LANDER, start, 64, 6)
    first = train(LANDER, start, 64, 5)
    assert same(first.agent, again.agent) and not same(first.agent, other.agent)
    assert first.learner["updates"] > start.learner["updates"]  # the optimiser went on
    fresh = train(LANDER, State(start.agent), 64, 5)
    assert not same(first.agent, fresh.agent)


def test_a_change_of_nothing_is_the_null(start):
    """The sharpest control: the same reward, said otherwise, gives the same weights and an update of no difference."""
    found = isolate_update(
        start, LANDER, ["env.reward_fuel=1"], 64, episodes=4, scales=(-1.0, 1.0), modules=False, term="fuel"
    )
    assert found.deltas["difference"].norm() == 0
    assert found.deltas["change"].norm() > 0 and found.deltas["reseeded"].norm() > 0
    tables = found.result.tables
    np.testing.assert_array_equal(tables["sub"]["return"], tables["sub null"]["return"])
    np.testing.assert_array_equal(tables["sub difference"]["return"], tables["pre"]["return"])
    effects = found.result.effects("return")
    assert effects["change taken away - null taken away"].estimate == 0


def test_phases_of_a_change(start, tmp_path):
    given = {"after": ["agent.lr=1e-3"], "test": ["env.reward_fuel=2"], "episodes": 4, "scales": (-1.0, 0.0, 1.0)}
    found = isolate_update(start, LANDER, ["env.reward_fuel=9"], 64, term="fuel", salvage=64, folder=tmp_path, **given)
    result = found.result
    names = {"pre", "post", "sub", "post null", "sub null", "sub noise", "sub difference", "sub null scaled",
             "post reseeded", "sub reseeded", "only actor", "only critic", "salvage kept", "salvage fresh",
             "salvage null kept", "salvage null fresh", "salvage noise fresh"}  # fmt: skip
    assert set(result.tables) == names and set(result.sweep) == {"change", "null", "noise", "difference"}
    assert result.sweep["change"]["fuel"].shape == (1, 3, 4)
    np.testing.assert_array_equal(result.sweep["null"]["fuel"][:, 1], result.tables["pre"]["fuel"])
    # the critic is not on the way to the action, the actor is all of it
    np.testing.assert_array_equal(result.tables["only critic"]["return"], result.tables["pre"]["return"])
    np.testing.assert_array_equal(result.tables["only actor"]["return"], result.tables["sub"]["return"])
    added = found.deltas["change"].apply(start.agent)
    assert all(torch.equal(added[n], p) for n, p in found.states["post"].agent.named_parameters())
    noise, change = found.deltas["noise"].norms(), found.deltas["change"].norms()
    assert noise == pytest.approx(change, rel=1e-5)
    scaled = as_long(found.deltas["null"], found.deltas["change"])
    assert scaled.norms() == pytest.approx(change, rel=1e-5)
    assert scaled.cosine(found.deltas["null"]) > 0.2
    assert load_result(result.save(tmp_path / "result")) == result
    assert "change taken away - null taken away" in result.summary()
    # all parts are there, so that nothing is trained or played again
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    again = isolate_update(start, LANDER, ["env.reward_fuel=9"], 64, term="fuel", salvage=64, folder=tmp_path, **given)
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    np.testing.assert_array_equal(again.result.tables["salvage fresh"]["fuel"], result.tables["salvage fresh"]["fuel"])


def test_rewards_change_the_branch_and_the_test_world_counts_the_same(start):
    cheap, dear = (train([*LANDER, f"env.reward_fuel={w}"], start, 64, 1) for w in (0, 50))
    assert not same(cheap.agent, dear.agent)
    measures = default_measures("lunar_lander")
    for price in (1, 3):
        kwargs = {"reward_fuel": float(price), "max_steps": 60}
        found = play_episodes(cheap.agent, "lunar_lander", kwargs, measures, 4)
        others = sum(found[t] for t in ("distance", "speed", "tilt", "legs", "end"))
        np.testing.assert_allclose(found["return"], others + price * found["fuel"], rtol=1e-5)
        assert ((found["landed"] == 1) == (found["end"] == 100)).all()


def test_a_memory_agent_and_a_rule():
    before = train(CUE, begin(CUE, 0), 64, 0)
    found = isolate_update(
        before, CUE, ["env.p_switch=1"], 64, test=["env.p_switch=0.5"], term="success, rule inverted",
        nulls=("null",), scales=(-1.0,), modules=False, episodes=64,
    ).result  # fmt: skip
    table = found.tables["pre"]
    inverted, unchanged = table["success, rule inverted"], table["success, rule unchanged"]
    assert (np.isfinite(inverted) != np.isfinite(unchanged)).all()
    assert 0.25 < np.isfinite(inverted).mean() < 0.75
    np.testing.assert_array_equal(table["success"], np.where(np.isfinite(inverted), inverted, unchanged))
    np.testing.assert_array_equal(table["success"] + table["wrong"] + table["timeout"], 1)
    assert "noise" not in found.sweep


def test_dreamer_branches_too():
    words = merged(AGENT, LOOP, "env=dummy env.image=0 env.length=7 replay.capacity=40 ratio=5".split())
    before = begin(words, 0)
    after, changed = train(words, before, 40, 1), train([*words, "agent.entropy=0.1"], before, 40, 1)
    delta, other = (WeightDelta.between(before.agent, s.agent) for s in (after, changed))
    assert delta.norm() > 0 and other.norm() > 0 and (delta - other).norm() > 0
    assert same(train(words, before, 40, 1).agent, after.agent)


def test_words_that_do_not_fit_are_refused(start):
    with pytest.raises(ValueError, match="reward_feul"):
        isolate_update(start, LANDER, ["env.reward_feul=1"], 64, episodes=4)
    with pytest.raises(ValueError, match="the agent was made for lunar_lander"):
        train(CUE, start, 8, 0)
    with pytest.raises(ValueError, match="term 'petrol'"):
        isolate_update(start, LANDER, ["env.reward_fuel=1"], 64, episodes=4, term="petrol")
    with pytest.raises(ValueError, match="multiple of 16"):
        play_episodes(start.agent, "lunar_lander", {}, (), 17)
    with pytest.raises(ValueError, match="has no 'petrol'"):
        play_episodes(start.agent, "lunar_lander", {}, (Measure("petrol", "petrol"),), 2)


def test_a_run_folder_is_a_start(tmp_path):
    from torchmem.training.config import compose
    from torchmem.training.loop import run

    words = [*LANDER, "steps=64", "log.sinks=[]", "eval.every_steps=0", "eval.episodes=2", f"logdir={tmp_path / 'r'}"]
    run(compose(words))
    state, told = State.of_run(tmp_path / "r")
    assert state.learner["updates"] > 0
    assert words_of(tmp_path / "r" / "config.json") == told and "agent.head_units=8" in told
    same_branch = train(told, state, 64, 3)
    assert same(same_branch.agent, train(LANDER, state, 64, 3).agent)
