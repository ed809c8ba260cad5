"""Distances between policies, and weights put in the place of others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.surgery.planted import planted, trials
from torchmem.surgery.policy_distance import Bed, kl, substituted
from torchmem.types import Space


def test_kl_of_discrete_and_continuous_actions():
    p, q = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    by_hand = (p.softmax(-1) * (p.softmax(-1).log() - q.softmax(-1).log())).sum(-1)
    torch.testing.assert_close(kl(Space((), "int64", classes=4), (p,), (q,)), by_hand)
    two = Space((2,), "int64", classes=4)  # two sub-actions at once: their distances add up
    torch.testing.assert_close(kl(two, (torch.stack([p, p], 2),), (torch.stack([q, q], 2),)), 2 * by_hand)
    mean, std = torch.randn(2, 3, 5), torch.rand(2, 3, 5) + 0.5
    other, wide = torch.randn(2, 3, 5), torch.rand(2, 3, 5) + 0.5
    normal = (wide / std).log() + (std**2 + (mean - other) ** 2) / (2 * wide**2) - 0.5
    torch.testing.assert_close(kl(Space((5,), "float32"), (mean, std), (other, wide)), normal.sum(-1))


def test_kl_and_agreement_weigh_steps():
    agent, data = planted(), trials(8)
    noisy = {name: p.detach() + 0.3 * torch.randn_like(p) for name, p in agent.named_parameters()}
    only = Bed.of(agent, data.batch, data.go.float())
    with torch.no_grad():
        policy = only.policy(noisy)
        step = kl(agent.spec.action["action"], only.full["action"], policy["action"])
    torch.testing.assert_close(only.kl(policy), step[data.go].mean())
    same = only.full["action"][0].argmax(-1) == policy["action"][0].argmax(-1)
    assert only.agreement(policy) == pytest.approx(same[data.go].float().mean().item())
    logp = policy["action"][0].log_softmax(-1).gather(-1, data.actions["action"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(only.surprise(policy), -logp[data.go].mean())


def test_some_rows_keep_their_own_carry_and_policy():
    agent, data = planted(), trials(8)
    carry = agent.initial(8)._replace(units=torch.randn(8, 32))
    batch = {**data.batch, "is_first": torch.zeros_like(data.is_first)}
    bed = Bed.of(agent, batch, carry=carry)
    part = bed.some(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(part.policy({})["action"][0], part.full["action"][0])
    assert len(part.is_first) == 3 and bed.some(8, torch.Generator()) is bed


def test_substitution_reaches_shared_and_recurrent_parameters_and_ends():
    gru = nn.GRU(3, 4)
    tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    tied[1].weight = tied[0].weight
    x = torch.randn(5, 2, 3)
    before = gru(x)[0]
    zeros = {name: torch.zeros_like(p) for name, p in gru.named_parameters()}
    with pytest.raises(ZeroDivisionError), substituted(gru, zeros):
        assert gru(x)[0].abs().max() == 0
        raise ZeroDivisionError
    assert torch.equal(gru(x)[0], before)
    with substituted(tied, {"0.weight": 2 * torch.eye(3)}):
        torch.testing.assert_close(tied(x), 4 * x)
    assert tied[0].weight is tied[1].weight and isinstance(tied[0].weight, nn.Parameter)
