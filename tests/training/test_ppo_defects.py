"""The defects of the program that hard_rec comes from (spec simulator.md 1.4), one test each: not inherited.

D1 is in test_ppo_replay.py, with the switch that brings it back.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.training.recall import SPEC, RecallWorld
from torchmem.envs.procgen_config import levels
from torchmem.models.importers.procgen_ppo import TRAINED_WITH
from torchmem.models.noise import Noise
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.training.averages import Averages
from torchmem.training.config import compose
from torchmem.training.evaluate import Evaluation
from torchmem.training.processes import Processes
from torchmem.training.rollout import Rollout
from torchmem.training.rollout_learner import RolloutLearner
from torchmem.types import EnvSpec, Space

N, T = 8, 10
COINRUN = EnvSpec("procgen", {"image": Space((64, 64, 3), "uint8")}, {"action": Space((), "int64", classes=15)}, 15.0)


def make(**kwargs) -> Rollout:
    torch.manual_seed(0)
    agent = PPOAgent(SPEC, PPOConfig(**{"units": 16, "encoder_units": 16, **kwargs}))
    for layer in agent.actor.out.values():
        torch.nn.init.normal_(layer.weight)  # heads start near zero, where differences do not show
    return Rollout(agent, RecallWorld(N), T, torch.Generator().manual_seed(0))


def collected(rollout: Rollout) -> dict[str, torch.Tensor]:
    rollout.collect()
    rollout.finish(Processes())
    return rollout.columns(torch.arange(N))


def test_d2_each_episode_starts_from_the_learned_state_and_teaches_it():
    rollout = make(start_scale=1.0, value_clip=None)
    agent, learner = rollout.agent, RolloutLearner(rollout.agent, Processes())
    for _ in range(3):
        start = agent.core.start.detach().clone()
        batch = collected(rollout)
        first = batch["is_first"].nonzero().tolist()
        assert len({row for _, row in first}) >= 2
        with torch.no_grad():
            begun = agent.initial(N)
            assert torch.equal(begun.hidden[0], start)
            for column, row in first:
                obs = {"sign": batch["sign"][column, row][None], "is_first": torch.zeros(1, dtype=torch.bool)}
                _, _, told = agent.policy(obs, type(begun)(*(part[:1] for part in begun)), Noise.mode())
                torch.testing.assert_close(told["value"][0], batch["value"][column, row])
        for order in torch.randperm(N).split(2):
            part = rollout.columns(order)
            agent.loss(part, Noise.mode()).total.backward()
            assert agent.core.start.grad is not None and agent.core.start.grad.any() == part["is_first"].any()
            agent.zero_grad()
            learner.update(part)
        assert not torch.equal(agent.core.start, start)


def test_d3_rewards_are_scaled_with_the_discount_of_the_advantages():
    """By hand: the deviation of discounted sums of rewards within episodes, and what the update sees of a reward."""
    rollout = make(scale_reward=True, gamma=0.7, lam=0.0, normalise_advantage=False)
    batch = collected(rollout)
    rows = {key: value.numpy() for key, value in rollout.rows.items()}
    sums, values = np.zeros(N), []
    for t in range(1, T + 1):
        sums = 0.7 * sums * ~rows["is_first"][:, t] + rows["reward"][:, t]
        values += sums[~rows["is_first"][:, t]].tolist()
    std = np.std(values)
    assert float(rollout.agent.reward_scale.std) == pytest.approx(std, rel=1e-3)
    future = 0.7 * rows["value"][:, 1:] * ~rows["is_terminal"][:, 1:]
    played = batch["weight"].numpy() > 0
    expected = rows["reward"][:, 1:] / std + future
    np.testing.assert_allclose(batch["target"].numpy()[played], expected[played], rtol=1e-3)
    assert rows["reward"].any()


def test_d4_parts_are_averaged_and_the_originals_sum_is_another_setting():
    """A step on 4 summed parts with clip 0.5 and eps 1e-5 is a step on their mean with a quarter of both."""
    ours = make(parts=4, clip_norm=0.125, eps=2.5e-6, lr=1e-2)
    batch = collected(ours)
    theirs = make(lr=1e-2).agent
    theirs.load_state_dict(ours.agent.state_dict())
    learner = RolloutLearner(ours.agent, Processes())
    optimiser = torch.optim.Adam(theirs.parameters(), 1e-2, eps=1e-5)
    for _ in range(3):
        for part in torch.arange(N).split(2):
            theirs.loss({key: value[part] for key, value in batch.items()}, Noise.mode()).total.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimiser.step()
        optimiser.zero_grad()
        learner.update(batch)
    for (name, a), b in zip(ours.agent.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)
    one, cut = make(parts=1), make(parts=4)
    collected(one), collected(cut)
    told = [RolloutLearner(r.agent, Processes()).update(r.columns(torch.arange(N))) for r in (one, cut)]
    torch.testing.assert_close(told[0]["gradient_norm"], told[1]["gradient_norm"])


def test_d5_the_row_after_a_rollout_is_lived_once():
    rollout = make()
    rollout.collect()
    carry, told = rollout.carry, rollout.rows["value"][:, -1].clone()
    rollout.collect()
    assert all(torch.equal(a, b) for a, b in zip(rollout.start, carry, strict=True))
    torch.testing.assert_close(rollout.rows["value"][:, 0], told)


def test_d6_a_time_limit_lends_the_value_of_what_was_seen_last():
    rollout = make(gamma=0.9, lam=0.0, normalise_advantage=False)
    found = {True: 0, False: 0}
    for _ in range(4):
        batch, rows = collected(rollout), rollout.rows
        for column, row in (rows["is_last"][:, 1:]).nonzero().tolist():
            terminal = bool(rows["is_terminal"][column, row + 1])
            future = 0.0 if terminal else 0.9 * rows["value"][column, row + 1]
            expected = rows["reward"][column, row + 1] + future
            torch.testing.assert_close(batch["target"][column, row], expected)
            found[terminal] += 1
    assert min(found.values()) > 0


def test_d7_a_mean_is_a_mean():
    told = Evaluation("return", np.array([1.0, 0.0, 2.0]), np.array([4, 10, 40]), np.zeros(3, bool)).metrics("eval")
    assert told["eval/length"] == 18 and told["eval/return"] == told["eval/score"] == 1
    averages = Averages()
    for length in (4, 10, 40):
        averages.add({"length": length}, "episode/")
    assert averages.pop()["episode/length"] == 18


def test_d8_the_value_loss_is_logged_as_it_is_minimised():
    rollout = make(value_clip=None, lr=1e-2)
    batch, learner = collected(rollout), RolloutLearner(rollout.agent, Processes())
    expected = 0.5 * ((batch["value"] - batch["target"]).square() * batch["weight"]).mean()
    losses = [float(learner.update(batch)["loss/value"]) for _ in range(30)]
    assert losses[0] == pytest.approx(float(expected), rel=1e-4) and 0 < losses[-1] < losses[0]


def test_d9_hard_rec_is_evaluated_on_levels_it_never_trains_on():
    """How the levels are drawn is tested with the world, in tests/envs/test_procgen.py."""
    config = compose(["preset=hard_rec"])
    trained, held_out = levels(config.env, "train"), levels(config.env, "eval")
    assert trained == range(1_000_000) and (held_out.start >= trained.stop or held_out.stop <= trained.start)


def test_hard_rec_has_every_number_of_the_table():
    """Spec simulator.md, tables 1.2 and 1.3."""
    config = compose(["preset=hard_rec"])
    agent, env = config.agent, config.env
    assert (config.envs, config.length, config.ratio, config.steps) == (256, 256, 3, 200_000_000)
    assert config.envs // config.batch == 8, "optimiser steps per epoch"
    assert config.batch // agent.parts * config.length == 2048 and agent.parts == 4
    assert config.save.agents_every == config.steps // 500
    assert {key: getattr(agent, key) for key in TRAINED_WITH} == TRAINED_WITH
    world = (env.game, env.mode, env.use_backgrounds, env.num_levels, env.start_level)
    assert world == ("coinrun", "hard", False, 1_000_000, 0)
    assert not agent.legacy_reset
    made = PPOAgent(COINRUN, agent)
    assert sum(p.numel() for p in made.parameters()) == 254_800
    assert not hasattr(made.encoder, "mlp") and made.core.start.numel() == 64
    small = compose(["preset=hard_rec_small"])
    assert small.steps // (small.envs * small.length) >= 20 and small.steps == 100_000
    assert {k: v for k, v in vars(small.agent).items() if k != "parts"} == {
        k: v for k, v in vars(agent).items() if k != "parts"
    }


def test_hard_recs_first_weights():
    """Spec simulator.md 1.2: bounds and scales of each kind of layer."""
    torch.manual_seed(0)
    agent = PPOAgent(COINRUN, compose(["preset=hard_rec"]).agent)
    for module in agent.encoder.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            area = module.weight[0, 0].numel()
            bound = (6 / ((module.weight.shape[0] + module.weight.shape[1]) * area)) ** 0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound and not module.bias.any()
    weights = agent.state_dict()
    for name, value in weights.items():
        if name.startswith("core.") and name != "core.start":
            assert value.abs().max() <= 1 / 8 and float(value.std()) == pytest.approx(0.0722, abs=0.01)
    actor, critic = weights["actor.out.action.weight"], weights["critic.out.weight"]
    torch.testing.assert_close(actor @ actor.T, 1e-4 * torch.eye(15), atol=1e-8, rtol=0)
    assert float(critic.norm()) == pytest.approx(1, abs=1e-5)
    assert float(weights["core.start"].std()) == pytest.approx(0.1, abs=0.03)
