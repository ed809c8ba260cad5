"""The ways of a gradient: finite differences agree with it, switches cut it, and its parts add up (T8, T9)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from tests.models.simulator import tiny
from torchmem.models.simulator.packing import leaves, with_gradient
from torchmem.models.simulator.protocol import Paths, Rollout, RolloutNoise, Start
from torchmem.models.simulator.rollout import rollout

HORIZON, TARGET = 4, 2


def smooth(paths: Paths | None = None, shift: dict[str, Tensor] | None = None) -> tuple[Rollout, Start]:
    """A rollout in float64 without any jump: continuous actions, one class per latent. shift: added to the start."""
    agent = tiny.ppo(tiny.SMOOTH).double()
    agent.dtype = torch.float64
    net = tiny.simulator(agent, stoch=1, classes=1).double()
    start = net.begin(tiny.context(tiny.SMOOTH, net.agent_loop)._replace(
        obs={"view": torch.randn(3, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(5))},
        memory=torch.randn(3, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).tanh(),
    ))  # fmt: skip
    world, carry = with_gradient(start.world), with_gradient(start.agent)
    if shift:
        world = world._replace(deter=(world.deter + shift.get("deter", 0)).detach().requires_grad_())
        carry = carry._replace(hidden=(carry.hidden + shift.get("hidden", 0)).detach().requires_grad_())
    start = Start(world, carry, start.is_first)
    return rollout(net, net.agent_loop, start, HORIZON, paths=paths), start


def gradient(scalar: Tensor, to: Tensor) -> Tensor:
    if not scalar.requires_grad:
        return torch.zeros_like(to)
    (found,) = torch.autograd.grad(scalar, to, retain_graph=True, allow_unused=True)
    return torch.zeros_like(to) if found is None else found


@pytest.mark.parametrize("part", ["deter", "hidden"])
def test_gradients_through_agent_and_world_agree_with_finite_differences(part):
    found, start = smooth()
    target = found.turns[TARGET].acted.value.sum()
    at = start.world.deter if part == "deter" else start.agent.hidden
    grad = gradient(target, at)
    generator = torch.Generator().manual_seed(7)
    for _ in range(3):
        way = torch.randn(at.shape, dtype=torch.float64, generator=generator)
        step = 1e-6
        ends = [
            float(smooth(shift={part: sign * step * way})[0].turns[TARGET].acted.value.sum().detach())
            for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        assert abs(slope) > 1e-6
        assert slope == pytest.approx(float((grad * way).sum()), rel=1e-5)


def test_without_the_way_through_the_world_an_action_moves_nothing():
    whole, _ = smooth()
    cut, _ = smooth(Paths(env=False))
    for a, b in zip(leaves(whole.turns[-1].acted.carry), leaves(cut.turns[-1].acted.carry), strict=True):
        assert torch.equal(a, b), "values are the same whatever is cut"
    for found, moved in ((whole, True), (cut, False)):
        value = found.turns[TARGET].acted.value.sum()
        world = found.turns[TARGET].seen.obs["view"].sum()
        assert bool(gradient(world, found.turns[TARGET - 1].acted.vector).any()) is moved
        assert bool(gradient(world, found.turns[TARGET - 1].acted.memory).any()) is moved
        assert bool(gradient(value, found.turns[TARGET - 1].acted.memory).any()), "memory itself still carries on"


def test_without_the_way_through_memory_only_the_world_remembers():
    found, start = smooth(Paths(memory=False))
    value = found.turns[TARGET].acted.value.sum()
    assert not gradient(value, start.agent.hidden).any()
    assert gradient(value, start.world.deter).any()
    assert gradient(value, found.turns[TARGET - 1].acted.vector).any(), "through the world"
    neither, start = smooth(Paths(memory=False, env=False))
    assert not gradient(neither.turns[TARGET].acted.value.sum(), neither.turns[TARGET - 1].acted.memory).any()


def test_without_the_way_through_frames_the_agent_is_deaf_to_the_world():
    found, start = smooth(Paths(frames=False))
    value = found.turns[TARGET].acted.value.sum()
    assert not gradient(value, start.world.deter).any() and gradient(value, start.agent.hidden).any()


def test_total_is_internal_plus_external():
    """External, found apart: what every action does through the world, times how that action hangs on the memory."""
    whole, start = smooth()
    total = gradient(whole.turns[TARGET].acted.value.sum(), start.agent.hidden)
    through = [gradient(whole.turns[TARGET].acted.value.sum(), turn.acted.vector) for turn in whole.turns[:TARGET]]
    cut, start = smooth(Paths(env=False))
    internal = gradient(cut.turns[TARGET].acted.value.sum(), start.agent.hidden)
    external = sum(
        torch.autograd.grad(turn.acted.vector, start.agent.hidden, g, retain_graph=True)[0]
        for turn, g in zip(cut.turns, through)
    )
    assert external.abs().max() > 1e-4
    torch.testing.assert_close(internal + external, total, rtol=1e-9, atol=1e-12)


def test_nothing_after_the_target_step_matters():
    found, _ = smooth()
    value = found.turns[TARGET].acted.value.sum()
    for turn in found.turns[TARGET + 1 :]:
        assert not gradient(value, turn.seen.obs["view"]).any()
        assert not gradient(value, turn.before.hidden.mul(1)).any()
    assert gradient(value, found.turns[TARGET].seen.obs["view"]).any()


@pytest.mark.parametrize("through", ["probs", "logp", "none"])
def test_choices_pass_gradient_straight_through_or_not(through):
    net = tiny.simulator(tiny.ppo())
    start = net.begin(tiny.context(tiny.VECTOR, net.agent_loop))
    start = Start(with_gradient(start.world), with_gradient(start.agent), start.is_first)
    found = rollout(net, net.agent_loop, start, 2, paths=Paths(through=through))
    acted = found.turns[0].acted
    chosen = torch.nn.functional.one_hot(acted.action["action"], 3).float()
    torch.testing.assert_close(acted.vector.detach(), chosen, msg="the world gets one choice, not a mixture")
    passed = gradient(acted.vector[:, 1].sum(), acted.params["logits.action"])
    logits = acted.params["logits.action"].detach().requires_grad_()
    soft = {"probs": torch.softmax, "logp": torch.log_softmax}.get(through)
    truth = torch.zeros_like(logits) if soft is None else gradient(soft(logits, -1)[:, 1].sum(), logits)
    torch.testing.assert_close(passed, truth)


def test_an_edit_takes_hold_after_the_heads_or_before_them():
    net = tiny.simulator(tiny.ppo())
    start = net.begin(tiny.context(tiny.VECTOR, net.agent_loop))

    def edit(before, after):
        return after._replace(hidden=after.hidden * 0 + 0.5)

    plain = rollout(net, net.agent_loop, start, 3)
    late = rollout(net, net.agent_loop, start, 3, edit=edit)
    early = rollout(net, net.agent_loop, start, 3, edit=edit, early=True)
    assert torch.equal(plain.value[:, 0], late.value[:, 0]) and not torch.equal(plain.value[:, 1], late.value[:, 1])
    assert not torch.equal(plain.value[:, 0], early.value[:, 0])
    assert torch.equal(late.memory, torch.full_like(late.memory, 0.5))
    same = rollout(net, net.agent_loop, start, 3, edit=lambda before, after: after)
    assert torch.equal(plain.value, same.value)


def test_given_actions_and_noise_are_what_is_used():
    net = tiny.simulator(tiny.ppo())
    loop = net.agent_loop
    start = net.begin(tiny.context(tiny.VECTOR, loop))
    forced = torch.tensor([[2, 0, 1]]).expand(3, -1)
    found = rollout(net, loop, start, 3, actions={"action": forced})
    assert torch.equal(found.action["action"], forced)
    other = rollout(net, loop, start, 3, actions={"action": (forced + 1) % 3})
    assert torch.equal(found.obs["view"][:, 0], other.obs["view"][:, 0])
    assert not torch.equal(found.obs["view"][:, 1], other.obs["view"][:, 1])
    draws = net.world_noise(3, 3, torch.Generator().manual_seed(0))[1]
    noisy = rollout(net, loop, start, 3, dataclasses.replace(RolloutNoise.mode(), world=draws * 50))
    assert torch.equal(noisy.obs["view"][:, 0], found.obs["view"][:, 0])
    assert not torch.equal(noisy.obs["view"][:, 1:], found.obs["view"][:, 1:])
    with pytest.raises(ValueError, match="sees must be"):
        rollout(net, loop, start, 1, sees="eyes")
    with pytest.raises(ValueError, match="leave it at frames"):
        rollout(net, loop, start, 1, sees="latent")


@pytest.mark.parametrize("kind", tiny.AGENTS)
def test_many_gradients_in_one_pass_are_those_of_one_after_the_other(kind):
    """What saliency of many scalars builds on (is_grads_batched); images go through every fused operation."""
    agent = tiny.AGENTS[kind](tiny.IMAGE)
    net = tiny.simulator(agent, vision="irl").requires_grad_(False)
    start = net.begin(tiny.context(tiny.IMAGE, net.agent_loop, rows=2))
    start = Start(with_gradient(start.world), with_gradient(start.agent), start.is_first)
    turns = rollout(net, net.agent_loop, start, 3).turns
    scalars = torch.stack([turns[2].acted.value.sum(), *turns[2].acted.memory[:, :3].sum(0)])
    frames = [turn.seen.obs["image"] for turn in turns]
    many = torch.autograd.grad(scalars, frames, torch.eye(4), is_grads_batched=True, retain_graph=True)
    for i, scalar in enumerate(scalars):
        for a, b in zip(many, torch.autograd.grad(scalar, frames, retain_graph=True), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-7)
    assert many[0].abs().max() > 0
