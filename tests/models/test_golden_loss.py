"""All losses with argmax sampling, every internal of imagination and returns, metrics, and the return range."""

from __future__ import annotations

import pytest
import torch

from tests.models import golden

pytestmark = pytest.mark.usefixtures("product")
TOLERANCE = 1e-5


def captured(agent, batch, noise):
    """A pass of `loss` with the inputs and outputs of the behaviour's two losses and the prior's logits."""
    inner = {"prior": []}
    behaviour = agent.behaviour
    imagination, replay = behaviour.imagination_loss, behaviour.replay_loss

    def on_imagination(feat, action, reward, cont):
        out = imagination(feat, action, reward, cont)
        inner["imagination"] = (feat, action, reward, cont, out)
        return out

    def on_replay(feat, reward, last, terminal, boot):
        out = replay(feat, reward, last, terminal, boot)
        inner["replay"] = (feat, last, boot, out)
        return out

    behaviour.imagination_loss, behaviour.replay_loss = on_imagination, on_replay
    agent.dynamics.prior.register_forward_hook(lambda _, __, logit: inner["prior"].append(logit))
    return agent.loss(batch, noise), inner


def test_losses_and_internals(name: str):
    agent, batch = golden.agent(name), golden.batch(name)
    check = golden.Close(f"{name}/loss", TOLERANCE)
    out, inner = captured(agent, batch, golden.argmax_noise(name))
    for key, loss in out.losses.items():
        check(f"losses/{key}", loss)
    check("total", out.total)
    check("carry/deter", out.carry.deter)
    check("carry/stoch", out.carry.stoch)
    check("retnorm_after/lo", out.state["return_low"])
    check("retnorm_after/hi", out.state["return_high"])
    check("repfeat/deter", out.latents["deter"])
    one_hot = torch.nn.functional.one_hot(out.latents["stoch"].long(), 8)
    check("repfeat/stoch", one_hot)

    deter = agent.config.deter
    feat, action, reward, cont, (losses, returns, _, _) = inner["imagination"]
    stoch = feat[..., deter:].unflatten(-1, (4, 8))
    check("cap/imagine/start/deter", feat[:, 0, :deter])
    check("cap/imagine/start/stoch", stoch[:, 0])
    check("cap/imagine/feat/deter", feat[:, 1:, :deter])
    check("cap/imagine/feat/stoch", stoch[:, 1:])
    check("cap/imagine/feat/logit", torch.stack(inner["prior"][1:], 1))  # the first call is that of the KL
    for key, value in action.items():
        check(f"cap/imagine/act/{key}", value[:, :-1])
        check(f"cap/imag/act/{key}", value)
    check("cap/imag/rew", reward)
    check("cap/imag/con", cont)
    check("cap/imag/ret", returns)
    behaviour = agent.behaviour
    params = behaviour.policy(feat)
    check("cap/imag/logpi", behaviour.policy.logp(params, action)[:, :-1])
    for key, value in behaviour.policy.entropy(params).items():
        check(f"cap/imag/ent/{key}", value[:, :-1])
    check("cap/imag/val", behaviour.value.mean(behaviour.value(feat)))
    check("cap/imag/slowval", behaviour.slow_value.mean(behaviour.slow_value(feat)))
    check("cap/imag/loss/policy", losses["policy"])
    check("cap/imag/loss/value", losses["value"])

    feat, last, boot, (loss, returns) = inner["replay"]
    check("cap/repl/boot", boot)
    check("cap/repl/ret", returns)
    check("cap/repl/weight", (~last).float())
    check("cap/repl/val", behaviour.value.mean(behaviour.value(feat)))
    check("cap/repl/loss/repval", loss)

    for key, value in out.metrics.items():
        if f"metrics/{key}" in check.recorded:
            # `adv` is a mean of values that nearly cancel; its scale is that of a single one
            check(f"metrics/{key}", value, tolerance=1e-4 if key == "adv" else None)
    # the posterior logits are compared in the forward test; `rand` is the original's rescaled entropy
    check.done(but=("repfeat/logit", "metrics/rand/"))


def test_losses_at_the_official_initialisation_start_at_nothing(name: str):
    """With freshly initialised heads rewards and values are exactly 0, whatever the features."""
    agent = golden.agent(name)
    fresh = type(agent)(agent.spec, agent.config)
    fresh_out, inner = captured(fresh, golden.batch(name), golden.argmax_noise(name))
    _, _, reward, _, (_, returns, _, _) = inner["imagination"]
    assert float(reward.abs().max()) == 0.0 and float(returns.abs().max()) == 0.0
    uniform = torch.log(torch.tensor(255.0))
    assert torch.allclose(fresh_out.losses["rew"], uniform)
    if name == "img_disc":
        recorded = golden.arrays("img_disc/init")
        assert torch.allclose(fresh_out.losses["rew"], torch.as_tensor(recorded["losses/rew"]))
        assert torch.allclose(fresh_out.losses["repval"], torch.as_tensor(recorded["losses/repval"]))
