"""Mixed behaviour: as hot, random and sticky as asked, the same again, and the agent remembers what was really done."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.surgery.test_record import make_model, same
from torchmem import cli
from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import save_agent
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.recording import Recording
from torchmem.surgery.behaviour_mix import Behaviour
from torchmem.surgery.model import Model
from torchmem.surgery.record import record


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model()


def played(model: Model, **mix) -> tuple[Recording, np.ndarray]:
    """(recording of 12 episodes, rows that chose an action)."""
    rec = record(model, episodes=12, envs=4, seed=2, behaviour=Behaviour(**mix))
    return rec, ~rec.covariates["is_last"][:]


def test_a_plain_behaviour_is_the_agents_own(model):
    rec, _ = played(model)
    same(rec, record(model, episodes=12, envs=4, seed=2))
    assert "behaviour" not in rec.plan and rec.provenance.caveats == ()


def test_random_and_sticky_actions_come_as_often_as_asked(model):
    rec, open_ = played(model, epsilon=1.0)
    action = rec.covariates["action"][:]
    share = np.bincount(action[open_]) / open_.sum()
    np.testing.assert_allclose(share, 1 / len(share), atol=4 * np.sqrt(0.25 / open_.sum()))
    assert rec.provenance.caveats == ("behaviour mixed: epsilon 1",) and rec.plan["behaviour"]["epsilon"] == 1
    again, _ = played(model, epsilon=1.0)
    same(rec, again)
    stuck, open_ = played(model, sticky=1.0)
    for episode in range(12):
        rows = stuck.rows(episode)
        assert len(set(stuck.covariates["action"][rows][open_[rows]].tolist())) == 1, "its first action all along"
    some, open_ = played(model, epsilon=1.0, sticky=0.5)
    action, first = some.covariates["action"][:], some.covariates["is_first"][:]
    follows = open_ & ~first
    follows[1:] &= open_[:-1]
    same_as_before = (action[1:] == action[:-1])[follows[1:]].mean()
    classes = len(share)
    expected = 0.5 + 0.5 / classes
    assert abs(same_as_before - expected) < 4 * np.sqrt(0.25 / follows.sum())


def test_heat_changes_choices_not_thoughts(model):
    spread = {}
    for heat in (0.05, 1.0, 50.0):
        rec, open_ = played(model, temperature=heat)
        logits, action = rec.covariates["logits.action"][:][open_], rec.covariates["action"][:][open_]
        spread[heat] = float((logits.argmax(-1) == action).mean())
        np.testing.assert_array_equal(np.isfinite(logits), True)
    assert spread[0.05] > spread[1.0] > spread[50.0]
    logits = torch.tensor(rec.covariates["logits.action"][:][open_])
    expected = torch.softmax(logits / 50, -1).max(-1).values.mean()
    assert abs(spread[50.0] - float(expected)) < 4 * np.sqrt(0.25 / open_.sum())


def test_the_agent_remembers_what_was_done():
    """An agent that sees its own last action is unrolled along the recorded ones: the memories are those recorded."""
    torch.manual_seed(0)
    agent = PPOAgent(env_spec("minigrid_memory", size=7, max_steps=20), PPOConfig(units=6, encoder_units=8,
                     see_action=True))  # fmt: skip
    rec = record(Model(agent), episodes=3, envs=2, behaviour=Behaviour(epsilon=0.7, sticky=0.2))
    for episode in range(3):
        rows = rec.rows(episode)
        carry = agent.initial(1)
        for t in range(rows.start, rows.stop):
            obs = {key: torch.from_numpy(rec.covariates[f"obs.{key}"][t : t + 1]).reshape(1, *space.shape)
                   for key, space in agent.spec.obs.items()}  # fmt: skip
            obs["is_first"] = torch.tensor([t == rows.start])
            with torch.no_grad():
                _, carry, _ = agent.policy(obs, carry, agent.acting_noise(1, None))
            np.testing.assert_allclose(carry.hidden[0], rec.activations["memory"][t], atol=1e-5)
            told = {"action": torch.from_numpy(rec.covariates["action"][t : t + 1])}
            carry = carry._replace(action=agent.action_vector(told))


def test_the_command_mixes_and_wrong_numbers_are_told(tmp_path, capsys):
    torch.manual_seed(0)
    agent = PPOAgent(env_spec("minigrid_memory", size=7, max_steps=9), PPOConfig(units=6, encoder_units=8))
    home = save_agent(agent, tmp_path / "agent")
    words = ["record", str(home), "--episodes", "2", "--envs", "2"]
    assert cli.main([*words, "--out", str(tmp_path / "a"), "--epsilon", "0.5", "--temperature", "2"]) == 0
    assert Recording(tmp_path / "a").provenance.caveats == ("behaviour mixed: temperature 2, epsilon 0.5",)
    for flag, value, told in (("--epsilon", "1.5", "epsilon must be within 0..1"), ("--temperature", "0", "above 0"),
                              ("--sticky", "-1", "sticky must be within")):  # fmt: skip
        assert cli.main([*words, "--out", str(tmp_path / "b"), flag, value]) == 2
        assert told in capsys.readouterr().err
