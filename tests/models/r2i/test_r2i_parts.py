"""Sizes, optimiser, convolutions, half precision, stored starts, and sites in parallel and in recurrent mode alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import load, new_agent, save_agent
from torchmem.models.dists import symexp, symlog
from torchmem.models.noise import Noise
from torchmem.models.r2i.agent import R2IAgent
from torchmem.models.r2i.config import R2IConfig, SSMConfig
from torchmem.models.r2i.layers import DoublingConv, HalvingConv
from torchmem.models.r2i.networks import R2IPolicy, SymlogHead
from torchmem.models.r2i.optimiser import group_of
from torchmem.models.synthetic import random_batch
from torchmem.models.taps import Tapped
from torchmem.surgery.edits import Ablate, Steer
from torchmem.surgery.model import Model
from torchmem.training.config import compose
from torchmem.types import EnvSpec, Space

SMALL = {"deter": 12, "units": 16, "stoch": 4, "classes": 4, "depth": 4, "vector_units": 16, "head_units": 16}
MAZE = EnvSpec("maze", {"image": Space((64, 64, 3), "uint8")}, {"action": Space((), "int32", 6)}, 4.0)
CARDS = EnvSpec("cards", {"observation": Space((4,), "float32")}, {"action": Space((), "int32", 4)}, 1.0)


def small(stored_start: bool = False, **changes) -> R2IAgent:
    torch.manual_seed(3)
    stack = SSMConfig(layers=2, states=8, blocks=2)
    config = R2IConfig(**SMALL, ssm=stack, imag_length=3, stored_start=stored_start, **changes)
    agent = R2IAgent(env_spec("dummy"), config)
    with torch.no_grad():  # heads and start state begin at zero: give them something to say
        for name, p in agent.named_parameters():
            if p.abs().max() == 0:
                p.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.3)
    return agent


@pytest.mark.parametrize(
    ("preset", "spec", "total", "dynamics"),
    [("mmaze", MAZE, 104_661_831, 34_659_840), ("popgym", CARDS, 12_882_054, 5_261_696)],
)
def test_parameter_counts(preset: str, spec: EnvSpec, total: int, dynamics: int):
    """104.7M (34.7M of the dynamics) and 12.9M, slow critic included."""
    with torch.device("meta"):
        agent = new_agent(spec, compose([f"preset={preset}"]).agent)
    assert sum(p.numel() for p in agent.parameters()) == total
    assert sum(p.numel() for p in agent.dynamics.parameters()) == dynamics


def test_optimiser_is_adam_with_a_clip_per_group():
    """Three updates against torch's AdamW and clip_grad_norm_, one of each per group."""
    agent = small(lr=1e-2, ssm_lr=3e-3, actor_lr=2e-3, clip=0.5, actor_clip=0.1, weight_decay=0.1)
    ours, c = agent.optimiser(), agent.config
    theirs = {name: torch.nn.Parameter(p.detach().clone()) for name, p in agent.trained()}
    names: dict[str, list[str]] = {}
    for name in theirs:
        names.setdefault(group_of(name), []).append(name)
    assert names.keys() == {"world", "actor", "critic"} | {
        f"ssm.{kind}" for kind in ("lambda_re", "lambda_im", "b", "c", "d", "log_step")
    }
    optimisers = {}
    for group, members in names.items():
        lr = {"world": c.lr, "actor": c.actor_lr, "critic": c.critic_lr}.get(group, c.ssm_lr)
        eps = c.behaviour_eps if group in ("actor", "critic") else c.eps
        decayed = [theirs[n] for n in members if group == "world" and n.endswith("weight")]
        rest = [theirs[n] for n in members if not (group == "world" and n.endswith("weight"))]
        params = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        optimisers[group] = torch.optim.AdamW(params, lr=lr, eps=eps)
    for update in range(3):
        generator = torch.Generator().manual_seed(update)
        for name, p in agent.trained():
            p.grad = torch.randn(p.shape, generator=generator)
            theirs[name].grad = p.grad.clone()
        ours.step()
        for group, members in names.items():
            limit = {"actor": c.actor_clip, "critic": c.critic_clip}.get(group, c.clip)
            torch.nn.utils.clip_grad_norm_([theirs[n] for n in members], limit)
            optimisers[group].step()
    for name, p in agent.trained():
        torch.testing.assert_close(p.detach(), theirs[name].detach(), rtol=1e-4, atol=1e-6, msg=name)


def test_transposed_convolution_undoes_the_shape_and_is_the_adjoint():
    down, up = HalvingConv(3, 5), DoublingConv(5, 3, bias=False)
    assert down(torch.zeros(2, 8, 8, 3)).shape == (2, 4, 4, 5) and up(torch.zeros(2, 4, 4, 5)).shape == (2, 8, 8, 3)
    with torch.no_grad():
        up.weight.copy_(down.weight)
        x, y = torch.randn(2, 8, 8, 3), torch.randn(2, 4, 4, 5)
        assert float((down(x) * y).sum()) == pytest.approx(float((x * up(y)).sum()), rel=1e-4)


def test_heads_start_where_they_should():
    head = SymlogHead(6, 8, 1, 255)
    logits = head(torch.randn(3, 6))
    assert head.mean(logits).abs().max() == 0
    for target in (0.0, 3.7, -250.0):  # a two-hot of the target has the target's mean
        wanted = torch.zeros(255)
        below = int((symlog(torch.tensor(target)) + 20) / 40 * 254)
        share = float((symlog(torch.tensor(target)) + 20) / 40 * 254 - below)
        wanted[below], wanted[below + 1] = 1 - share, share
        assert float(head.mean(torch.log(wanted))) == pytest.approx(target, abs=1e-2)
        got = head.loss(torch.log(wanted + 1e-12), torch.tensor(target))
        assert float(got) == pytest.approx(float(-(wanted * torch.log(wanted + 1e-12)).sum()), abs=1e-4)
    assert torch.allclose(symexp(symlog(torch.tensor(5.0))), torch.tensor(5.0))
    policy = R2IPolicy(6, {"action": Space((), "int32", 4)}, R2IConfig(policy_unimix=0.2))
    with torch.no_grad():
        policy.out["action"].bias.copy_(torch.tensor([50.0, 0, 0, 0]))
    (logp,) = policy(torch.zeros(1, 6))["action"]
    torch.testing.assert_close(logp.exp()[0], torch.tensor([0.85, 0.05, 0.05, 0.05]))


def test_states_stay_float32_beside_bfloat16():
    agent = small(policy_input="full")
    agent.dtype = torch.bfloat16
    batch = random_batch(agent, 2, 5)
    out = agent.loss(batch, agent.training_noise(2, 5, torch.Generator().manual_seed(0)))
    out.total.backward()
    assert out.carry.hidden.dtype == torch.float32 and out.carry.deter.dtype == torch.bfloat16
    assert all(torch.isfinite(p.grad).all() and p.grad.dtype == torch.float32 for _, p in agent.trained())
    agent.dtype = torch.float32
    exact = agent.loss(batch, agent.training_noise(2, 5, torch.Generator().manual_seed(0)))
    assert float(out.total.detach()) == pytest.approx(float(exact.total.detach()), rel=0.05)


def test_sequences_start_as_episodes_or_where_acting_was():
    """Without stored_start nothing of the context step matters; with it, the loss goes on from acting's own states."""
    noise = Noise.mode()
    plain = small()
    batch = random_batch(plain, 3, 6)
    other = {key: torch.cat([value[:, :1].flip(0), value[:, 1:]], 1) for key, value in batch.items()}
    assert plain.latent_schema() == {}
    assert torch.equal(plain.loss(batch, noise).total, plain.loss(other, noise).total)

    agent = small(stored_start=True)
    batch = random_batch(agent, 3, 6)
    carry, hidden = agent.initial(3), []
    with torch.no_grad():
        for t in range(7):
            obs = {key: batch[key][:, t] for key in agent.spec.obs} | {"is_first": batch["is_first"][:, t]}
            _, carry, latents = agent.policy(obs, carry, noise)
            carry = carry._replace(action=agent.action_vector({k: batch[k][:, t] for k in agent.spec.action}))
            if t == 0:
                batch |= {key: value.unsqueeze(1) for key, value in latents.items()}
            hidden.append(latents["hidden"])
        out = agent.loss(batch, noise)
    torch.testing.assert_close(out.latents["hidden"], torch.stack(hidden[1:], 1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.carry.hidden, carry.hidden, rtol=1e-4, atol=1e-5)


def sequences(agent: R2IAgent, rows: int = 3, steps: int = 9) -> tuple[dict, dict]:
    """A batch for the loss, and the same steps for a trace that starts as the loss does."""
    batch = random_batch(agent, rows, steps)
    batch["is_first"][:, 1] = True
    seq = {key: batch[key][:, 1:] for key in (*agent.spec.obs, *agent.spec.action, "is_first")}
    return batch, seq


def test_every_s5_site_shows_the_same_in_the_parallel_loss_and_in_a_recurrent_trace():
    agent = small(policy_input="full")
    batch, seq = sequences(agent)
    noise = agent.training_noise(3, 9, torch.Generator().manual_seed(1))
    wanted = ["memory", "s5.0.state", "s5.1.state", "s5.1.norm", "dynamics.deter", "dynamics.input", "dynamics.stoch"]
    taps = Tapped(agent, [*wanted, "imagined.memory"]).loss(batch, noise).taps
    model = Model(agent)
    with model.trace(seq, noise=Noise(posterior=noise.posterior), raw=False):
        values = {name: model.site(name).save() for name in wanted}
    for name, value in values.items():
        torch.testing.assert_close(taps[name], value.detach(), rtol=1e-4, atol=1e-5, msg=name)
    assert taps["imagined.memory"].shape[:3] == (3, 9, 3)


@pytest.mark.parametrize("edit", [Ablate("memory", units=(0, 5)), Steer("s5.0.state", torch.linspace(-1, 1, 16))])
def test_an_edit_of_the_memory_acts_on_the_loss_as_on_a_trace(edit):
    """The parallel pass makes way: what is written at one step is what the next one starts from."""
    agent = small(policy_input="full")
    batch, seq = sequences(agent)
    noise = agent.training_noise(3, 9, torch.Generator().manual_seed(1))
    model = Model(agent)
    free = model.agent.loss(batch, noise).carry.hidden
    with model.edited(edit), torch.no_grad():
        states = model.agent.loss(batch, noise).carry.hidden
        traced = model.unroll(seq, noise=Noise(posterior=noise.posterior)).carry.hidden
    torch.testing.assert_close(states, traced, rtol=1e-4, atol=1e-5)
    assert (states - free).abs().max() > 1e-2


def test_imagined_states_go_on_from_the_memory_of_each_step():
    agent = small(policy_input="output")
    _, seq = sequences(agent)
    with torch.no_grad():
        seen = agent.unroll(*({k: seq[k] for k in g} for g in (agent.spec.obs, agent.spec.action)), seq["is_first"],
                            agent.initial(3))  # fmt: skip
        start = type(seen.states)(*(part[:, 4] for part in seen.states))
        given = {"action": torch.randint(5, (3, 4), dtype=torch.int32)}
        out = agent.imagine(start, 4, Noise.mode(), given)
        state = start
        for t in range(4):
            action = agent.action_vector({"action": given["action"][:, t]})
            state, _ = agent.dynamics.imagine_step(state, action, None)
            assert torch.equal(out.states.hidden[:, t + 1], state.hidden)


def test_a_checkpoint_is_the_agent(tmp_path):
    agent = small()
    again = load(save_agent(agent, tmp_path / "agent"))
    batch = random_batch(agent, 2, 4)
    assert torch.equal(again.loss(batch, Noise.mode()).total, agent.loss(batch, Noise.mode()).total)
    assert again.config == agent.config


def test_open_loop_film_of_images():
    agent = small()
    frames = agent.open_loop(random_batch(agent, 2, 8))
    size = agent.spec.obs["image"].shape[0]
    assert frames.shape == (8, 3 * size, 2 * size, 3) and frames.dtype == np.uint8


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"policy_input": "state"}, "policy_input"), ({"horizon": 1.0}, "horizon"), ({"classes": 300}, "classes")],
)
def test_impossible_settings_are_refused(changes: dict, word: str):
    with pytest.raises(ValueError, match=word):
        R2IConfig(**changes)
    with pytest.raises(ValueError, match="blocks"):
        SSMConfig(states=12, blocks=8)
