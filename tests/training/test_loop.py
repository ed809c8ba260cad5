"""The loop: honest evaluation, and looking at a run changes nothing in it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.training import tiny
from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.training import command
from torchmem.training.config import compose
from torchmem.training.evaluate import Evaluation, Stopped, evaluate
from torchmem.training.experiment import Experiment
from torchmem.training.logger import read_metrics
from torchmem.training.processes import Processes


@pytest.fixture
def config(tmp_path):
    return compose(tiny.words(tmp_path / "run"))


@pytest.fixture
def agent(config):
    return DreamerAgent(env_spec("dummy", **config.env_kwargs), config.agent)


class Watched:
    """An agent whose carries are kept for a look."""

    def __init__(self, agent):
        self.agent, self.before, self.after = agent, [], []

    def __getattr__(self, name):
        return getattr(self.agent, name)

    def policy(self, obs, carry, noise):
        self.before.append((obs, carry, noise))
        chosen, carry, latents = self.agent.policy(obs, carry, noise)
        self.after.append(carry)
        return chosen, carry, latents


# Evaluation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("episodes, envs", [(7, 3), (2, 16), (6, 6)])
def test_every_env_plays_its_share_whatever_the_lengths(agent, config, episodes, envs):
    """Were the first episodes to end taken instead, the short ones would be too many."""
    watched = Watched(agent)
    kwargs = config.env_kwargs | {"vary": True, "length": 12}
    found = evaluate(watched, "dummy", kwargs, episodes, seed=3, envs=envs)
    n = min(envs, episodes)
    lengths: list[list[int]] = [[] for _ in range(n)]
    for step, (obs, _, _) in enumerate(watched.before):
        for env in np.flatnonzero(obs["is_first"].numpy()):
            lengths[env].append(step)
    share = [episodes // n + (env < episodes % n) for env in range(n)]
    # An episode's length is the distance between two openings: the first `share` of each env, and no other.
    ends = [[*starts, len(watched.before)] for starts in lengths]
    expected = [ends[env][i + 1] - ends[env][i] for env in range(n) for i in range(share[env])]
    assert sorted(found.lengths) == sorted(expected)
    assert len(found.returns) == episodes
    t = found.lengths - 1
    np.testing.assert_allclose(found.returns, t * (t + 1) / 24, rtol=1e-5)


def test_without_memory_each_step_is_the_first(agent, config):
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(0.3 * torch.randn_like(p))
    watched = Watched(agent)
    evaluate(watched, "dummy", config.env_kwargs, 2, memory=False)
    assert len(watched.before) > 6
    for (obs, carry, noise), after in zip(watched.before[1:], watched.after[1:], strict=True):
        assert obs["is_first"].all() and carry.deter.abs().sum() > 0
        with torch.no_grad():
            _, fresh, _ = agent.policy(obs, agent.initial(2), noise)
        for got, want in zip(after, fresh, strict=True):
            assert torch.equal(got, want)
    remembering = Watched(agent)
    evaluate(remembering, "dummy", config.env_kwargs, 2)
    assert not torch.equal(remembering.after[1].deter, watched.after[1].deter), "this agent has no memory to remove"


def test_the_same_seed_gives_the_same_scores_on_worlds_that_training_never_sees(agent, config):
    kwargs = config.env_kwargs | {"vary": True, "length": 30}
    scores = [evaluate(agent, "dummy", kwargs, 6, seed=s, envs=2).returns.tolist() for s in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]
    training = evaluate(agent, "dummy", kwargs, 6, split="train", envs=2).returns.tolist()
    assert training != scores[0]


def test_a_stopped_evaluation_has_no_score(agent, config):
    asked = iter([False, False, True])
    with pytest.raises(Stopped, match="4 of 4 episodes"):
        evaluate(agent, "dummy", config.env_kwargs, 4, stop=lambda: next(asked))
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(agent, "dummy", config.env_kwargs, 0)


@pytest.mark.parametrize(("ending", "share"), [("terminated", 0.0), ("truncated", 1.0)])
def test_it_tells_who_ran_out_of_time(agent, config, ending, share):
    told = evaluate(agent, "dummy", {**config.env_kwargs, "ending": ending}, 4)
    metrics = told.metrics("eval")
    assert metrics["eval/timeouts"] == share and ("eval/score_in_time" in metrics) == (share < 1)
    mixed = Evaluation("success", np.array([1.0, 0.0, 0.5, 0.0]), np.ones(4), np.array([False, False, False, True]))
    assert mixed.score == 0.5 and mixed.score_in_time == pytest.approx(2 / 3)
    assert "0.250 ran out of time, 0.667 of the others succeeded" in mixed.summary()


def test_intervals():
    def result(kind: str, returns: list[float]) -> Evaluation:
        return Evaluation(kind, np.array(returns), np.ones(len(returns)), np.zeros(len(returns), bool))

    low, high = result("success", [1.0] * 90 + [0.0] * 10).interval
    assert (round(low, 3), round(high, 3)) == (0.826, 0.945)  # Wilson, by hand
    assert str(result("success", [0.0] * 500).interval[0]) == "0.0"  # and not -0.0, as rounding has it
    assert result("success", [0.3, 0.0, -1.0]).score == pytest.approx(1 / 3)
    low, high = result("return", [1.0, 2.0, 3.0]).interval
    assert (low, high) == pytest.approx((2 - 1.96 / 3**0.5, 2 + 1.96 / 3**0.5))
    assert result("return", [1.0]).interval == (-np.inf, np.inf)


# Looking changes nothing ---------------------------------------------------------------------------------------------


def test_evaluation_video_log_and_snapshots_change_no_number(tmp_path):
    quiet = ("log.every_s=0", "eval.no_memory=false", "eval.episodes=1")
    busy = (
        "log.every_s=1e-6", "log.video_every_s=1e-6", "eval.every_steps=10", "eval.episodes=3", "save.every_s=1e-6",
        "save.ladder=true", "log.sinks=[tensorboard]",
    )
    for name, more in {"quiet": quiet, "busy": busy}.items():
        assert command.main(tiny.words(tmp_path / name, *more, world=tiny.IMAGE)) == 0
    assert tiny.outcome(tmp_path / "busy") == tiny.outcome(tmp_path / "quiet")
    rows = tiny.rows(tmp_path / "busy")
    assert sum("eval/score" in row for row in rows) == sum("eval_no_memory/score" in row for row in rows) == 7
    assert len(list((tmp_path / "busy" / "videos").glob("open_loop-*.gif"))) > 10
    assert list((tmp_path / "busy" / "tb").iterdir())
    assert not list((tmp_path / "quiet").glob("tb"))


def test_peeking_leaves_sampling_as_it_was(config):
    x = Experiment(config, Processes(), torch.device("cpu"))
    try:
        x.open_replay("me")
        while not x.ready():
            x.collect()
        saved = json.dumps(x.replay.snapshot()["rng"])
        first, second = x.replay.peek(3, seed=1), x.replay.peek(3, seed=1)
        assert all(torch.equal(first[k], second[k]) for k in first)
        assert not torch.equal(first["index"], x.replay.peek(3, seed=2)["index"])
        assert json.dumps(x.replay.snapshot()["rng"]) == saved
        fresh = x.replay.sample(2)["index"][:, 0].tolist()
        assert fresh == [0, 1], "the online queue's pieces were served to a spectator"
    finally:
        x.close()


# Counting ------------------------------------------------------------------------------------------------------------


def test_updates_follow_the_ratio_and_start_after_the_warm_up(config):
    config = dataclasses.replace(config, ratio=6.0, warmup_items=9)
    x = Experiment(config, Processes(), torch.device("cpu"))
    try:
        x.open_replay("me")
        due = []
        for _ in range(30):
            x.collect()
            due.append(x.updates_due())
        # 9 sequences of 4 + 1 steps in 2 envs: rows 5..9 complete 2 each. Then 6 x 2 / (4 x 4) = 3/4 update per row.
        assert due[:9] == [0] * 8 + [1]
        assert sum(due[9:]) == 21 * 3 // 4 and set(due[9:]) == {0, 1}
        assert x.clock.agent_steps == 60
    finally:
        x.close()


def test_the_first_line_has_a_pace(tmp_path):
    assert command.main(tiny.words(tmp_path / "run", "log.every_s=1e-6")) == 0
    paces = [row["steps_per_s"] for row in read_metrics(tmp_path / "run") if "steps_per_s" in row]
    assert len(paces) > 10 and min(paces) > 0


def test_the_ladder_keeps_agents_at_powers_of_two(tmp_path):
    more = ("save.ladder=true", "ratio=0", "log.every_s=0", "eval.episodes=1", "eval.no_memory=false", "envs=8")
    assert command.main(tiny.words(tmp_path / "run", *more, "replay.capacity=200", steps=4100)) == 0
    assert sorted(f.name for f in (tmp_path / "run" / "ladder").iterdir()) == [f"{n:012d}" for n in (1000, 2000, 4000)]
    import torchmem

    assert torchmem.load(tmp_path / "run" / "ladder" / "000000002000").spec.name == "dummy"


def test_a_run_does_not_inherit_the_matmul_switch_of_the_one_before(tmp_path, straight):
    assert command.main(tiny.words(tmp_path / "fast", "trainer.matmul=fast")) == 0
    assert command.main(tiny.words(tmp_path / "default")) == 0
    assert tiny.outcome(tmp_path / "default") == straight
