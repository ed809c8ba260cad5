"""The contracts of surgery for every agent that exists and every site it has."""

from __future__ import annotations

import pytest
import torch

from tests.surgery.conftest import dreamer, sequence_for
from tests.surgery.planted import planted, trials
from tests.surgery.test_trace import leaves, plain, same
from torchmem.envs.make import env_spec
from torchmem.models.ppo.agent import PPOAgent
from torchmem.models.ppo.config import PPOConfig
from torchmem.models.r2i.agent import R2IAgent
from torchmem.models.r2i.config import R2IConfig, SSMConfig
from torchmem.models.synthetic import random_batch
from torchmem.surgery.edits import Ablate
from torchmem.surgery.model import Model
from torchmem.surgery.weights import WeightDelta, WeightMask


def ppo(core: str, world: str) -> PPOAgent:
    torch.manual_seed(1)
    sizes = {"units": 16, "encoder_units": 8, "head_units": 8, "image_channels": [4], "image_units": 8}
    return PPOAgent(env_spec(world), PPOConfig(core=core, head_layers=1, **sizes))


def r2i(policy_input: str, **ssm) -> R2IAgent:
    torch.manual_seed(2)
    sizes = {"deter": 12, "units": 16, "stoch": 4, "classes": 4, "depth": 4, "vector_units": 16, "head_units": 16}
    stack = SSMConfig(layers=2, states=8, blocks=2, **ssm)
    agent = R2IAgent(env_spec("dummy"), R2IConfig(**sizes, ssm=stack, policy_input=policy_input, imag_length=3))
    with torch.no_grad():
        for name, p in agent.named_parameters():
            if p.abs().max() == 0:
                p.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.1)
    return agent


AGENTS = {
    "dreamer": dreamer,
    "r2i": lambda: r2i("full"),
    "r2i-conj": lambda: r2i("output", conj_sym=True, prenorm=True, discretisation="zoh"),
    "planted": planted,
    "ppo-gru": lambda: ppo("gru", "dummy"),
    "ppo-lstm": lambda: ppo("lstm", "minigrid_memory"),
    "ppo-mlp": lambda: ppo("mlp", "dummy"),
}


def places(model) -> list[str]:
    """Every site once: `memory`, and the others by their paths."""
    sites = model.sites
    return ["memory", *(n for n, site in sites.items() if n == site.path != sites["memory"].path)]


@pytest.fixture(params=AGENTS)
def opened(request):
    agent = AGENTS[request.param]()
    return agent, Model(agent), sequence_for(agent)


def test_an_empty_trace_and_every_sites_own_value_change_nothing(opened):
    agent, model, seq = opened
    expected = plain(agent, seq)
    with model.trace(seq) as tr:
        pass
    assert same(tr.out, expected)
    with model.trace(seq, raw=False):
        values = {name: model.site(name).save() for name in places(model)}
    for name, value in values.items():
        assert value.shape == (*seq["is_first"].shape, *model.sites[name].shape), name
        with model.trace(seq, raw=False) as tr:
            model.site(name)[:] = value
        assert same(tr.out, expected), name


def test_an_edit_at_step_t_leaves_earlier_steps_bitwise(opened):
    agent, model, seq = opened
    expected, t, moved = plain(agent, seq), 4, []
    for name in places(model):
        with model.edited(Ablate(name, time=t)):
            out = model.unroll(seq)
        pairs = list(zip(leaves(out._replace(carry=())), leaves(expected._replace(carry=())), strict=True))
        assert all(torch.equal(a[:, :t], b[:, :t]) for a, b in pairs), name
        if not all(torch.equal(a, b) for a, b in pairs):
            moved.append(name)
    assert "memory" in moved and len(moved) > len(places(model)) / 2


def test_mask_and_delta_restore_bitwise_after_an_exception(opened):
    agent, model, seq = opened
    before = {k: v.clone() for k, v in agent.state_dict().items()}
    expected = plain(agent, seq)
    masks = {n: torch.rand(p.shape, generator=torch.Generator().manual_seed(0)) < 0.5 for n, p in agent.trained()}
    shifted = {n: p.detach() + 0.1 for n, p in agent.trained()}
    delta = WeightDelta.between({n: p.detach() for n, p in agent.trained()}, shifted)
    for edit in (WeightMask(masks), delta, delta + WeightMask(masks)):
        with pytest.raises(ZeroDivisionError), model.edited(edit):
            assert not same(model.unroll(seq), expected)
            raise ZeroDivisionError
        assert all(torch.equal(before[k], v) for k, v in model.agent.state_dict().items())
        assert same(model.unroll(seq), expected)


def test_act_path_is_the_trace_path(opened):
    """Observing while acting (own actions) and then unrolling those actions gives the same values, step by step."""
    agent, model, seq = opened
    rows, steps = seq["is_first"].shape
    with model.trace.play(steps, obs=seq, seed=7, raw=False) as tr:
        h = model.site("memory").save()
    noise = agent.acting_noise(rows * steps, torch.Generator().manual_seed(7))
    if noise.posterior is not None:
        noise.posterior = noise.posterior.unflatten(0, (rows, steps))
    with model.trace({**seq, **tr.out.action}, noise=noise, raw=False):
        again = model.site("memory").save()
    torch.testing.assert_close(h, again, rtol=1e-5, atol=1e-6)


def test_edits_hold_in_training_and_masked_weights_stay(opened):
    agent, model, _ = opened
    batch = trials(4).batch if agent.config.name == "planted" else random_batch(agent, 4, 5)
    noise = agent.training_noise(4, 5, torch.Generator().manual_seed(0))
    name = next(n for n, p in agent.trained() if p.dim() > 1)
    mask = WeightMask({name: torch.rand(agent.get_parameter(name).shape) < 0.5})
    free = model.agent.loss(batch, noise).total.detach().clone()
    optimiser = torch.optim.AdamW([p for _, p in agent.trained()], lr=1e-2, weight_decay=0.1)
    start = agent.get_parameter(name).detach().clone()
    with model.edited([mask, Ablate("memory", units=(0, 1))]):
        for _ in range(2):
            total = model.agent.loss(batch, noise).total
            assert not torch.equal(total, free)
            total.backward()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
    moved = agent.get_parameter(name) != start
    assert not moved[~mask.masks[name]].any() and moved.any()
