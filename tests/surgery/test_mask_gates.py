"""Each gate and each penalty does what its formula says."""

from __future__ import annotations

import math

import pytest
import torch

from torchmem.surgery import gates
from torchmem.surgery.gates import Cost

DRAWS = 20_000


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tau", [0.3, 1.0, 3.0])
def test_gumbel_keeps_with_probability_sigmoid_at_any_temperature(tau: float):
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0]).unsqueeze(1).repeat(1, DRAWS)
    value = gates.draw("gumbel_st", logits, generator(), tau)
    assert set(value.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(value.mean(1), torch.sigmoid(logits[:, 0]), atol=0.015, rtol=0)


def test_gumbel_gradient_is_that_of_the_soft_gate():
    logits = torch.tensor([-2.0, 0.3, 2.0], requires_grad=True)
    tau = 0.7
    noise = gates.logistic(logits, generator(3))
    (grad,) = torch.autograd.grad(gates.draw("gumbel_st", logits, generator(3), tau).sum(), logits)
    soft = torch.sigmoid((logits + noise) / tau)
    torch.testing.assert_close(grad, soft * (1 - soft) / tau)


def test_noise_is_finite_where_the_uniform_hits_its_ends():
    assert gates.logistic(torch.zeros(1_000_000), generator()).isfinite().all()


def test_hard_concrete_probability_is_what_sampling_shows():
    logits = torch.tensor([-3.0, -0.5, 0.0, 2.0]).unsqueeze(1).repeat(1, DRAWS)
    value = gates.draw("hard_concrete", logits, generator())
    assert value.min() == 0 and value.max() == 1
    assert ((value > 0) & (value < 1)).any()
    active = (value > 0).float().mean(1)
    torch.testing.assert_close(active, gates.probability("hard_concrete", logits[:, 0]), atol=0.015, rtol=0)
    by_hand = 1 / (1 + math.exp(-(2.0 - 2 / 3 * math.log(0.1 / 1.1))))
    assert gates.probability("hard_concrete", torch.tensor(2.0)).item() == pytest.approx(by_hand)


def test_ste_sigmoid_has_no_noise_and_the_gradient_of_sigmoid():
    logits = torch.tensor([-1.0, 0.5], requires_grad=True)
    value = gates.draw("ste_sigmoid", logits)
    assert value.tolist() == [0.0, 1.0]
    (grad,) = torch.autograd.grad(value.sum(), logits)
    soft = torch.sigmoid(logits)
    torch.testing.assert_close(grad, soft * (1 - soft))


def test_topk_keeps_exactly_k_over_all_tensors_and_lets_dropped_ones_learn():
    values = [torch.tensor([0.1, 0.9], requires_grad=True), torch.tensor([[0.5], [0.2]], requires_grad=True)]
    gated = gates.keep_top(values, [1, 1], 2)
    assert [g.tolist() for g in gated] == [[0.0, 1.0], [[1.0], [0.0]]]
    weights = [torch.tensor([2.0, 3.0]), torch.tensor([[4.0], [5.0]])]
    grads = torch.autograd.grad(sum((g * w).sum() for g, w in zip(gated, weights)), values)
    assert all(torch.equal(g, w) for g, w in zip(grads, weights))  # the identity, also for dropped ones
    # gates that cover three weights each: two of them would be six, so one fits into four
    assert [int(k.sum()) for k in gates.top([torch.tensor([0.3, 0.4])], [3], 4)] == [1]
    assert int(gates.top([torch.zeros(5)], [1], 3)[0].sum()) == 3  # ties do not add up to more


@pytest.mark.parametrize(
    ("shape", "row", "column"),
    [((4, 6), (4, 1), (1, 6)), ((2, 4, 6), (2, 4, 1), (2, 1, 6)), ((8, 3, 5, 5), (8, 1, 1, 1), (1, 3, 1, 1))],
)
def test_rows_are_outputs_and_columns_inputs(shape, row, column):
    size = torch.Size(shape)
    assert gates.gate_shape(size, "weight") == shape
    assert gates.gate_shape(size, "row") == row and gates.gate_shape(size, "column") == column


def test_ramp_is_flat_then_linear_then_flat():
    assert [gates.ramp(step, 100) for step in (0, 25, 50, 75, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]


def cost(kind, gate="gumbel_st", sizes=(1, 3), **more) -> Cost:
    given = {"alpha": 0.1, "target": 0.1, "epsilon": 0.02, "rate": 1.0, **more}
    return Cost(kind, gate, list(sizes), **given)


def test_sums_count_weights_and_follow_the_ramp():
    logits = [torch.tensor([2.0, -1.0]), torch.tensor([0.5])]
    kl, shift = torch.tensor(0.7), 2 / 3 * math.log(0.1 / 1.1)
    p = [torch.sigmoid(logit) for logit in logits]
    expected = {
        "sum_prob": p[0].sum() + 3 * p[1].sum(),
        "sum_logit": torch.tensor(1.0 + 3 * 0.5),
        "l0": sum(s * torch.sigmoid(logit - shift).sum() for s, logit in zip((1, 3), logits)),
    }
    for kind, total in expected.items():
        penalty = cost(kind, "hard_concrete" if kind == "l0" else "gumbel_st")
        assert penalty(logits, kl, 0.0).item() == pytest.approx(0.7)
        assert penalty(logits, kl, 0.5).item() == pytest.approx(0.7 + 0.05 * total.item(), rel=1e-6)
    assert cost("none")(logits, kl, 1.0) is kl


def test_sum_prob_saturates_where_sum_logit_pushes_on():
    logits = [torch.tensor([-8.0], requires_grad=True)]
    pushes = {
        kind: torch.autograd.grad(cost(kind, sizes=[1])(logits, torch.tensor(0.0), 1.0), logits)[0].item()
        for kind in ("sum_prob", "sum_logit")
    }
    assert pushes["sum_logit"] == pytest.approx(0.1) and 0 < pushes["sum_prob"] < 1e-4


def descend(penalty: Cost, worth: torch.Tensor, steps: int, rate: float = 3e-2) -> torch.Tensor:
    """Logits after gradient descent where dropping gate i costs worth[i] nats."""
    logits = torch.full_like(worth, 2.0, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=rate)
    draws = generator()
    for step in range(steps):
        value = gates.draw(penalty.gate, logits, draws)
        kl = (worth * (1 - value)).sum()
        optimizer.zero_grad()
        penalty([logits], kl, gates.ramp(step, steps)).backward()
        optimizer.step()
        with torch.no_grad():
            logits.clamp_(-gates.BOUND, gates.BOUND)
    return logits.detach()


@pytest.mark.parametrize("target", [0.15, 0.3])
def test_lagrangian_reaches_its_target(target: float):
    worth = torch.cat([torch.ones(20), torch.full((380,), 1e-5)]) / 20
    penalty = cost("lagrangian", sizes=[1], target=target)
    logits = descend(penalty, worth, 800, rate=2e-2)
    assert penalty.share([logits]).item() == pytest.approx(target, abs=0.005)
    assert (logits[:20] > 0).all()


def test_constrained_spends_its_nats_and_not_more():
    # dropping a gate of the second group costs 0.0005 nats: forty of them are the budget, no one of the first fits in
    worth = torch.cat([torch.full((20,), 0.05), torch.full((100,), 5e-4), torch.zeros(80)])
    penalty = cost("constrained", "ste_sigmoid", sizes=[1], epsilon=0.02, rate=0.01)
    logits = descend(penalty, worth, 1300)
    kept = logits > 0
    assert (worth * ~kept).sum() <= 0.03
    assert kept[:20].all() and not kept[120:].any()
    assert penalty.first >= 0


def test_a_gate_is_kept_where_it_is_worth_more_than_alpha():
    # below alpha / 10 and above 2 alpha: logits that rose before the ramp are sticky (see MaskFit.alpha)
    worth = torch.tensor([0.001, 0.005, 0.2, 1.0])
    for gate, kind in (("gumbel_st", "sum_prob"), ("hard_concrete", "l0"), ("ste_sigmoid", "sum_prob")):
        logits = descend(cost(kind, gate, sizes=[1], alpha=0.1), worth, 600)
        assert (logits > 0).tolist() == [False, False, True, True], gate
