"""Returns of problems small enough to solve by hand, and the pieces they are made of."""

from __future__ import annotations

import pytest
import torch

from torchmem.models import dists
from torchmem.models.returns import lambda_return, percentile_range


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_three_steps_by_hand():
    # steps 0..3; rewards 1, 2, 3 are earned on the way to steps 1, 2, 3; values 10, 20, 30 wait there
    reward, boot, live = row(99.0, 1, 2, 3), row(99.0, 10, 20, 30), row(1, 0.5, 0.5, 0.5)
    # R_2 = 3 + .5 * 30 = 18; R_1 = 2 + .5 (.2 * 20 + .8 * 18) = 11.2; R_0 = 1 + .5 (.2 * 10 + .8 * 11.2) = 6.48
    torch.testing.assert_close(lambda_return(reward, live, boot, 0.8), row(6.48, 11.2, 18))
    # lambda 1: rewards alone, and the last value; lambda 0: one step
    torch.testing.assert_close(lambda_return(reward, live, boot, 1.0), row(1 + 0.5 * (2 + 0.5 * 18), 2 + 0.5 * 18, 18))
    torch.testing.assert_close(lambda_return(reward, live, boot, 0.0), row(6, 12, 18))


def test_true_values_are_a_fixed_point_whatever_lambda():
    """A chain with a known discount: where the critic is right, every lambda return is the value itself."""
    gamma, rewards = 0.9, [0.0, 1.0, -2.0, 0.5, 3.0]
    values = [4.0]  # of the last state
    for reward in reversed(rewards[1:]):
        values.insert(0, reward + gamma * values[0])
    for lam in (0.0, 0.3, 0.95, 1.0):
        ours = lambda_return(row(*rewards), row(*[gamma] * 5), row(*values), lam)
        torch.testing.assert_close(ours, row(*values[:-1]))


def test_a_terminal_ends_the_future_and_a_cut_ends_the_trace():
    reward, boot, one = row(0.0, 1, 2, 3), row(0.0, 10, 20, 30), row(1.0, 1, 1, 1)
    ended = lambda_return(reward, row(1.0, 1, 0, 1), boot, 0.5)
    torch.testing.assert_close(ended[:, 1], row(2).squeeze(0))  # step 2 is terminal: its reward and nothing more
    last = torch.tensor([[False, False, True, False]])
    cut = lambda_return(reward, one, boot, 0.5, last)
    # a time limit at step 2: its value still counts, what comes after belongs to another episode
    torch.testing.assert_close(cut, row(1 + 0.5 * 10 + 0.5 * 22, 2 + 20, 33))
    after = lambda_return(row(0.0, 1, 2, 1e6), one, boot, 0.5, last)
    torch.testing.assert_close(after[:, :2], cut[:, :2])


def test_percentiles_interpolate():
    values = torch.arange(101.0)[torch.randperm(101)]
    low, high = percentile_range(values, 5.0, 95.0)
    assert float(low) == pytest.approx(5.0) and float(high) == pytest.approx(95.0)
    x = torch.randn(7, 13)
    for percent, value in zip((5.0, 95.0), percentile_range(x, 5.0, 95.0), strict=True):
        torch.testing.assert_close(value, torch.quantile(x, percent / 100))
    one = percentile_range(torch.tensor([3.0]), 5.0, 95.0)
    assert float(one[0]) == float(one[1]) == 3.0


def test_two_hot_puts_a_value_between_its_neighbours():
    bins = dists.symexp_bins(255)
    target = torch.tensor([0.0, 0.05, -3.3, 1e4, -7e8, 9e8, float(bins[130])])
    logits = torch.randn(7, 255, requires_grad=True)
    (grad,) = torch.autograd.grad(dists.twohot_loss(logits, bins, target).sum(), logits)
    twohot = torch.softmax(logits.detach(), -1) - grad  # the gradient of a cross-entropy is probability minus label
    assert float(twohot.min()) > -1e-6 and torch.allclose(twohot.sum(-1), torch.ones(7))
    assert torch.all((twohot > 1e-4).sum(-1) <= 2)
    twohot = torch.where(twohot > 1e-4, twohot, 0.0).double()  # an ulp elsewhere times a bin of 5e8 would be 50
    inside = target.abs() < bins[-1]
    mean = (twohot @ bins.double())[inside]
    torch.testing.assert_close(mean, target.double()[inside], rtol=1e-3, atol=1e-4)
    assert int(twohot[4].argmax()) == 0 and int(twohot[5].argmax()) == 254  # beyond the ends: the end
    assert int(twohot[6].argmax()) == 130 and float(twohot[6].max()) == pytest.approx(1.0, abs=1e-4)
    assert int(twohot[0].argmax()) == 127


def test_two_hot_learns_a_value():
    bins = dists.symexp_bins(255)
    for value in (0.0, 1.0, -42.0, 1234.5):
        target = torch.tensor([value])
        upper = int(torch.searchsorted(bins, target, right=True))
        low, high = bins[upper - 1].double(), bins[upper].double()
        share = (target.double() - low) / (high - low)
        logits = torch.full((1, 255), -60.0)
        logits[0, upper - 1], logits[0, upper] = torch.log1p(-share).item(), torch.log(share.clamp(min=1e-30)).item()
        assert float(dists.twohot_mean(logits, bins)) == pytest.approx(value, rel=1e-4, abs=1e-4)
        best = dists.twohot_loss(logits, bins, target)
        assert best < 0.7 < dists.twohot_loss(logits.roll(2), bins, target)  # at worst log 2


def test_gumbel_noise_draws_from_the_categorical():
    logits = torch.tensor([0.0, 1.0, -1.0])
    noise = dists.gumbel((20_000, 3), torch.Generator().manual_seed(0), "cpu")
    assert noise.isfinite().all()
    counts = torch.bincount(dists.sample_index(logits, noise), minlength=3) / 20_000
    torch.testing.assert_close(counts, torch.softmax(logits, -1), rtol=0, atol=0.015)


def test_straight_through_is_one_hot_forward_and_probabilities_backward():
    logits = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    logp = torch.log_softmax(logits, -1)
    weight = torch.randn(4, 3, 5, dtype=torch.float64)
    sample = dists.straight_through(logp, None)
    assert torch.allclose(sample.detach(), torch.nn.functional.one_hot(logits.argmax(-1), 5).double())
    ours = torch.autograd.grad((sample * weight).sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(ours, torch.autograd.grad((logp.exp() * weight).sum(), logits)[0])
