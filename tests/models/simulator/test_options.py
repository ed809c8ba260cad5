"""Gaussian latents, truncated gradients through time, Gumbel choices (spec R5): against formulas and cut graphs."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.models.simulator import tiny
from torchmem.models.noise import Noise
from torchmem.models.simulator import losses as terms
from torchmem.models.simulator.latents import SMALLEST, Gaussian, latents_of
from torchmem.models.simulator.packing import with_gradient
from torchmem.models.simulator.protocol import Paths, Start
from torchmem.models.simulator.rollout import rollout, rollout_noise
from torchmem.models.simulator.window import cut_window

SEED = torch.Generator


def normals(known: torch.Tensor) -> Normal:
    return Normal(known[..., 0], known[..., 1])


def test_gaussian_latents_are_torchs():
    z = Gaussian(tiny.config(latents="gaussian"))
    raw = [torch.randn(2, 3, 2, generator=SEED().manual_seed(s), requires_grad=True) for s in (0, 1)]
    one, other = (z.read(x) for x in raw)
    torch.testing.assert_close(one[..., 1], torch.nn.functional.softplus(raw[0][..., 1]) + SMALLEST)
    truth = kl_divergence(normals(one), normals(other)).sum(-1)
    torch.testing.assert_close(z.kl(one, other), truth)
    noise = z.noise((50_000,), SEED().manual_seed(2), torch.device("cpu"))
    drawn = z.draw(one[:1], noise)
    assert drawn.shape == (50_000, 3, 1) and torch.equal(z.draw(one, None)[..., 0], one[..., 0])
    torch.testing.assert_close(drawn[..., 0].mean(0), one[0, :, 0], rtol=0, atol=0.05)
    torch.testing.assert_close(drawn[..., 0].std(0), one[0, :, 1], rtol=0.05, atol=0)
    terms.balanced_kl(one, other, 0.8, z.kl).sum().backward()
    leaves = [x.detach().clone().requires_grad_() for x in raw]
    kl_divergence(*(normals(z.read(x)) for x in leaves)).sum().backward()
    torch.testing.assert_close(raw[0].grad, 0.2 * leaves[0].grad)
    torch.testing.assert_close(raw[1].grad, 0.8 * leaves[1].grad)


def test_a_gaussian_simulator_learns_plays_and_is_smooth_in_its_noise():
    net = tiny.simulator(tiny.ppo(), latents="gaussian")
    assert latents_of(net.config).shape == (3, 1)
    batch, noise = net.random_batch(4, 8), net.training_noise(4, 8, SEED().manual_seed(0))
    optimiser, seen = net.optimiser(), []
    for _ in range(40):
        out = net.loss(batch, noise)
        optimiser.zero_grad(set_to_none=True)
        out.total.backward()
        assert all(p.grad is not None for _, p in net.trained())
        optimiser.step()
        seen.append(float(out.total.detach()))
    assert seen[-1] < 0.8 * seen[0]
    start = net.begin(tiny.context(tiny.VECTOR, net.agent_loop))
    assert start.world.stoch.shape == (3, 3, 1)
    mode = rollout(net, net.agent_loop, start, 4)
    drawn = rollout_noise(net, net.agent_loop, 3, 4, SEED().manual_seed(1), actions=False)
    noisy = rollout(net, net.agent_loop, start, 4, drawn)
    assert mode.state.shape == (3, 4, 8 + 3) and not torch.equal(mode.obs["view"][:, 1], noisy.obs["view"][:, 1])
    net.from_latent(net.random_latent(2, SEED().manual_seed(0)))
    net.dtype = torch.bfloat16
    assert net.loss(batch, noise).total.isfinite()


def grads_by_step(net, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """How the last step hangs on the start: the world's h by the start vector, the agent's memory by each frame."""
    window = cut_window(batch, net.spec, net.context)
    latent = net.encode(window.context).detach().requires_grad_()
    obs = {"view": window.obs["view"], "kind": torch.nn.functional.one_hot(window.obs["kind"], 4).float()}
    tokens = net.embed({key: value.flatten(0, 1) for key, value in obs.items()}).unflatten(0, window.weight.shape)
    begin = net.state(latent, None)
    states, _, _ = net.transition.posterior(begin, net.actions_before(window), tokens.detach(), None)
    (by_start,) = torch.autograd.grad(states.deter[:, -1].sum(), latent, allow_unused=True)
    frames = {key: value.clone().requires_grad_(value.is_floating_point()) for key, value in obs.items()}
    never = torch.zeros(window.weight.shape, dtype=torch.bool)
    before = net.agent_loop.packing.unpack(window.context.memory[:, -2])
    memory = net.agent_loop.memories(frames, window.actions, never, before, Noise.mode(), net.config.truncate)
    (by_frame,) = torch.autograd.grad(memory[:, -1].sum(), frames["view"])
    return torch.zeros_like(latent) if by_start is None else by_start, by_frame.abs().sum((0, 2))


def test_truncation_cuts_gradients_through_time_and_no_value():
    whole = tiny.simulator(tiny.ppo())
    batch = whole.random_batch(2, 7)
    batch["is_first"][:, 1:] = False  # 6 simulated steps
    noise = whole.training_noise(2, 7, SEED().manual_seed(0))
    expected = whole.loss(batch, noise)
    by_start, by_frame = grads_by_step(whole, batch)
    assert by_start.any() and (by_frame > 0).all()
    for every, reach in ((3, 3), (4, 2), (1, 1), (6, 6)):
        net = tiny.simulator(tiny.ppo(), truncate=every)
        net.load_state_dict(whole.state_dict())
        out = net.loss(batch, noise)
        for name, value in out.metrics.items():
            torch.testing.assert_close(value, expected.metrics[name], rtol=1e-5, atol=1e-6, msg=name)
        by_start, by_frame = grads_by_step(net, batch)
        assert by_start.any() == (every == 6), "the world's state is cut"
        assert [bool(x) for x in by_frame] == [t >= 6 - reach for t in range(6)], "and the agent's memory"
        out.total.backward()
        assert all(p.grad is not None for _, p in net.trained())


@pytest.mark.parametrize("kind", tiny.AGENTS)
def test_memories_in_parts_are_those_of_the_whole(kind):
    agent = tiny.AGENTS[kind]()
    loop = tiny.AgentLoop(agent)
    told = tiny.context(tiny.VECTOR, loop, steps=7)
    obs = {"view": told.obs["view"], "kind": torch.nn.functional.one_hot(told.obs["kind"], 4).float()}
    carry = loop.packing.unpack(told.memory[:, 0])
    draws = agent.sequence_noise(3, 7, SEED().manual_seed(0))
    whole = loop.memories(obs, told.actions, told.is_first, carry, draws)
    for every in (1, 3, 7, 9):
        part = loop.memories(obs, told.actions, told.is_first, carry, draws, every)
        torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-5)


def test_a_gumbel_choice_passes_the_gradient_of_its_own_draw():
    net = tiny.simulator(tiny.ppo())
    start = net.begin(tiny.context(tiny.VECTOR, net.agent_loop))
    start = Start(with_gradient(start.world), with_gradient(start.agent), start.is_first)
    drawn = rollout_noise(net, net.agent_loop, 3, 1, SEED().manual_seed(3), world=False)
    acted = rollout(net, net.agent_loop, start, 1, drawn, paths=Paths(through="gumbel")).turns[0].acted
    logits = acted.params["logits.action"]
    (passed,) = torch.autograd.grad(acted.vector[:, 1].sum(), logits, retain_graph=True)
    free = logits.detach().requires_grad_()
    gumbel = drawn.agent[0].action["action"]
    (truth,) = torch.autograd.grad(torch.softmax(free + gumbel, -1)[:, 1].sum(), free)
    torch.testing.assert_close(passed, truth)
    assert torch.equal(acted.action["action"], (free + gumbel).argmax(-1)), "the choice is that of the draw"
    mode = rollout(net, net.agent_loop, start, 1, paths=Paths(through="gumbel")).turns[0].acted
    (passed,) = torch.autograd.grad(mode.vector[:, 1].sum(), mode.params["logits.action"])
    (truth,) = torch.autograd.grad(torch.softmax(free, -1)[:, 1].sum(), free)
    torch.testing.assert_close(passed, truth)


def test_what_does_not_go_together_is_told():
    for changes, told in (
        ({"latents": "gaussian", "transition": "s5"}, "latents must be categorical"),
        ({"truncate": 3, "transition": "s5"}, "truncate must be 0"),
        ({"latents": "normal"}, "categorical or gaussian"),
        ({"truncate": -1}, "at least 0"),
    ):
        with pytest.raises(ValueError, match=told):
            tiny.config(**changes)
    assert dataclasses.asdict(tiny.config())["latents"] == "categorical"
