"""Taps show what plain hooks on the agent show, and their presence changes no number of the loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from torchmem.envs.make import env_spec
from torchmem.models.dreamer.agent import DreamerAgent
from torchmem.models.dreamer.config import DreamerConfig
from torchmem.models.noise import Noise
from torchmem.models.protocol import LossOut
from torchmem.models.site_names import canonical
from torchmem.models.synthetic import random_batch
from torchmem.models.taps import TapError, Tapped, chosen, collecting_loss, collecting_policy
from torchmem.training.compile import check_gradients, compile_agent, recompiles

TINY = {"deter": 16, "hidden": 8, "classes": 4, "units": 8, "stoch": 2, "imag_length": 2, "blocks": 2, "bins": 15}
B, T, H = 2, 3, 2
SITES = ["memory", "dynamics.core.update", "dynamics.posterior.*", "dynamics.prior", "encoder", "reward", "decoder.*"]
DREAMT = ["imagined.memory", "imagined.dynamics.prior", "imagined.behaviour.policy.mlp", "imagined.behaviour.value"]


def make(**changes) -> DreamerAgent:
    """An agent whose every head says something."""
    agent = DreamerAgent(env_spec("dummy", image=0), DreamerConfig(**{**TINY, **changes}))
    with torch.no_grad():
        for p in agent.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return agent


@pytest.fixture
def agent() -> DreamerAgent:
    return make()


def draw(agent: DreamerAgent, seed: int = 0, rows: int = B, steps: int = T) -> tuple[dict[str, Tensor], Noise]:
    noise = agent.training_noise(rows, steps, torch.Generator().manual_seed(seed))
    return random_batch(agent, rows, steps, seed), noise


def hooked(agent: DreamerAgent, paths: set[str], run) -> dict[str, list[Tensor]]:
    """Outputs of modules in the order of their calls, from hooks on the agent itself."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}
    handles = [
        agent.get_submodule(path).register_forward_hook(lambda m, i, out, path=path: seen[path].append(out.detach()))
        for path in paths
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


# In eager mode: bit for bit ------------------------------------------------------------------------------------------


def test_taps_of_the_loss_are_what_hooks_on_the_agent_see(agent):
    data = draw(agent)
    out = collecting_loss(agent, [*SITES, *DREAMT])(*data)
    assert [*out.taps] == [*chosen(agent.sites, [*SITES, *DREAMT])]
    seen = hooked(agent, {site.path for site in agent.sites.values()}, lambda: agent.loss(*data))
    for name, value in out.taps.items():
        site = agent.sites[name.removeprefix("imagined.")]
        calls = seen[site.path]
        if name.startswith("imagined."):
            assert value.shape[:2] == (B, T) and value.shape[3:] == site.shape
            if name == "imagined.behaviour.value":
                expected = calls[0]  # the losses ask it once, of all imagined states
            else:
                length = H + 1 if "policy" in name else H
                skipped = {"imagined.memory": T, "imagined.dynamics.prior": 1}.get(name, 0)
                expected = torch.stack(calls[skipped : skipped + length], 1)
            expected = expected.unflatten(0, (B, T))
        else:
            assert value.shape == (B, T, *site.shape)
            expected = torch.stack(calls[:T], 1) if site.cadence == "step" else calls[0].view(value.shape)
        assert torch.equal(value, expected), name
        assert not value.requires_grad, name


def test_taps_of_the_loss_are_the_activations_of_the_same_sequence_unrolled(agent):
    batch, noise = draw(agent)
    every = [name for name, site in agent.sites.items() if not site.path.startswith("behaviour.policy")]
    taps = collecting_loss(agent, every)(batch, noise).taps
    before = agent.action_vector({key: batch[key][:, 0] for key in agent.spec.action})
    stoch = F.one_hot(batch["stoch"][:, 0].long(), agent.config.classes).float()
    carry = agent.initial(B)._replace(deter=batch["deter"][:, 0], stoch=stoch, action=before)
    obs, actions = ({key: batch[key][:, 1:] for key in group} for group in (agent.spec.obs, agent.spec.action))
    run = lambda: agent.unroll(obs, actions, batch["is_first"][:, 1:], carry, Noise(posterior=noise.posterior))  # noqa: E731
    seen = hooked(agent, {site.path for site in agent.sites.values()}, run)
    assert len(taps) == len(every) > 40
    for name, value in taps.items():
        site, calls = agent.sites[name], seen[agent.sites[name].path]
        expected = torch.stack(calls, 1) if site.cadence == "step" else calls[0].view(value.shape)
        assert torch.equal(value, expected), name


def test_taps_change_no_number_of_the_loss(agent):
    data = draw(agent)
    plain, tapped = agent.loss(*data), collecting_loss(agent, [*SITES, *DREAMT])(*data)
    assert torch.equal(plain.total, tapped.total) and not plain.taps
    for group in ("losses", "metrics", "latents", "state"):
        first, second = getattr(plain, group), getattr(tapped, group)
        assert all(torch.equal(value, second[key]) for key, value in first.items()) and len(first) == len(second)
    named = [p for _, p in agent.trained()]
    ours, theirs = (torch.autograd.grad(out.total, named) for out in (plain, tapped))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@torch.no_grad()
def test_taps_of_acting(agent):
    batch, _ = draw(agent)
    obs = {key: batch[key][:, 0] for key in (*agent.spec.obs, "is_first")}
    noise, carry = agent.acting_noise(B, torch.Generator().manual_seed(0)), agent.initial(B)
    actions, after, latents, taps = collecting_policy(agent, ["memory", "behaviour.policy.mlp.*", "encoder"])(
        obs, carry, noise
    )
    plain = agent.policy(obs, carry, noise)
    assert torch.equal(taps["memory"], after.deter) and torch.equal(after.deter, plain[1].deter)
    assert all(torch.equal(actions[key], plain[0][key]) for key in actions) and latents.keys() == plain[2].keys()
    seen = hooked(agent, {*taps} - {"memory"}, lambda: agent.policy(obs, carry, noise))
    assert all(torch.equal(taps[name], calls[0]) for name, calls in seen.items()) and len(taps) > 4


def test_sizes_that_coincide_are_told_apart(agent):
    """As many rows as steps, as starts, as imagined steps."""
    for rows, steps in ((1, 2), (1, 3), (3, 3), (6, 2)):
        data = draw(agent, rows=rows, steps=steps)
        out = collecting_loss(agent, ["memory", "reward", "encoder", "dynamics.prior", *DREAMT])(*data)
        _, states, _ = agent.world_loss(data[0], data[1].posterior)
        assert torch.equal(out.taps["memory"], states.deter)
        assert torch.equal(out.taps["reward"], agent.reward(torch.cat([states.deter, states.stoch.flatten(2)], -1)))
        assert torch.equal(out.taps["dynamics.prior"], agent.dynamics.prior(states.deter))
        assert out.taps["imagined.memory"].shape == (rows, steps, H, 16)


def test_the_agent_and_the_next_pass_keep_nothing(agent):
    tapped = Tapped(agent, ["memory"])
    first = tapped.loss(*draw(agent)).taps["memory"]
    second = tapped.loss(*draw(agent, 1)).taps["memory"]
    assert not torch.equal(first, second) and tapped.calls == {}
    assert not any(module._forward_hooks for module in agent.modules())


def test_patterns_name_each_place_once(agent):
    both = canonical(agent.sites)
    every = chosen(both, ["*"])
    assert len({site.path for site in every.values()}) == len(every) == len({s.path for s in both.values()})
    assert all(name == site.path for name, site in every.items())
    assert [*chosen(both, ["core.upd*", "memory", "dynamics.core.update"])] == [
        "core.update", "memory", "dynamics.core.update"
    ]  # fmt: skip


# Wrong names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (["dynamics.detr"], r"no site 'dynamics\.detr'; nearest: dynamics\.deter"),
        (["imagined.memry"], r"no site 'memry'; nearest: memory"),
        (["nothing.*"], r"no site 'nothing\.\*'"),
        ("memory", r"list of names, such as \['memory'\]"),
    ],
)
def test_names_that_mean_nothing_are_refused_at_once(agent, names, answer: str):
    with pytest.raises(TapError, match=answer):
        Tapped(agent, names)


def test_sites_that_a_pass_does_not_run_are_named(agent):
    for name in ("behaviour.policy.mlp", "imagined.encoder", "imagined.decoder.mlp"):
        with pytest.raises(TapError, match=f"the loss does not compute {name}"):
            collecting_loss(agent, ["memory", name])(*draw(agent))
    batch, _ = draw(agent)
    obs = {key: batch[key][:, 0] for key in (*agent.spec.obs, "is_first")}
    with pytest.raises(TapError, match=r"acting does not compute reward"):
        collecting_policy(agent, ["reward"])(obs, agent.initial(B), agent.acting_noise(B, None))


# Compiled ------------------------------------------------------------------------------------------------------------


NAMES = ["memory", "dynamics.core.update", "dynamics.prior", "encoder", "reward", "imagined.memory"]


@pytest.fixture
def shallow() -> DreamerAgent:
    """Fewer layers: compiled sooner."""
    torch._dynamo.reset()
    return make(imag_length=1, vector_layers=1, policy_layers=1, value_layers=1, prior_layers=1)


def test_hooks_are_inlined_into_one_graph_and_never_into_anothers(shallow):
    """torch does not guard hooks: another choice of sites must not meet the graph of the first."""
    data = draw(shallow, steps=2)
    choices = {"many": NAMES, "one": ["memory"]}
    sources = {"none": shallow, **{key: Tapped(shallow, names) for key, names in choices.items()}}
    functions = {
        key: torch.compile(source.loss_parts, backend="eager", dynamic=False, fullgraph=True)
        for key, source in sources.items()
    }
    for _ in range(2):
        for key, function in functions.items():
            out = LossOut(*function(*data))
            assert [*out.taps] == choices.get(key, [])
    torch.testing.assert_close(out.taps["memory"], collecting_loss(shallow, ["memory"])(*data).taps["memory"])
    assert sources["many"].calls == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_taps_are_the_eager_ones_and_leave_the_compiled_loss_alone(shallow):
    plain, _ = compile_agent(shallow)
    losses = [float(plain(*draw(shallow, seed, steps=2)).total.detach()) for seed in (0, 1)]
    tapped, _ = compile_agent(shallow, NAMES)
    report = check_gradients(shallow, tapped, *draw(shallow, steps=2))
    assert report.graph_breaks == 0 and report.graphs == 1 and report.worst_gradient < 1e-3
    for seed, loss in enumerate(losses):
        data = draw(shallow, seed, steps=2)
        out, eager = tapped(*data), collecting_loss(shallow, NAMES)(*data)
        assert [*out.taps] == NAMES
        for name, value in eager.taps.items():
            torch.testing.assert_close(out.taps[name], value, rtol=1e-5, atol=1e-5 * float(value.abs().max()), msg=name)
            assert not out.taps[name].requires_grad
        assert abs(float(out.total.detach()) - loss) <= 1e-6 * abs(loss)
    assert recompiles() == 0
