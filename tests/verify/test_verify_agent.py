"""Checks of agents hold on sound ones and find each defect, and nothing but it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.training.tiny import AGENT
from tests.verify.broken_agents import AGENTS, DREAMERS
from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.r2i.agent import R2IAgent
from torchmem.models.returns import lambda_return
from torchmem.models.synthetic import random_values
from torchmem.training.config import compose
from torchmem.verify import agent as agent_module
from torchmem.verify import verify_agent
from torchmem.verify.acting import shake
from torchmem.verify.returns import of_replay, of_rollouts, return_checks
from torchmem.verify.tape import OPENS, STEPS, Tape

WORLD = {"image": 0, "length": 9}


def failed(checks) -> set[str]:
    return {check.name for check in checks if not check.ok}


def agent_checks_of(agent):
    """The checks that need no world: on random observations."""
    generator = torch.Generator().manual_seed(0)
    tapes = [{k: random_values(s, (len(OPENS), STEPS), generator) for k, s in agent.spec.obs.items()} for _ in "ab"]
    return agent_module.agent_checks(shake(agent), Tape(agent.spec, tapes[0]), tapes[1])


def ppo(kind: type = PPOAgent, world: dict | None = None, **kwargs) -> PPOAgent:
    torch.manual_seed(0)
    sizes = {"units": 12, "encoder_units": 12, "image_channels": [4], "image_units": 8, **kwargs}
    return kind(env_spec("dummy", **(world or WORLD)), PPOConfig(**sizes))


def dreamer(kind: type = DreamerAgent) -> DreamerAgent:
    torch.manual_seed(0)
    return kind(env_spec("dummy", **WORLD), compose([*AGENT, "env=dummy"]).agent)


def r2i(**kwargs):
    torch.manual_seed(0)
    config = compose(["size=1m", "agent=r2i", "env=dummy"]).agent
    return R2IAgent(env_spec("dummy", **WORLD), dataclasses.replace(config, **kwargs))


SOUND = {
    "gru": lambda: ppo(), "lstm": lambda: ppo(core="lstm"), "mlp": lambda: ppo(core="mlp"),
    "images": lambda: ppo(world={"image": 16, "continuous": True}, scale_obs=True, scale_reward=True),
    "no learned start": lambda: ppo(learned_start=False, head_layers=1), "dreamer": dreamer,
    "r2i": r2i, "r2i, start stored": lambda: r2i(stored_start=True),
}  # fmt: skip


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
def test_sound_agents_pass(make):
    checks = verify_agent(make())
    assert not failed(checks), [(c.name, c.value, c.detail) for c in checks if not c.ok]
    assert len(checks) == 12


def test_an_agent_that_stores_nothing_is_compared_where_an_episode_opens():
    told = {c.name: c.detail for c in verify_agent(r2i())}
    assert told["step = loss path"] == "4 rows that open an episode; nothing is stored of the others"
    assert told["act = train"].startswith("nothing is recorded")


@pytest.mark.parametrize("kind", AGENTS, ids=lambda k: k.__name__)
def test_each_defect_of_an_agent_is_found_by_its_own_checks(kind):
    checks = verify_agent(ppo(kind))
    assert failed(checks) == AGENTS[kind], [(c.name, c.value, c.detail) for c in checks if not c.ok]


def test_the_defective_resets_of_imported_agents_are_found():
    """`legacy_reset` learns with the carry of the wrong moment, as the program behind `import procgen-ppo` did."""
    found = failed(verify_agent(ppo(legacy_reset=True)))
    assert found == {"step = loss path", "act = train", "reset: loss"}


def test_truth_may_have_the_name_of_something_in_a_batch():
    """POPGym's truth has a `target`, PPO's batches have another; a batch never holds the truth."""
    agent = ppo()
    agent.spec = dataclasses.replace(agent.spec, truth={"target": "suit", "value": "rank"})
    assert "truth unreachable" not in {c.name for c in agent_checks_of(agent) if not c.ok}


@pytest.mark.parametrize("kind", DREAMERS, ids=lambda k: k.__name__)
def test_each_defect_of_a_world_model_is_found(kind):
    checks = verify_agent(dreamer(kind))
    assert failed(checks) == DREAMERS[kind], [(c.name, c.value, c.detail) for c in checks if not c.ok]


def test_a_reset_is_shown_beside_what_the_same_past_does_without_one():
    checks = {c.name: c for c in verify_agent(ppo())}
    for name in ("reset: acting", "reset: sequence", "reset: loss"):
        assert float(checks[name].detail.removeprefix("without the reset ")) > 1e-3, "the check could see a difference"
    assert "without the reset 0" in {c.name: c for c in verify_agent(ppo(core="mlp"))}["reset: acting"].detail


def test_a_draw_that_rounding_flipped_is_looked_at_again_in_float64(monkeypatch):
    class Rounded(DreamerAgent):
        """Differs between step and sequence in float32 alone, as an unlucky draw would."""

        def unroll(self, obs, actions, is_first, carry, noise=None):
            out = super().unroll(obs, actions, is_first, carry, noise)
            return out._replace(value=out.value + 9e9) if self.dtype == torch.float32 else out

    checks = {c.name: c for c in verify_agent(dreamer(Rounded))}
    assert not failed(checks.values())
    assert "in float64; in float32" in checks["step = sequence"].detail
    assert "float64" not in checks["nothing kept"].detail
    monkeypatch.setattr(agent_module, "draws_its_state", lambda agent: False)
    assert "step = sequence" in failed(verify_agent(dreamer(Rounded)))


# --- returns ----------------------------------------------------------------------------------------------------------
def cut_missing(reward, value, first, last, terminal, gamma, lam):
    return of_replay(reward, value, first, torch.zeros_like(last), terminal, gamma, lam)


def terminal_lends(reward, value, first, last, terminal, gamma, lam):
    return of_replay(reward, value, first, last, torch.zeros_like(terminal), gamma, lam)


def time_limit_ends(reward, value, first, last, terminal, gamma, lam):
    return of_rollouts(reward, value, first, last, last, gamma, lam)


def reward_too_early(reward, value, first, last, terminal, gamma, lam):
    return of_rollouts(reward.roll(-1, 1), value, first, last, terminal, gamma, lam)


def no_lambda(reward, value, first, last, terminal, gamma, lam):
    return of_rollouts(reward, value, first, last, terminal, gamma, 1.0)


def advantage_alone(reward, value, first, last, terminal, gamma, lam):
    return of_rollouts(reward, value, first, last, terminal, gamma, lam) - value[:, :-1]


def undiscounted_reward(reward, value, first, last, terminal, gamma, lam):
    live = gamma * (1 - terminal.to(reward.dtype))
    return lambda_return(gamma * reward, live, value, lam, last)


@pytest.mark.parametrize("numbers", [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0), (0.5, 1.0)])
@pytest.mark.parametrize("returns", [of_rollouts, of_replay])
def test_returns_of_both_kinds_are_the_closed_form_and_the_forward_view(returns, numbers):
    assert not failed(return_checks("", returns, *numbers))


@pytest.mark.parametrize("returns", [
    cut_missing, terminal_lends, time_limit_ends, reward_too_early, no_lambda, advantage_alone, undiscounted_reward,
])  # fmt: skip
def test_wrong_returns_are_found(returns):
    assert "returns: forward view" in failed(return_checks("", returns, 0.9, 0.8))
    if returns is not cut_missing and returns is not reward_too_early:  # one episode, one reward: neither shows
        assert "returns: closed form" in failed(return_checks("", returns, 0.9, 0.8))
