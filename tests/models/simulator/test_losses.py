"""Every term against a formula written out, and what may not learn from it (appendix D, T7)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.models.simulator import tiny
from torchmem.models.noise import Noise
from torchmem.models.simulator import losses as terms
from torchmem.models.simulator.window import MEMORY, cut_window


def normal_nll(guess: float, truth: float, sigma: float) -> float:
    return 0.5 * ((guess - truth) / sigma) ** 2 + math.log(sigma * math.sqrt(2 * math.pi))


def test_half_square_is_the_originals_likelihood_without_its_constant():
    sigma = 1 / math.sqrt(2 * math.pi)  # the original's, at which the constant is 0
    for guess, truth in ((0.3, 1.0), (2.0, 2.0), (-1.0, 4.0)):
        mine = float(terms.half_square(torch.tensor(guess), torch.tensor(truth)))
        assert mine == pytest.approx(normal_nll(guess, truth, sigma) * sigma**2, abs=1e-6)


def test_balanced_kl():
    rng = np.random.default_rng(0)
    logits = [torch.tensor(rng.normal(size=(2, 3, 4)), requires_grad=True) for _ in range(2)]
    post, prior = (torch.log_softmax(x, -1) for x in logits)
    kl = terms.balanced_kl(post, prior, 0.8)
    p, q = (np.exp(x.detach().numpy()) for x in (post, prior))
    np.testing.assert_allclose(kl.detach().numpy(), (p * np.log(p / q)).sum((-2, -1)), rtol=1e-9)
    kl.sum().backward()
    leaves = [x.detach().clone().requires_grad_() for x in logits]
    a, b = (torch.log_softmax(x, -1) for x in leaves)
    (a.exp() * (a - b)).sum().backward()
    torch.testing.assert_close(logits[0].grad, 0.2 * leaves[0].grad)
    torch.testing.assert_close(logits[1].grad, 0.8 * leaves[1].grad)


def test_repulsion_leaves_the_diagonal_out_unless_asked():
    latent = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    near = np.array([[math.exp(-float((a - b).square().sum())) for b in latent] for a in latent])
    off = near[~np.eye(4, dtype=bool)]
    assert float(terms.repulsion(latent, legacy=False)) == pytest.approx(math.log(off.mean()), rel=1e-5)
    assert float(terms.repulsion(latent, legacy=True)) == pytest.approx(math.log(near.sum()), rel=1e-5)
    assert float(terms.repulsion(latent[:1], legacy=False)) == 0, "one start has nothing to be pushed from"
    pair = torch.tensor([[1.0, 0.0], [0.8, 0.6]], requires_grad=True)
    terms.repulsion(pair, legacy=False).backward()
    assert float((pair.grad[0] * (pair[1] - pair[0]).detach()).sum()) > 0, "going downhill, they part"


def test_update_is_a_length_and_harmless_at_rest():
    deter = torch.tensor([[[3.0, 4.0], [3.0, 4.0]]], requires_grad=True)
    found = terms.update_loss(deter, torch.zeros(1, 2))
    assert found.tolist() == [[5.0, 0.0]]
    found.sum().backward()
    assert torch.isfinite(deter.grad).all()


def test_latent_kl():
    raw = torch.tensor([[0.5, -1.0, 0.2, -0.3]])
    (m1, m2), (s1, s2) = (0.5, -1.0), (math.exp(0.2), math.exp(-0.3))
    truth = 0.5 * sum(m * m + s * s - 1 - 2 * math.log(s) for m, s in ((m1, s1), (m2, s2)))
    assert float(terms.latent_kl(raw)) == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize("transition", ["rssm", "s5"])
@pytest.mark.parametrize("bottleneck", ["sphere", "vae"])
def test_the_total_is_the_weighted_sum_over_the_steps_that_count(transition, bottleneck):
    net = tiny.simulator(tiny.ppo(), transition=transition, bottleneck=bottleneck)
    batch = net.random_batch(4, 8)
    noise = net.training_noise(4, 8, torch.Generator().manual_seed(0))
    out = net.loss(batch, noise)
    window = cut_window(batch, net.spec, 3)
    assert 0 < float(window.weight.mean()) < 1, "the batch has ends inside"
    total = 0.0
    for name, value in out.losses.items():
        summed = (value * window.weight).sum(1) if value.dim() == 2 else value
        scale = net.config.scales.vector if name in net.spec.obs else getattr(net.config.scales, name)
        total += scale * float(summed.detach().mean())
    assert float(out.total.detach()) == pytest.approx(total, rel=1e-5)
    expected = {"view", "kind", "reward", "terminal", "kl", "update", "memory", "start"}
    assert set(out.losses) == expected | ({"repulsion"} if bottleneck == "sphere" else {"latent"})
    out.total.backward()
    assert all(p.grad is not None for _, p in net.trained()), "every part learns from something"


def test_observation_losses_are_half_squares_and_cross_entropy():
    net = tiny.simulator(tiny.ppo())
    batch, noise = net.random_batch(2, 6), Noise.mode()
    window = cut_window(batch, net.spec, 3)
    losses, _, decoded = net.world_losses(window, noise)
    view = batch["view"][:, 2:]
    symlog = view.sign() * view.abs().log1p()
    torch.testing.assert_close(losses["view"], 0.5 * (decoded["view"] - symlog).square().sum(-1))
    logp = torch.log_softmax(decoded["kind"], -1)
    picked = logp.gather(-1, batch["kind"][:, 2:, :, None]).squeeze(-1)
    torch.testing.assert_close(losses["kind"], -picked.sum(-1))
    image = tiny.simulator(tiny.ppo(tiny.IMAGE), vision="irl")
    batch = image.random_batch(1, 3)
    losses, _, decoded = image.world_losses(cut_window(batch, image.spec, 3), noise)
    truth = batch["image"][:, 2:].float() / 255
    torch.testing.assert_close(losses["image"], 0.5 * (decoded["image"] - truth).square().flatten(2).sum(-1))


def test_what_heads_and_transition_say_is_compared_by_these_formulas():
    """Reward, end, KL and update of whole windows, from the networks' own outputs, number by number."""
    net = tiny.simulator(tiny.ppo())
    batch, noise = net.random_batch(3, 6), net.training_noise(3, 6, torch.Generator().manual_seed(0))
    window = cut_window(batch, net.spec, 3)
    losses, latent, _ = net.world_losses(window, noise)
    begin = net.state(latent, noise.posterior[:, 0])
    obs = {"view": window.obs["view"], "kind": torch.nn.functional.one_hot(window.obs["kind"], 4).float()}
    tokens = net.embed({key: value.flatten(0, 1) for key, value in obs.items()}).unflatten(0, (3, 5))
    states, posterior, prior = net.transition.posterior(
        begin, net.actions_before(window), tokens, noise.posterior[:, 1:]
    )
    feat = torch.cat([states.deter, states.stoch.flatten(-2)], -1)
    guess, logit = net.reward(feat).detach(), net.terminal(feat).detach().double().numpy()
    np.testing.assert_allclose(losses["reward"].detach(), 0.5 * (guess - batch["reward"][:, 2:]) ** 2, rtol=1e-5)
    p, ended = 1 / (1 + np.exp(-logit)), batch["is_terminal"][:, 2:].double().numpy()
    truth = -(ended * np.log(p) + (1 - ended) * np.log(1 - p))
    np.testing.assert_allclose(losses["terminal"].detach(), truth, rtol=1e-4)
    post, pri = (x.detach().double().numpy() for x in (posterior, prior))
    np.testing.assert_allclose(losses["kl"].detach(), (np.exp(post) * (post - pri)).sum((-2, -1)), rtol=1e-4, atol=1e-6)
    h = np.concatenate([begin.deter.detach().numpy()[:, None], states.deter.detach().numpy()], 1)
    np.testing.assert_allclose(losses["update"].detach(), np.sqrt(((h[:, 1:] - h[:, :-1]) ** 2).sum(-1)), rtol=1e-4)


def test_the_start_is_guessed_by_squares_and_cross_entropy():
    net = tiny.simulator(tiny.ppo())
    batch = net.random_batch(3, 6)
    batch["is_first"][:, 1:] = False
    batch["is_first"][0, 2] = True  # this one opens an episode: nothing is carried, no action came before
    batch[MEMORY] = torch.randn_like(batch[MEMORY])
    window = cut_window(batch, net.spec, 3)
    carry, raw = (x.detach().numpy() for x in net.guess(net.encode(window.context).detach()))
    out = net.loss(batch, Noise.mode()).losses["start"].detach().numpy()
    logp = raw - np.log(np.exp(raw).sum(-1, keepdims=True))
    for row in range(3):
        fresh = row == 0
        known = net.agent_loop.agent.initial(1).hidden[0].detach() if fresh else batch[MEMORY][row, 1, :6]
        truth = ((carry[row] - known.numpy()) ** 2).sum()
        truth -= 0 if fresh else logp[row, int(batch["action"][row, 1])]
        assert out[row] == pytest.approx(truth, rel=1e-4)


def test_the_memory_loss_is_the_agents_own_memory_on_what_is_drawn():
    agent = tiny.ppo()
    net = tiny.simulator(agent)
    batch = net.random_batch(2, 6)
    batch["is_first"][:, 1:] = False
    batch[MEMORY] = torch.randn_like(batch[MEMORY])
    out = net.loss(batch, Noise.mode())
    window = cut_window(batch, net.spec, 3)
    _, _, decoded = net.world_losses(window, Noise.mode())
    carry = net.agent_loop.packing.unpack(batch[MEMORY][:, 1])
    for t in range(5):
        obs = {"view": decoded["view"][:, t].sign() * decoded["view"][:, t].abs().expm1()}
        obs |= {"kind": decoded["kind"][:, t].argmax(-1), "is_first": torch.zeros(2, dtype=torch.bool)}
        _, carry, _ = agent.policy(obs, carry, Noise.mode())
        carry = carry._replace(action=agent.action_vector({"action": batch["action"][:, 2 + t]}))
        real = batch[MEMORY][:, 2 + t, :6]
        truth = 0.5 * (carry.hidden - real).square().sum(-1)
        torch.testing.assert_close(out.losses["memory"][:, t], truth, rtol=1e-4, atol=1e-5)


def test_guessing_the_start_trains_its_converters_alone():
    net = tiny.simulator(tiny.ppo())
    out = net.loss(net.random_batch(3, 6), Noise.mode())
    out.losses["start"].sum().backward()
    touched = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {"to_carry", "to_action"}


@pytest.mark.parametrize("changes", [{}, {"transition": "s5"}, {"bottleneck": "vae"}, {"vision": "irl"}], ids=str)
def test_bfloat16_is_near_float32_and_never_reaches_the_agent(changes):
    net = tiny.simulator(tiny.ppo(tiny.IMAGE if changes.get("vision") else tiny.VECTOR), **changes)
    batch, noise = net.random_batch(3, 5), net.training_noise(3, 5, torch.Generator().manual_seed(0))
    exact = net.loss(batch, noise).total
    net.dtype = torch.bfloat16
    rough = net.loss(batch, noise)
    assert rough.total.dtype == torch.float32 and float(rough.total.detach()) != float(exact.detach())
    torch.testing.assert_close(rough.total, exact, rtol=0.03, atol=0.1)
    rough.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for _, p in net.trained())


def test_the_compiled_loss_is_one_graph_with_the_same_gradients():
    net = tiny.simulator(tiny.ppo())
    batch, noise = net.random_batch(2, 3), net.training_noise(2, 3, torch.Generator().manual_seed(0))
    net.loss(batch, noise).total.backward()
    eager = {name: p.grad.clone() for name, p in net.trained() if p.grad is not None}
    net.zero_grad(set_to_none=True)
    torch._dynamo.reset()
    torch.compile(net.loss_parts, backend="eager", fullgraph=True)(batch, noise)[0].backward()
    for name, p in net.trained():
        torch.testing.assert_close(p.grad, eager[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", tiny.AGENTS)
def test_the_agent_stays_bit_for_bit(kind):
    agent = tiny.AGENTS[kind]()
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    net = tiny.simulator(agent)
    names = {name for name, _ in net.named_parameters()} | set(net.state_dict())
    assert not any("agent" in name for name in names)
    optimiser = net.optimiser()
    owned = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert owned == {id(p) for p in net.parameters()} and not owned & {id(p) for p in agent.parameters()}
    was = {name: value.clone() for name, value in net.state_dict().items()}
    for seed in range(3):
        net.loss(
            net.random_batch(2, 5, seed), net.training_noise(2, 5, torch.Generator().manual_seed(seed))
        ).total.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    assert all(torch.equal(before[name], value) for name, value in agent.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in agent.parameters())
    assert all(not torch.equal(was[n], v) for n, v in net.state_dict().items() if n.endswith("weight") and v.dim() > 1)
