"""What a rollout may know, and that the agent in it is the agent."""

from __future__ import annotations

import pytest
import torch

from tests.models.simulator import tiny
from torchmem.models.noise import Noise
from torchmem.models.simulator.follow_actions import follow_actions
from torchmem.models.simulator.observations import to_float, to_world
from torchmem.models.simulator.own_world import OwnWorld
from torchmem.models.simulator.packing import leaves
from torchmem.models.simulator.protocol import Paths, RolloutNoise
from torchmem.models.simulator.rollout import rollout, rollout_noise
from torchmem.models.simulator.window import MEMORY, cut_window


@pytest.mark.parametrize("transition", ["rssm", "s5"])
def test_no_future_frame_reaches_a_rollout_and_no_later_frame_an_earlier_loss(transition):
    net = tiny.simulator(tiny.ppo(), transition=transition)
    batch = net.random_batch(3, 9)
    batch["is_first"][:, 1:] = False
    batch[MEMORY] = torch.randn_like(batch[MEMORY]).tanh()
    for key in ("view", "kind", "reward", MEMORY):
        other = {k: v.clone() for k, v in batch.items()}
        other[key][:, 6:] = torch.roll(other[key][:, 6:], 1, 0)
        assert not torch.equal(other[key], batch[key])
        found = []
        for one in (batch, other):
            window = cut_window(one, net.spec, 3)
            vectors = net.agent_loop.action_vector(window.actions)
            obs, reward, _ = follow_actions(net, net.begin(window.context), vectors)
            found.append((obs["view"], obs["kind"], reward, net.loss(one, Noise.mode()).losses))
        for a, b in zip(found[0][:3], found[1][:3]):
            assert torch.equal(a, b), f"a rollout knew {key} of its future"
        for name in ("view", "kl", "update", "memory"):
            assert torch.equal(found[0][3][name][:, :4], found[1][3][name][:, :4]), (name, key)
    other = {k: v.clone() for k, v in batch.items()}
    other["view"][:, 2] += 1
    assert not torch.equal(net.begin(cut_window(other, net.spec, 3).context).world.stoch.sum(), torch.tensor(0.0))


def test_an_episode_before_this_one_is_not_seen():
    net = tiny.simulator(tiny.ppo())
    context = tiny.context(tiny.VECTOR, net.agent_loop)
    for first, blank in ((1, [0]), (2, [0, 1])):
        context.is_first[:] = False
        context.is_first[:, first] = True
        start = net.begin(context)
        other = context._replace(obs={k: v.clone() for k, v in context.obs.items()})
        for step in blank:
            other.obs["view"][:, step] += 7
        assert all(torch.equal(a, b) for a, b in zip(leaves(start), leaves(net.begin(other))))
        other.obs["view"][:, 2] += 7
        assert not torch.equal(net.encode(context), net.encode(other))
    context.actions["action"][:, 1] = (context.actions["action"][:, 1] + 1) % 3
    assert torch.equal(net.begin(context).world.deter, start.world.deter), "nor its last action"
    assert net.begin(context).is_first.all(), "and the agent forgets it"


def test_steps_beyond_the_end_weigh_nothing():
    net = tiny.simulator(tiny.ppo())
    batch = net.random_batch(2, 8)
    batch["is_first"][:, 1:] = False
    batch["is_first"][0, 5] = True
    window = cut_window(batch, net.spec, 3)
    assert window.weight[0].tolist() == [1, 1, 1, 0, 0, 0, 0] and window.weight[1].all()
    other = {key: value.clone() for key, value in batch.items()}
    other["view"][0, 5:], other["reward"][0, 5:] = 9, 9
    a, b = (net.loss(one, Noise.mode()) for one in (batch, other))
    for name in a.metrics:
        assert torch.equal(a.metrics[name], b.metrics[name]), name


@pytest.mark.parametrize("kind", tiny.AGENTS)
@pytest.mark.parametrize("spec", [tiny.VECTOR, tiny.IMAGE], ids=["vector", "image"])
def test_the_agent_in_the_loop_acts_as_it_does_in_the_world(kind, spec):
    """Float observations, packed carries and straight-through actions are the agent's own, bit for bit."""
    agent = tiny.AGENTS[kind](spec)
    loop = tiny.AgentLoop(agent)
    told = tiny.context(spec, loop, steps=4)
    noise = [agent.acting_noise(3, torch.Generator().manual_seed(t)) for t in range(4)]
    carry = mine = agent.initial(3)
    for t in range(4):
        first = torch.full((3,), t == 0)
        obs = {key: value[:, t] for key, value in told.obs.items()}
        chosen, carry, _ = agent.policy({**obs, "is_first": first}, carry, noise[t])
        seen = to_float(obs, spec.obs, torch.float32)
        assert all(torch.equal(obs[key], value) for key, value in to_world(seen, spec.obs).items())
        acted = loop.act(seen, first, mine, noise[t], Paths())
        assert torch.equal(acted.action["action"], chosen["action"])
        assert torch.equal(acted.value, agent.read_out(carry)["value"])
        for a, b in zip(leaves(carry), leaves(acted.carry), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        again = loop.packing.unpack(loop.packing.pack(acted.carry))
        assert all(torch.equal(a, b) for a, b in zip(leaves(again), leaves(acted.carry), strict=True))
        mine = acted.carry
    actions = {"action": told.actions["action"]}
    memory, value, _ = loop.sequence(
        to_float(told.obs, spec.obs, torch.float32), actions, torch.zeros(3, 4, dtype=torch.bool), mine, Noise.mode()
    )
    for t in range(4):
        seen = to_float({key: v[:, t] for key, v in told.obs.items()}, spec.obs, torch.float32)
        acted = loop.act(seen, torch.zeros(3, dtype=torch.bool), mine, Noise.mode(), Paths(),
                         actions={"action": actions["action"][:, t]})  # fmt: skip
        torch.testing.assert_close(acted.memory, memory[:, t], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(acted.value, value[:, t], rtol=1e-4, atol=1e-5)
        mine = acted.carry


@pytest.mark.parametrize("kind", ["dreamer", "r2i"])
def test_an_agents_own_world_is_its_imagination(kind):
    agent = tiny.AGENTS[kind]()
    loop = tiny.AgentLoop(agent)
    world = OwnWorld(agent, loop)
    told = tiny.context(tiny.VECTOR, loop)
    real = agent.initial(3)
    for t in range(2):
        obs = {**{k: v[:, t] for k, v in told.obs.items()}, "is_first": torch.full((3,), t == 0)}
        _, real, _ = agent.policy(obs, real, Noise.mode())
        real = real._replace(action=loop.action_vector({"action": told.actions["action"][:, t]}))
        told.memory[:, t] = loop.packing.pack(real)
    start = world.begin(told)
    obs = {**{k: v[:, 2] for k, v in told.obs.items()}, "is_first": torch.zeros(3, dtype=torch.bool)}
    _, now, _ = agent.policy(obs, real, Noise.mode())
    for a, b in zip(leaves(now)[:-1], leaves(start.world)[:-1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    horizon = 4
    noise = agent.imagination_noise(3, horizon - 1, torch.Generator().manual_seed(1))
    dreamt = agent.imagine(start.world, horizon - 1, noise)
    draws = [Noise(action={k: v[:, t] for k, v in (noise.action or {}).items()}) for t in range(horizon)]
    found = rollout(world, loop, start, horizon, RolloutNoise(world=noise.prior, agent=draws), sees="latent")
    assert torch.equal(found.action["action"], dreamt.action["action"])
    values = agent.behaviour.value.mean(agent.behaviour.value(dreamt.feat))
    torch.testing.assert_close(found.value, values, rtol=1e-5, atol=1e-6)
    seen = rollout(
        world, loop, start, horizon, rollout_noise(world, loop, 3, horizon, torch.Generator().manual_seed(2))
    )
    assert seen.obs["view"].shape == (3, horizon, 5) and seen.obs["kind"].shape == (3, horizon, 2, 4)


def test_an_agent_without_a_world_model_is_told_so():
    with pytest.raises(ValueError, match="torchmem simulator train"):
        OwnWorld(tiny.ppo())


def test_guessed_starts_and_foreign_agents():
    net = tiny.simulator(tiny.ppo())
    latent = net.random_latent(1, torch.Generator().manual_seed(0))
    start = net.from_latent(latent)
    assert start.agent.hidden.shape == (1, 6) and start.agent.action.sum() == 1 and not start.is_first.any()
    assert rollout(net, net.agent_loop, start, 3).value.shape == (1, 3), "one sample alone"
    other = tiny.AgentLoop(tiny.ppo(units=9))
    net.attach(other, foreign=True)
    start = net.from_latent(latent)
    assert start.is_first.all() and rollout(net, other, start, 3).memory.shape == (1, 3, 9)


def test_an_agent_forgets_after_an_end_only_if_asked():
    net = tiny.simulator(tiny.ppo())
    with torch.no_grad():
        net.terminal[-1].bias.fill_(100.0)  # every step is the last
    start = net.begin(tiny.context(tiny.VECTOR, net.agent_loop))
    kept = rollout(net, net.agent_loop, start, 3)
    anew = rollout(net, net.agent_loop, start, 3, reset_at_end=True)
    assert torch.equal(kept.value[:, 0], anew.value[:, 0]) and not torch.equal(kept.value[:, 1], anew.value[:, 1])
    seen = {key: value[:, 1] for key, value in anew.obs.items()}
    fresh = net.agent_loop.act(
        seen, torch.ones(3, dtype=torch.bool), net.agent_loop.agent.initial(3), Noise.mode(), Paths()
    )
    torch.testing.assert_close(fresh.value, anew.value[:, 1])


def test_the_film_shows_truth_simulator_and_error():
    net = tiny.simulator(tiny.ppo(tiny.IMAGE), vision="irl")
    batch = net.random_batch(2, 4)
    batch["is_first"][:, 1:] = False
    frames = net.open_loop(batch)
    assert frames.shape == (3, 3 * 64, 2 * 64, 3) and frames.dtype == "uint8"
    for t in range(3):
        assert (frames[t, :64, :64] == batch["image"][0, 2 + t].numpy()).all()
    with pytest.raises(ValueError, match="no video to make"):
        vector = tiny.simulator(tiny.ppo())
        vector.open_loop(vector.random_batch(2, 4))
