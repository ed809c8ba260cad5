"""Advantages against torchrl's estimator and a sum by hand; losses by hand; running scales against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchmem.models.ppo.losses import advantage, decisions, policy_loss, value_loss
from torchmem.models.ppo.scales import Moments, RewardScale, moments_of

GAMMA, LAM = 0.9, 0.8


def episodes(seed: int = 0, rows: int = 64, steps: int = 23) -> dict[str, torch.Tensor]:
    """Columns with ends of both kinds, with ends that no row announces (a world was restarted), and one without."""
    generator = torch.Generator().manual_seed(seed)
    last = torch.rand((rows, steps + 1), generator=generator) < 0.2
    last[0] = False
    lost = torch.rand((rows, steps + 1), generator=generator) < 0.05
    lost[0] = False
    first = (last | lost).roll(1, 1)
    first[:, 0] = torch.rand(rows, generator=generator) < 0.5
    reward = torch.randn((rows, steps + 1), generator=generator).double() * ~first
    terminal = last & (torch.rand((rows, steps + 1), generator=generator) < 0.5) & ~first
    value = torch.randn((rows, steps + 1), generator=generator).double()
    return {"reward": reward, "value": value, "is_first": first, "is_terminal": terminal}


def by_hand(d: dict[str, torch.Tensor]) -> torch.Tensor:
    """Sum over k of (gamma lambda)^k delta_{t+k}, as far as the same episode has decisions."""
    r, v, first, terminal = (d[k].numpy() for k in ("reward", "value", "is_first", "is_terminal"))
    rows, steps = r.shape[0], r.shape[1] - 1
    out = np.zeros((rows, steps))
    for i in range(rows):
        for t in range(steps):
            factor, k = 1.0, t
            while k < steps and not first[i, k + 1]:
                out[i, t] += factor * (r[i, k + 1] + GAMMA * (0 if terminal[i, k + 1] else v[i, k + 1]) - v[i, k])
                if terminal[i, k + 1]:
                    break
                factor, k = factor * GAMMA * LAM, k + 1
    return torch.from_numpy(out)


def test_advantages_are_the_sum_by_hand_and_torchrls():
    from torchrl.objectives.value.functional import generalized_advantage_estimate

    d = episodes()
    got, target = advantage(**d, gamma=GAMMA, lam=LAM)
    torch.testing.assert_close(got, by_hand(d))
    goes_on = decisions(d["is_first"])
    ends = torch.cat([~goes_on[:, 1:], torch.ones(len(goes_on), 1, dtype=torch.bool)], 1)
    theirs, their_target = generalized_advantage_estimate(
        GAMMA, LAM, *(x.unsqueeze(-1) for x in (d["value"][:, :-1], d["value"][:, 1:], d["reward"][:, 1:])),
        done=(ends | d["is_terminal"][:, 1:]).unsqueeze(-1), terminated=d["is_terminal"][:, 1:].unsqueeze(-1),
    )  # fmt: skip
    # torchrl multiplies its discounts in float32
    torch.testing.assert_close(got[goes_on], theirs.squeeze(-1)[goes_on], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(target[goes_on], their_target.squeeze(-1)[goes_on], rtol=1e-5, atol=1e-6)
    assert not got[~goes_on].any() and (~goes_on).sum() > 100


@pytest.mark.parametrize(("terminal", "expected"), [(True, 1.0 - 3.0), (False, 1.0 + GAMMA * 7.0 - 3.0)])
def test_a_time_limit_is_no_end_of_the_future(terminal, expected):
    """D6: a truncated episode lends the value of its last observation; a terminated one has none."""
    row = torch.tensor
    got, _ = advantage(
        reward=row([[0.0, 1.0, 0.0]]), value=row([[3.0, 7.0, 100.0]]), is_first=row([[True, False, True]]),
        is_terminal=row([[False, terminal, False]]), gamma=GAMMA, lam=LAM,
    )  # fmt: skip
    torch.testing.assert_close(got, row([[expected, 0.0]]))


def test_the_clipped_surrogate_by_hand():
    old = torch.zeros(6)
    ratio = torch.tensor([0.5, 0.9, 1.5, 0.5, 1.1, 1.5])
    gain = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    loss, got = policy_loss(ratio.log(), old, gain, 0.2)
    torch.testing.assert_close(got, ratio)
    torch.testing.assert_close(loss, -torch.tensor([0.5, 0.9, 1.2, -0.8, -1.1, -1.5]))


def test_the_value_loss_by_hand():
    value, old, target = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.95]), torch.tensor([2.0, 0.5, 2.0])
    torch.testing.assert_close(value_loss(value, old, target, None), torch.tensor([0.5, 0.125, 0.5]))
    torch.testing.assert_close(value_loss(value, old, target, 0.2), torch.tensor([0.5 * 1.8**2, 0.125, 0.5]))


def test_running_moments_are_those_of_all_values():
    generator = np.random.default_rng(0)
    parts = [generator.normal(3, 2, (n, 4)) for n in (5, 1, 200)]
    moments = Moments((4,))
    for part in parts:
        moments.absorb(*moments_of(torch.from_numpy(part), 1))
    whole = np.concatenate(parts)
    np.testing.assert_allclose(moments.mean.numpy(), whole.mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.var.numpy(), whole.var(0), rtol=1e-3)
    gaps = torch.from_numpy(parts[0]).clone()
    gaps[2, 1] = -torch.inf
    mean, _, count = moments_of(gaps, 1)
    assert count == 4 and torch.isfinite(mean).all()


def test_rewards_are_summed_with_the_agents_discount():
    """D3: one discount for the reward's scale and for the advantages; a sum starts anew with each episode."""
    scale = RewardScale(0.5, 10.0)
    reward = torch.tensor([[1.0, 1.0, 0.0, 4.0]])
    first = torch.tensor([[False, False, True, False]])
    sums, last = scale.sums(reward, first, torch.tensor([8.0]))
    assert sums.tolist() == [[5.0, 3.5, 0.0, 4.0]] and last.tolist() == [4.0]
    from torchmem.models.ppo.agent import PPOAgent
    from torchmem.models.ppo.config import PPOConfig
    from torchmem.types import EnvSpec, Space

    spec = EnvSpec("toy", {"x": Space((1,), "float32")}, {"action": Space((), "int64", classes=2)}, 1.0)
    agent = PPOAgent(spec, PPOConfig(scale_reward=True, gamma=0.7))
    assert agent.reward_scale is not None and agent.reward_scale.gamma == agent.config.gamma == 0.7
