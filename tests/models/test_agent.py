"""What an agent promises whatever its weights: acting equals learning, resets cut, truth stays out, loss is pure."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from torchmem.models.dreamer import rssm
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.dreamer.rssm import State, feature
from torchmem.models.layers import RMSNorm
from torchmem.models.noise import Noise
from torchmem.types import EnvSpec, Space

B, T = 3, 6
OBS = {"vector": Space((5,), "float32"), "token": Space((), "int32", 4)}
ACTION = {"turn": Space((), "int32", 3), "push": Space((2,), "float32", low=-1, high=1)}
SPEC = EnvSpec("toy", OBS, ACTION, control_hz=1.0, truth={"pos": "cells"})
IMAGE = EnvSpec("toy", {"image": Space((48, 48, 3), "uint8")}, {"action": Space((), "int32", 4)}, control_hz=1.0)
CONFIG = DreamerConfig(deter=32, hidden=16, classes=6, stoch=4, depth=2, units=16, imag_length=3)
PATTERNS = {"first": [0], "middle": [0, 3], "last": [0, 5], "none": [], "every": list(range(T))}


def make(spec: EnvSpec = SPEC, dtype: torch.dtype = torch.float32, **changes) -> DreamerAgent:
    """An agent whose every head says something."""
    agent = DreamerAgent(spec, DreamerConfig(**{**vars(CONFIG), **changes}))
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(0.1 * torch.randn_like(p))
    agent.dtype = dtype
    return agent.to(dtype) if dtype == torch.float64 else agent


def world(spec: EnvSpec = SPEC, steps: int = T, resets: list[int] | None = None) -> dict[str, Tensor]:
    """A batch (B, steps, ...) of anything, with its context's latents."""
    batch = {}
    for key, space in {**spec.obs, **spec.action}.items():
        shape = (B, steps, *space.shape)
        if space.image:
            batch[key] = torch.randint(0, 256, shape, dtype=torch.uint8)
        elif space.discrete:
            batch[key] = torch.randint(0, space.classes, shape, dtype=torch.int32)
        else:
            batch[key] = torch.randn(shape).clamp(-1, 1)
    batch["reward"] = torch.randn(B, steps)
    for key in ("is_first", "is_last", "is_terminal"):
        batch[key] = torch.zeros(B, steps, dtype=torch.bool)
    batch["is_first"][:, resets or []] = True
    batch["deter"] = torch.tanh(torch.randn(B, steps, CONFIG.deter))
    batch["stoch"] = torch.randint(0, CONFIG.classes, (B, steps, CONFIG.stoch), dtype=torch.uint8)
    return batch


# Acting and learning -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("spec", [SPEC, IMAGE], ids=["vector", "image"])
@torch.no_grad()
def test_acting_step_by_step_equals_observing_the_sequence(spec, pattern: str, dtype, tolerance: float):
    agent, batch = make(spec, dtype), world(spec, resets=PATTERNS[pattern])
    carry = agent.initial(B)
    # acting goes on from somewhere, so that a reset has something to cut
    start = agent.start(batch["deter"][:, 0], batch["stoch"][:, 0])
    carry = carry._replace(deter=start.deter, stoch=start.stoch, action=torch.rand_like(carry.action))
    noises = [agent.acting_noise(B, torch.Generator().manual_seed(t)) for t in range(T)]
    before, states = [], []
    for t, noise in enumerate(noises):
        before.append(carry.action)
        obs = {key: batch[key][:, t] for key in (*spec.obs, "is_first")}
        chosen, carry, latents = agent.policy(obs, carry, noise)
        assert torch.equal(carry.action, agent.action_vector(chosen))
        assert torch.equal(latents["stoch"].long(), carry.stoch.argmax(-1))
        states.append((carry.deter, carry.stoch))
    posterior = torch.stack([noise.posterior for noise in noises], 1)
    seen, _ = agent.dynamics.observe(start, torch.stack(before, 1), agent.encode(batch), batch["is_first"], posterior)
    deter, stoch = (torch.stack(part, 1) for part in zip(*states, strict=True))
    torch.testing.assert_close(seen.deter, deter, rtol=0, atol=tolerance)
    assert torch.equal(seen.stoch.argmax(-1), stoch.argmax(-1))


@torch.no_grad()
def test_a_reset_inside_a_sequence_equals_two_sequences():
    agent, batch = make(), world(resets=[3])
    tokens, actions = agent.encode(batch), agent.action_vector(batch)
    noise = agent.training_noise(B, T, None).posterior
    start = agent.start(batch["deter"][:, 0], batch["stoch"][:, 0])
    whole, logits = agent.dynamics.observe(start, actions, tokens, batch["is_first"], noise)
    first = agent.dynamics.observe(start, actions[:, :3], tokens[:, :3], batch["is_first"][:, :3], noise[:, :3])
    fresh = agent.dynamics.initial(B, agent.device, torch.float32)
    nothing = torch.zeros_like(actions[:, 3:])
    nothing[:, 1:] = actions[:, 4:]  # the action before the new episode's first step counts as zero
    begun = torch.zeros_like(batch["is_first"][:, 3:])
    second = agent.dynamics.observe(fresh, nothing, tokens[:, 3:], begun, noise[:, 3:])
    for ours, parts in ((whole.deter, (first[0].deter, second[0].deter)), (logits, (first[1], second[1]))):
        torch.testing.assert_close(ours, torch.cat(parts, 1), rtol=0, atol=1e-6)


def test_no_gradient_crosses_a_reset():
    agent, batch = make(), world(resets=[3])
    tokens = agent.encode(batch).detach().requires_grad_()
    states, _ = agent.dynamics.observe(
        agent.start(batch["deter"][:, 0], batch["stoch"][:, 0]),
        agent.action_vector(batch),
        tokens,
        batch["is_first"],
        None,
    )
    (grad,) = torch.autograd.grad(states.deter[:, 5].sum(), tokens)
    assert not grad[:, :3].any() and grad[:, 3:5].abs().sum() > 0


@torch.no_grad()
def test_imagination_steps_what_observation_steps():
    """Core is shared: a prior step and a posterior step from the same state reach the same deter."""
    agent, batch = make(), world()
    start = agent.start(batch["deter"][:, 0], batch["stoch"][:, 0])
    action = agent.action_vector(batch)[:, :1]
    seen, _ = agent.dynamics.observe(start, action, agent.encode(batch)[:, :1], torch.zeros(B, 1, dtype=bool), None)
    imagined, logit = agent.dynamics.imagine_step(start, action[:, 0], None)
    torch.testing.assert_close(seen.deter[:, 0], imagined.deter, rtol=0, atol=1e-6)
    assert torch.equal(imagined.stoch.argmax(-1), logit.argmax(-1))


@torch.no_grad()
def test_imagining_follows_the_policy_and_keeps_the_start():
    agent, batch = make(), world()
    start = agent.start(batch["deter"][:, 0], batch["stoch"][:, 0])
    noise = agent.training_noise(1, B, None)
    out = agent.imagine(start, 3, noise)
    assert out.feat.shape == (B, 4, 32 + 24) and out.action["push"].shape == (B, 4, 2)
    assert torch.equal(out.feat[:, 0], feature(start))
    state = State(out.feat[:, 1, :32], out.feat[:, 1, 32:].unflatten(-1, (4, 6)))
    given = agent.action_vector({key: value[:, 1] for key, value in out.action.items()})
    again, _ = agent.dynamics.imagine_step(state, given, noise.prior[:, 1])
    torch.testing.assert_close(feature(again), out.feat[:, 2], rtol=0, atol=1e-6)


# What the agent may see ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clash", [{"pos": Space((2,), "float32")}, {"reward": Space((), "float32")}])
def test_a_spec_refuses_truth_and_reserved_keys_as_observations(clash: dict):
    with pytest.raises(ValueError, match="reserved, truth or action keys"):
        EnvSpec("toy", {**OBS, **clash}, ACTION, control_hz=1.0, truth={"pos": "cells"})


def test_keys_outside_the_spec_change_nothing():
    agent, batch = make(), world()
    noise = agent.training_noise(B, T - 1, None)
    plain = agent.loss(batch, noise)
    told = agent.loss({**batch, "pos": torch.full((B, T, 2), torch.nan), "log/x": torch.zeros(B, T)}, noise)
    assert torch.equal(plain.total, told.total)
    obs = {key: value[:, 0] for key, value in batch.items()}
    quiet = agent.policy({k: obs[k] for k in (*OBS, "is_first")}, agent.initial(B), Noise.mode())
    full = agent.policy({**obs, "pos": torch.full((B, 2), torch.nan)}, agent.initial(B), Noise.mode())
    assert torch.equal(quiet[1].deter, full[1].deter)


# Learning ------------------------------------------------------------------------------------------------------------


def test_loss_changes_nothing_and_commit_only_what_it_should():
    agent, batch = make(), world()
    noise = agent.training_noise(B, T - 1, None)
    before = {key: value.clone() for key, value in agent.state_dict().items()}
    given = {key: value.clone() for key, value in batch.items()}
    random = torch.get_rng_state()
    out, again = agent.loss(batch, noise), agent.loss(batch, noise)
    assert torch.equal(out.total, again.total)  # no state, so the second pass is the first
    assert all(torch.equal(value, before[key]) for key, value in agent.state_dict().items())
    assert all(torch.equal(value, given[key]) for key, value in batch.items())
    assert torch.equal(random, torch.get_rng_state())
    agent.commit(out)
    changed = {key for key, value in agent.state_dict().items() if not torch.equal(value, before[key])}
    slow = {key for key in before if key.startswith("behaviour.slow_value.")}
    assert changed == slow | {"behaviour.return_low", "behaviour.return_high"}
    for key in slow:
        fast = before[key.replace("slow_value", "value")]
        torch.testing.assert_close(agent.state_dict()[key], 0.98 * before[key] + 0.02 * fast)


def test_every_trained_parameter_gets_a_gradient_and_the_slow_critic_none():
    for spec in (SPEC, IMAGE):
        agent = make(spec)
        agent.loss(world(spec), agent.training_noise(B, T - 1, None)).total.backward()
        dead = [name for name, p in agent.trained() if p.grad is None or not p.grad.isfinite().all()]
        assert not dead
        assert all(p.grad is None for p in agent.behaviour.slow_value.parameters())


def test_stored_latents_start_the_next_pass():
    """What `loss` returns for replay is what `loss` reads as context: the same states when the sequence is cut."""
    agent, batch = make(), world(steps=7)
    posterior = agent.training_noise(B, 6, None).posterior
    _, whole, _ = agent.world_loss(batch, posterior)
    stored = agent.stored(whole)
    later = {key: value[:, 3:] for key, value in batch.items()}
    later["deter"], later["stoch"] = (stored[key][:, 2:] for key in ("deter", "stoch"))
    _, part, _ = agent.world_loss(later, posterior[:, 3:])
    torch.testing.assert_close(part.deter, whole.deter[:, 3:], rtol=0, atol=1e-6)


def test_the_return_range_sees_the_gathered_returns():
    agent, batch = make(), world()
    noise = agent.training_noise(B, T - 1, None)
    alone = agent.loss(batch, noise).state
    agent.behaviour.gather = lambda returns: torch.cat([returns, returns + 100.0])
    together = agent.loss(batch, noise).state
    assert float(together["return_high"] - alone["return_high"]) > 0.5  # 0.01 of about 100


def test_deferred_weight_gradients_of_the_dynamics_equal_plain_ones(monkeypatch):
    agent, batch = make(dtype=torch.float64), world(resets=[2])

    def norm(self: RMSNorm, x: Tensor) -> Tensor:  # without its float32 island, whose rounding would hide the rest
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.scale

    monkeypatch.setattr(RMSNorm, "forward", norm)
    monkeypatch.setattr(rssm, "unimix", lambda logits, share: torch.log_softmax(logits, -1))
    start = agent.start(batch["deter"][:, 0], batch["stoch"][:, 0])
    tokens, actions = agent.encode(batch).detach(), agent.action_vector(batch)
    found = {}
    for defer in (True, False):
        with monkeypatch.context() as patch:
            if not defer:
                patch.setattr(rssm, "deferred_weight_gradients", contextlib.nullcontext)
            states, logits = agent.dynamics.observe(start, actions, tokens, batch["is_first"], None)
        total = states.deter.sin().sum() + states.stoch.square().sum() + logits.cos().sum()
        params = dict(agent.dynamics.named_parameters())
        grads = torch.autograd.grad(total, list(params.values()), allow_unused=True)
        found[defer] = {n: g for n, g in zip(params, grads, strict=True) if g is not None}
    assert found[True].keys() == found[False].keys()
    assert {"core.gates.weight", "core.hidden.0.weight", "posterior.linear.weight"} <= found[True].keys()
    for key, plain in found[False].items():
        assert float((found[True][key] - plain).abs().max()) <= 1e-12 * max(float(plain.abs().max()), 1.0), key
