"""The planted agent is what it says: it remembers, by the units it names, and its shuffled copy forgets."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.surgery.planted import GO_STEPS, LENGTH, MEMORY, UNITS, accuracy, pairs, planted, trials


def unroll(agent, data):
    with torch.no_grad():
        return agent.unroll(data.obs, data.actions, data.is_first, agent.initial(len(data.cue)))


@pytest.mark.parametrize("seed", range(3))
def test_it_remembers_and_its_shuffled_copy_does_not(seed: int):
    data = trials(64, seed)
    assert accuracy(planted(seed), data) == 1.0
    assert accuracy(planted(seed, shuffled=True), data) <= 0.5


@pytest.mark.parametrize("seed", range(3))
def test_cue_lives_in_the_memory_units_alone(seed: int):
    base, source = pairs(16, seed)
    agent = planted(seed)
    a, b = (unroll(agent, data).units for data in (base, source))
    differs = (a != b).any(0).any(0)
    assert differs.nonzero().flatten().tolist() == list(MEMORY)
    shuffled = planted(seed, shuffled=True)
    a, b = (unroll(shuffled, data).units[:, LENGTH // 2 :] for data in (base, source))
    assert torch.equal(a, b)  # not a trace, in no unit, that a probe could amplify


@pytest.mark.parametrize("seed", range(3))
def test_essential_weights_are_all_needed_and_junk_is_not(seed: int):
    data = trials(32, seed)
    agent = planted(seed)
    full = torch.log_softmax(unroll(agent, data).policy["action"][0], -1)
    with torch.no_grad():
        for name, mask in agent.known.junk.items():
            agent.get_parameter(name)[mask] = 0
    assert torch.equal(torch.log_softmax(unroll(agent, data).policy["action"][0], -1), full)
    assert sum(int(m.sum()) for m in agent.known.essential.values()) == 11
    for name, mask in agent.known.essential.items():
        for place in mask.nonzero():
            cut = planted(seed)
            with torch.no_grad():
                cut.get_parameter(name)[tuple(place)] = 0
            logp = torch.log_softmax(unroll(cut, data).policy["action"][0], -1)
            kl = (full.exp() * (full - logp)).sum(-1)[:, -GO_STEPS:].mean()
            assert kl > 0.01, (name, place)


def test_steps_equal_the_sequence_and_resets_fold():
    agent, data = planted(), trials(4)
    signal = torch.cat([data.obs["signal"]] * 2, 1)
    first = torch.cat([data.is_first] * 2, 1)
    actions = {"action": torch.cat([data.actions["action"]] * 2, 1)}
    with torch.no_grad():
        out = agent.unroll({"signal": signal}, actions, first, agent.initial(4))
    assert torch.equal(out.units[:, :LENGTH], out.units[:, LENGTH:])
    carry, noise = agent.initial(4), agent.acting_noise(4, None)
    noise.action = None
    for t in range(2 * LENGTH):
        with torch.no_grad():
            taken, carry, _ = agent.policy({"signal": signal[:, t], "is_first": first[:, t]}, carry, noise)
        torch.testing.assert_close(carry.units, out.units[:, t], atol=1e-6, rtol=1e-6)
        assert torch.equal(taken["action"], actions["action"][:, t])
    assert torch.equal(agent.read_out(out.carry)["value"], out.value[:, -1])


def test_it_is_an_agent():
    agent = planted()
    assert {k: (s.cadence, s.shape) for k, s in agent.sites.items()} == {
        "input": ("sequence", (UNITS,)),
        "cell": ("step", (UNITS,)),
        "cell.recurrent": ("step", (UNITS,)),
        "cell.memory": ("step", (UNITS,)),
        "actor": ("sequence", (3,)),
        "critic": ("sequence", (1,)),
        "memory": ("step", (UNITS,)),
    }
    data = trials(8)
    out = agent.loss(data.batch, agent.training_noise(8, LENGTH, None))
    out.total.backward()
    assert out.losses["policy"].shape == (8, LENGTH) and agent.cell.recurrent.weight.grad is not None
    twin = copy.deepcopy(agent)
    assert torch.equal(unroll(twin, data).units, unroll(agent, data).units)
    torch.testing.assert_close(data.weights.mean(), torch.tensor(1.0))
    assert torch.equal(planted(1, shuffled=True).actor.weight, planted(1, shuffled=True).actor.weight)
