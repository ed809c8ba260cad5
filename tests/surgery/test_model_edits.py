"""model.edited: the same edits hold in traces, acting, imagination and training, and leave nothing behind."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.surgery.test_trace import plain, same
from torchmem.models.laprop import LaProp
from torchmem.models.noise import Noise
from torchmem.models.synthetic import random_batch
from torchmem.surgery.edits import Ablate, Clamp, Patch
from torchmem.surgery.items import TraceError
from torchmem.surgery.movement import Collapse
from torchmem.surgery.weights import WeightDelta, WeightMask

WEIGHT = "dynamics.core.deter_in.linear.weight"


def half_mask(agent, name=WEIGHT) -> WeightMask:
    keep = torch.ones_like(dict(agent.named_parameters())[name], dtype=torch.bool)
    keep[:, ::2] = False
    return WeightMask({name: keep})


def steps_of(model, seq, noise):
    """The sequence acted through one step at a time: deter (B, T, D), action logits, stoch (B, T, S, K)."""
    carry, deters, logits, stochs = model.initial(len(seq["is_first"])), [], [], []
    for t in range(seq["is_first"].shape[1]):
        obs = {key: seq[key][:, t] for key in (*model.spec.obs, "is_first")}
        taken = {key: seq[key][:, t] for key in model.spec.action}
        _, carry = model.act(obs, carry, Noise(posterior=noise.posterior[:, t]))
        with torch.no_grad():
            logits.append(model.agent.read_out(carry)["logits.action"])
        deters.append(carry.deter)
        stochs.append(carry.stoch)
        carry = carry._replace(action=model.agent.action_vector(taken))  # the sequence's action, not the agent's
    return torch.stack(deters, 1), torch.stack(logits, 1), torch.stack(stochs, 1)


def test_a_site_edit_means_the_same_in_trace_and_acting(agent, model, seq):
    seq["is_first"][:] = False
    seq["is_first"][:, 0] = True  # episodes begin together, so that step of sequence = step of episode
    noise = agent.sequence_noise(*seq["is_first"].shape, torch.Generator().manual_seed(0))
    edits = [Ablate("memory", units=(3, 7), time=slice(2, 5)), Clamp("dynamics.core.update", high=0.4)]
    with model.edited(edits):
        out = model.unroll(seq)
        deter, logits, _ = steps_of(model, seq, noise)
    assert (deter[:, 2:5][..., [3, 7]] == 0).all() and (deter[:, 5:][..., [3, 7]] != 0).any()
    torch.testing.assert_close(deter, out.states.deter, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits, out.policy["action"][0], rtol=1e-5, atol=1e-6)
    assert not torch.equal(out.states.deter, plain(agent, seq).states.deter)
    assert same(model.unroll(seq), plain(agent, seq))


def test_acting_rows_at_different_steps_of_their_episodes(model, seq):
    """An edit at step 2 of an episode hits each row when that row is there."""
    rows, steps = seq["is_first"].shape
    seq["is_first"][:] = False
    seq["is_first"][:, 0] = seq["is_first"][1, 3] = True
    with model.edited(Ablate("memory", time=2)), model.trace.play(steps, obs=seq, raw=False):
        h = model.site("memory").save()
    zero = (h == 0).all(-1)
    expected = torch.zeros(rows, steps, dtype=torch.bool)
    expected[:, 2] = expected[1, 5] = True
    assert torch.equal(zero, expected)


def test_patching_another_runs_values_reproduces_them(agent, model, seq):
    with model.trace(seq, seed=5, raw=False):
        donor = model.site("memory").save()
    with model.edited(Patch("memory", donor, time=(3,))), model.trace(seq, raw=False):
        h = model.site("memory").save()
    assert torch.equal(h[:, 3], donor[:, 3]) and not torch.equal(h[:, 4], donor[:, 4])


def test_edits_hold_in_imagination(model, seq):
    carry = model.unroll(seq).carry
    with model.edited(Ablate("dynamics.deter", units=(0,))):
        dream = model.imagine(carry, 4)
    assert (dream.feat[:, 1:, 0] == 0).all() and (model.imagine(carry, 4).feat[:, 1:, 0] != 0).any()


def test_collapsing_all_movement_freezes_the_memory(agent, model, seq):
    size = model.sites["memory"].shape[0]
    seq["is_first"][:] = False
    seq["is_first"][:, 0] = True
    with model.edited(Collapse("memory", torch.eye(size))), model.trace(seq, raw=False):
        h = model.site("memory").save()
    torch.testing.assert_close(h, h[:, :1].expand_as(h), rtol=0, atol=1e-5)
    with model.edited(Collapse("memory", torch.eye(size))):  # acting knows the step before from the carry
        noise = agent.sequence_noise(*seq["is_first"].shape, torch.Generator().manual_seed(0))
        deter, *_ = steps_of(model, seq, noise)
    torch.testing.assert_close(deter, h, rtol=1e-5, atol=1e-5)


def test_conditions_see_the_truth_in_live_worlds(model):
    seen = []
    with model.edited(Ablate("memory"), when=lambda info: seen.append(dict(info.truth)) or info.step >= 3):
        with model.trace.play(5, envs=2, raw=False):
            h = model.site("memory").save()
    assert ((h == 0).all(-1) == (torch.arange(5) >= 3)).all()
    assert set(seen[0]) == set(model.spec.truth)


@pytest.mark.parametrize("kind", ["mask", "delta", "both"])
def test_weight_edits_are_overlays_and_restore_bitwise_also_after_an_exception(agent, model, seq, kind):
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    ids = {k: id(p) for k, p in agent.named_parameters()}
    other = {k: v + 0.01 for k, v in before.items() if k == WEIGHT}
    edits = {"mask": [half_mask(agent)], "delta": [0.5 * WeightDelta.between({WEIGHT: before[WEIGHT]}, other)]}
    edits["both"] = edits["delta"] + edits["mask"]
    expected = plain(agent, seq)
    with pytest.raises(ZeroDivisionError), model.edited(edits[kind]):
        out = model.unroll(seq)
        assert not same(out, expected)
        assert same(plain(agent, seq), expected), "the agent itself is not touched"
        raise ZeroDivisionError
    assert {k: id(p) for k, p in model.agent.named_parameters()} == ids
    assert all(torch.equal(before[k], v) for k, v in model.agent.state_dict().items())
    assert same(model.unroll(seq), expected)


def test_a_mask_equals_the_agent_whose_weights_are_zero(agent, model, seq):
    mask = half_mask(agent)
    carry = model.unroll(seq).carry
    with model.edited(mask):
        out, dream = model.unroll(seq), model.imagine(carry, 3)
    with torch.no_grad():
        dict(agent.named_parameters())[WEIGHT][:, ::2] = 0
    assert same(out, plain(agent, seq)) and same(dream, model.imagine(carry, 3))


def test_training_inside_keeps_updates_and_spares_what_the_mask_removes(agent, model):
    mask, name = half_mask(agent), WEIGHT
    optimiser = LaProp(agent.trained(), dataclasses.replace(agent.config, lr=1e-2, warmup=1))
    batch = random_batch(agent, 2, 4)

    def update(tree):
        tree.loss(batch, tree.training_noise(2, 4, torch.Generator().manual_seed(0))).total.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    update(agent)  # moments exist before
    parameter = dict(agent.named_parameters())[name]
    start = parameter.detach().clone()
    state = optimiser.state[parameter]
    moments = {k: v.clone() for k, v in state.items() if torch.is_tensor(v) and v.shape == start.shape}
    assert moments
    with model.edited(mask):
        update(model.agent)
        update(model.agent)
    assert torch.equal(parameter[:, ::2], start[:, ::2]) and not torch.equal(parameter[:, 1::2], start[:, 1::2])
    for key, value in moments.items():
        assert torch.equal(optimiser.state[parameter][key][:, ::2], value[:, ::2]), key
    update(agent)
    assert not torch.equal(parameter[:, ::2], start[:, ::2]), "outside, everything trains again"


def test_site_edits_hold_in_a_loss_if_they_name_no_step(agent, model):
    batch, noise = random_batch(agent, 2, 4), agent.training_noise(2, 4, torch.Generator().manual_seed(0))
    free = agent.loss(batch, noise).total
    with model.edited(Ablate("dynamics.deter", units=(0, 1, 2))):
        lesioned = model.agent.loss(batch, noise)
    assert (lesioned.carry.deter[:, :3] == 0).all() and not torch.equal(lesioned.total, free)
    with pytest.raises(TraceError, match="training batch"), model.edited(Ablate("dynamics.deter", time=2)):
        model.agent.loss(batch, noise)
    assert torch.equal(model.agent.loss(batch, noise).total, free)


def test_tracing_during_training_leaves_the_losses_bit_equal(agent, model, seq):
    batch, noise = random_batch(agent, 2, 4), agent.training_noise(2, 4, torch.Generator().manual_seed(0))
    expected = agent.loss(batch, noise)
    expected.total.backward()
    grads = {name: p.grad.clone() for name, p in agent.trained()}
    agent.zero_grad(set_to_none=True)
    with model.trace(seq):
        model.site("memory")[:, 2] = 0
        x = model.dynamics.core.output.save()
    assert x is not None
    with model.edited([Ablate("memory"), half_mask(agent)]):
        model.unroll(seq)
    again = agent.loss(batch, noise)
    again.total.backward()
    assert torch.equal(again.total, expected.total)
    assert all(torch.equal(p.grad, grads[name]) for name, p in agent.trained())


def test_edits_nest_and_wrong_ones_are_refused(agent, model, seq):
    with model.edited(Clamp("memory", value=1.0)):
        with model.edited(Ablate("memory", units=(0,))):
            assert len(model.edits) == 2
            h = model.unroll(seq).states.deter
        assert (h[..., 0] == 0).all() and (h[..., 1] == 1).all()
    assert not model.edits
    for wrong, words in (
        (Ablate("memry"), "memory"),
        (Ablate("memory", units=(4000,)), "unit"),
        ("memory", "edit"),
        (WeightMask({"nothing.weight": torch.ones(2, dtype=torch.bool)}), "no parameter"),
    ):
        with pytest.raises((ValueError, TypeError), match=words), model.edited(wrong):
            pass


@pytest.mark.slow
def test_tracing_during_compiled_training_adds_no_recompile(agent, model, seq):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    compiled = torch.compile(agent.loss_parts, backend="eager")
    batch, noise = random_batch(agent, 2, 3), agent.training_noise(2, 3, torch.Generator().manual_seed(0))
    expected = compiled(batch, noise)[0]
    graphs = counters["stats"]["unique_graphs"]
    with model.trace(seq):
        model.site("memory")[:, 2] = 0
        model.dynamics.core.output.save()
    with model.edited([Ablate("memory"), half_mask(agent)]):
        model.unroll(seq)
    model.run_with_cache(seq)
    assert torch.equal(compiled(batch, noise)[0], expected)
    assert counters["stats"]["unique_graphs"] == graphs > 0
