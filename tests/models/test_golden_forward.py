"""Forward pass with the official random samples injected: encoder, posterior, prior, decoder, heads, imagination."""

from __future__ import annotations

import pytest
import torch

from tests.models import golden
from torchmem.models import dists
from torchmem.models.dreamer.rssm import State, feature

pytestmark = pytest.mark.usefixtures("product")
TOLERANCE = 5e-6  # the bar is 1e-5
HEADS = {"rew": "reward", "val": "behaviour.value", "slowval": "behaviour.slow_value"}


@torch.no_grad()
def test_observe_decode_and_heads(name: str):
    agent, batch = golden.agent(name), golden.batch(name)
    check = golden.Close(f"{name}/forward", TOLERANCE)
    recorded = {k: torch.as_tensor(v) for k, v in check.recorded.items()}
    obs = {key: batch[key][:, 1:] for key in agent.spec.obs}
    carry = agent.start(batch["deter"][:, 0], batch["stoch"][:, 0])
    check("carry/deter", carry.deter)
    check("carry/stoch", carry.stoch)
    before = {key: batch[key][:, :-1] for key in agent.spec.action}
    for key, value in before.items():
        check(f"prevact/{key}", value)
    tokens = agent.encode(obs)
    check("tokens", tokens)
    noise = golden.forcing(recorded["post/stoch"])
    states, logits = agent.dynamics.observe(carry, agent.action_vector(before), tokens, batch["is_first"][:, 1:], noise)
    check("post/deter", states.deter)
    check("post/stoch", states.stoch)
    check("post/logit", logits)
    check("final_carry/deter", states.deter[:, -1])
    check("final_carry/stoch", states.stoch[:, -1])
    prior = agent.dynamics.prior(states.deter)
    check("prior_logit", prior)
    post_log, prior_log = dists.unimix(logits, 0.01), dists.unimix(prior, 0.01)
    check("post_logit_unimix", post_log)
    check("kl_unclipped", dists.categorical_kl(post_log, prior_log))
    feat = feature(states)
    check("feat2tensor", feat)

    losses, _, metrics = agent.world_loss(batch, noise)
    for key, loss in losses.items():
        check(f"loss/{key}", loss)
    for key in ("dyn_ent", "rep_ent"):
        check(f"met/{key}", metrics[key])

    predictions = agent.decoder(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))
    for key, value in predictions.items():
        check(f"dec/{key}_mean" if key == "image" else f"dec/{key}", value.unflatten(0, (2, 8)))
    for short, path in HEADS.items():
        head = agent.get_submodule(path)
        check(f"{short}/logits", head(feat))
        # from identical logits only: the expectation magnifies the last bit of a logit (spec, trap 2)
        check(f"{short}/pred", head.mean(recorded[f"{short}/logits"]))
    check("con/logit", agent.cont(feat))
    check("con/prob1", torch.sigmoid(agent.cont(feat)))
    check("con/pred", agent.cont(feat) > 0)

    policy = agent.behaviour.policy
    params = policy(feat)
    entropy = policy.entropy(params)
    for key, values in params.items():
        outputs = ("logits",) if agent.spec.action[key].discrete else ("mean", "stddev")
        for output, value in zip(outputs, values, strict=True):
            check(f"pol/{key}/{output}", value)
        check(f"pol/{key}/entropy", entropy[key])
    recorded_logp = sum(recorded[f"pol/{key}/logp"] for key in params)
    ours = policy.logp(params, {key: batch[key][:, 1:] for key in params})
    assert torch.allclose(ours, recorded_logp, rtol=0, atol=TOLERANCE * float(recorded_logp.abs().max()))
    check.done(but=("imag/", *(f"pol/{key}/{part}" for key in params for part in ("logp", "minent", "maxent"))))


@torch.no_grad()
def test_imagination_under_given_actions(name: str):
    agent = golden.agent(name)
    check = golden.Close(f"{name}/forward", TOLERANCE)
    recorded = {k: torch.as_tensor(v) for k, v in check.recorded.items()}
    state = State(recorded["final_carry/deter"], recorded["final_carry/stoch"])  # goes on where the sequence ended
    actions = agent.action_vector({key: recorded[f"imag/act/{key}"] for key in agent.spec.action})
    noise = golden.forcing(recorded["imag/feat/stoch"])
    steps = []
    for t in range(actions.shape[1]):
        state, logit = agent.dynamics.imagine_step(state, actions[:, t], noise[:, t])
        steps.append((*state, logit))
    for key, values in zip(("deter", "stoch", "logit"), zip(*steps, strict=True), strict=True):
        check(f"imag/feat/{key}", torch.stack(values, 1))
    check("imag/carry/deter", state.deter)
    check("imag/carry/stoch", state.stoch)
    assert not check.misses, check.misses
