"""The whole agent against the recorded `agent_tiny`: losses, gradients, imagination, returns; samples are forced."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from tests.models.golden import forcing
from tests.models.r2i.arrays import arrays, tensor, under
from torchmem.models import dists
from torchmem.models.importers.r2i import config_from_official, from_arrays, translate
from torchmem.models.noise import Noise
from torchmem.models.r2i.agent import R2IAgent
from torchmem.models.r2i.dynamics import State, feature
from torchmem.types import EnvSpec, Space

NAME, TOLERANCE = "agent_tiny", 1e-4
SPEC = EnvSpec("golden", {"observation": Space((5,), "float32")}, {"action": Space((), "int32", 4)}, 1.0)
OFFICIAL = json.loads(
    """{"rssm.deter": 10, "rssm.units": 12, "rssm.hidden": 8, "rssm.stoch": 3, "rssm.classes": 4, "rssm.act": "silu",
    "rssm.norm": "layer", "rssm.initial": "learned", "rssm.unimix": 0.01, "rssm.action_clip": 1.0,
    "rssm.nonrecurrent_enc": true, "encoder.mlp_layers": 1, "encoder.mlp_units": 9, "encoder.cnn_depth": 32,
    "encoder.cnn_blocks": 0, "encoder.symlog_inputs": true, "decoder.mlp_layers": 1, "decoder.mlp_units": 9,
    "decoder.image_dist": "mse", "decoder.vector_dist": "symlog_mse", "decoder.cnn_sigmoid": false,
    "reward_head.layers": 1, "reward_head.units": 9, "reward_head.dist": "symlog_disc", "reward_head.bins": 31,
    "cont_head.layers": 1, "cont_head.units": 9, "cont_head.dist": "binary", "loss_scales.image": 1.0,
    "loss_scales.vector": 1.0, "loss_scales.reward": 1.0, "loss_scales.cont": 1.0, "loss_scales.dyn": 0.8,
    "loss_scales.rep": 0.2, "loss_scales.actor": 1.0, "loss_scales.critic": 1.0, "loss_scales.slowreg": 1.0,
    "dyn_loss.impl": "kl", "dyn_loss.free": 1.0, "rep_loss.impl": "kl", "rep_loss.free": 1.0, "actor.layers": 2,
    "actor.units": 9, "actor.minstd": 0.1, "actor.maxstd": 1.0, "actor.outscale": 1.0, "actor.unimix": 0.01,
    "actor.inputs": ["deter", "stoch", "hidden"], "critic.layers": 2, "critic.units": 9, "critic.dist": "symlog_disc",
    "critic.inputs": ["deter", "stoch", "hidden"], "critic.bins": 31, "imag_horizon": 5, "horizon": 333,
    "return_lambda": 0.95, "critic_slowreg": "logprob", "retnorm.impl": "perc_ema", "retnorm.decay": 0.99,
    "retnorm.max": 1.0, "retnorm.perclo": 5.0, "retnorm.perchi": 95.0, "actent": 0.0003, "ssm_cell.reset_mode": "init",
    "ssm_cell.n_blocks": 2, "ssm_cell.C_init": "trunc_standard_normal", "ssm_cell.conj_sym": false,
    "ssm_cell.discretization": "bilinear", "ssm_cell.clip_eigs": false, "ssm_cell.dt_min": 0.001,
    "ssm_cell.dt_max": 0.1, "ssm.n_layers": 2, "ssm.prenorm": false, "ssm.mlp": true, "ssm.glu": true,
    "ssm.dropout": 0.0, "ssm.conv": false, "ssm.use_norm": true}"""
)


@functools.cache
def agent() -> R2IAgent:
    return from_arrays(under(NAME, "param."), OFFICIAL, SPEC)


def batch() -> dict[str, torch.Tensor]:
    """The recorded batch behind a context step, which nothing may depend on."""
    data = {key: torch.as_tensor(value) for key, value in under(NAME, "data.").items()}
    data["action"] = data["action"].argmax(-1).int()
    context = {key: torch.ones_like(value[:, :1]) for key, value in data.items()}
    return {key: torch.cat([context[key], value], 1) for key, value in data.items()}


def noise() -> Noise:
    stoch, action = arrays(NAME)["imag.stoch"], arrays(NAME)["imag.action"]
    return Noise(
        posterior=forcing(arrays(NAME)["wm.post.stoch"]),
        prior=forcing(stoch[1:]).transpose(0, 1),
        action={"action": forcing(action).transpose(0, 1)},
    )


def close(ours: torch.Tensor, key: str) -> None:
    recorded = tensor(NAME, key)
    assert ours.shape == recorded.shape, key
    error = float((ours.detach() - recorded).abs().max() / recorded.abs().max().clamp(min=1))
    assert error <= TOLERANCE, f"{key}: off by {error:.1e}"


def test_world_model_losses():
    made, given = agent(), batch()
    losses, states, _ = made.world_loss(given, noise().posterior)
    named = {"dyn": "dyn", "rep": "rep", "rew": "reward", "con": "cont", "observation": "observation"}
    assert losses.keys() == named.keys()
    for ours, theirs in named.items():
        close(losses[ours], f"wm.{theirs}_loss")
    close(torch.stack([made.scale(k) * v.mean() for k, v in losses.items()]).sum(), "wm.loss_total")
    for key, value in states._asdict().items():
        close(value, f"wm.post.{key}")
    close(made.encode({"observation": given["observation"][:, 1:]}), "wm.embed")
    close(dists.unimix(made.dynamics.prior(states.deter), 0.01), "wm.prior.logit")
    feat = feature(states)
    close(made.reward(feat), "wm.reward_logits")
    close(made.reward.mean(made.reward(feat)), "wm.reward_mean")
    close(torch.sigmoid(made.cont(feat)), "wm.cont_mean")
    decoded = made.decoder(states.deter.flatten(0, 1), states.stoch.flatten(0, 1))["observation"]
    close(dists.symexp(decoded).unflatten(0, (3, 10)), "wm.decoder_mode")


def test_world_model_gradients():
    made = agent()
    made.zero_grad()
    losses, _, _ = made.world_loss(batch(), noise().posterior)
    torch.stack([made.scale(k) * v.mean() for k, v in losses.items()]).sum().backward()
    recorded = dict(translate(key, value) for key, value in under(NAME, "wm.grad.").items())
    assert not recorded.pop("dynamics.start_deter").any()  # why it is not trained
    ours = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    assert ours.keys() == recorded.keys()
    for name, value in recorded.items():
        error = float((ours[name] - value).abs().max() / value.abs().max().clamp(min=1e-6))
        assert error <= TOLERANCE, f"{name}: off by {error:.1e} of its largest entry"


def test_imagination_returns_and_behaviour_losses():
    made = agent()
    behaviour, caught = made.behaviour, {}

    def watched(feat, action, reward, cont, real=behaviour.imagination_loss):
        caught.update(feat=feat, action=action, reward=reward, cont=cont)
        caught["losses"], caught["returns"], caught["metrics"], caught["range"] = real(feat, action, reward, cont)
        return tuple(caught[key] for key in ("losses", "returns", "metrics", "range"))

    behaviour.imagination_loss = watched
    try:
        states = State(*(tensor(NAME, f"wm.post.{key}").unflatten(-1, shape) for key, shape in
                         (("deter", (10,)), ("stoch", (4,)), ("hidden", (16,)))))  # fmt: skip
        states = State(states.deter, tensor(NAME, "wm.post.stoch"), tensor(NAME, "wm.post.hidden"))
        made.acting_loss(states, batch()["is_terminal"][:, 1:], noise())
    finally:
        del behaviour.imagination_loss
    start = State(*(part.flatten(0, 1) for part in states))
    with torch.no_grad():
        imagined = made.imagine(start, 5, noise())
    for key, value in imagined.states._asdict().items():
        close(value.transpose(0, 1), f"imag.{key}")
    assert torch.equal(made.action_vector(imagined.action).transpose(0, 1), tensor(NAME, "imag.action"))
    assert torch.equal(imagined.feat, caught["feat"])
    close(caught["cont"].T, "imag.cont")
    discount = 1 - 1 / 333
    close((torch.cumprod(discount * caught["cont"], 1) / discount).T, "imag.weight")
    close(caught["reward"][:, 1:].T, "ac.reward")
    close(caught["returns"].T, "ac.ret")
    close(caught["range"]["return_low"], "ac.retnorm_offset")
    scale = (caught["range"]["return_high"] - caught["range"]["return_low"]).clamp(min=1)
    close(scale, "ac.retnorm_invscale")
    params, feat = behaviour.policy(imagined.feat), imagined.feat
    close(behaviour.policy.logp(params, imagined.action).T, "ac.actor_logp")
    close(behaviour.policy.entropy(params)["action"].T, "ac.actor_entropy")
    logits = behaviour.value(feat)
    close(logits.transpose(0, 1), "ac.value_logits")
    close(behaviour.value.mean(logits).T, "ac.value_mean")
    close(behaviour.value.mean(logits)[:, :-1].T, "ac.base")
    close(behaviour.slow_value.mean(behaviour.slow_value(feat)).T, "ac.slow_value_mean")
    close(caught["losses"]["policy"].mean(), "ac.actor_loss")
    close(caught["losses"]["value"].mean(), "ac.critic_loss")


def test_total_loss_keeps_the_parts_apart():
    """One backward pass gives the world model the gradients of its own losses alone."""
    made = agent()
    made.zero_grad()
    out = made.loss(batch(), noise())
    out.total.backward()
    recorded = dict(translate(key, value) for key, value in under(NAME, "wm.grad.").items())
    recorded.pop("dynamics.start_deter")
    for name, p in made.trained():
        assert p.grad is not None, name
        if name in recorded:
            limit = TOLERANCE * recorded[name].abs().max().clamp(min=1e-6)
            assert (p.grad - recorded[name]).abs().max() <= limit, name
    assert all(p.grad is None for p in made.behaviour.slow_value.parameters())
    made.zero_grad()


def test_importer_refuses_by_name():
    arrays_ = under(NAME, "param.")
    with pytest.raises(KeyError, match="h7"):
        from_arrays({**arrays_, "wm.rew.h7.kernel": arrays_["wm.rew.h0.kernel"]}, OFFICIAL, SPEC)
    with pytest.raises(KeyError, match=r"dynamics\.input\.linear\.weight"):
        from_arrays({k: v for k, v in arrays_.items() if k != "wm.rssm.img_in.kernel"}, OFFICIAL, SPEC)
    with pytest.raises(ValueError, match="img_in"):
        from_arrays({**arrays_, "wm.rssm.img_in.kernel": arrays_["wm.rssm.img_out.kernel"]}, OFFICIAL, SPEC)
    with pytest.raises(ValueError, match=r"ssm\.dropout"):
        config_from_official({**OFFICIAL, "ssm.dropout": 0.1})
