"""Self-tests of returns: the backward recursions of training against sums written out forward, on toy chains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchmem.models.ppo.losses import advantage
from torchmem.models.returns import lambda_return
from torchmem.verify.report import Check, measured

CLOSE = 1e-6  # the data are float64, but lambda may be float32
ROWS, STEPS = 5, 20
# (reward, value, is_first, is_last, is_terminal), each (B, T + 1) -> the lambda return of each step, (B, T)
Returns = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, float], Tensor]


def of_rollouts(reward: Tensor, value: Tensor, first: Tensor, last: Tensor, terminal: Tensor,
                gamma: float, lam: float) -> Tensor:  # fmt: skip
    """As `training/rollout.py` computes value targets."""
    return advantage(reward, value, first, terminal, gamma, lam)[1]


def of_replay(reward: Tensor, value: Tensor, first: Tensor, last: Tensor, terminal: Tensor,
              gamma: float, lam: float) -> Tensor:  # fmt: skip
    """As `models/behaviour.py` computes replayed returns."""
    return lambda_return(reward, gamma * (1 - terminal.to(reward.dtype)), value, lam, last)


def return_checks(name: str, returns: Returns, gamma: float, lam: float) -> list[Check]:
    """returns: the function that an agent learns from. name: what to call it."""
    numbers = f"gamma {gamma:.4g}, lambda {lam:.4g}"
    return [
        measured("returns: closed form", f"{name} on a chain that pays 1 a step, geometric sums, {numbers}", CLOSE,
                 lambda: closed_form(returns, gamma, lam)),
        measured("returns: forward view", f"{name} on random chains with ends of both kinds, n-step returns weighted "
                 f"and added, {numbers}", CLOSE, lambda: against_forward_view(returns, gamma, lam)),
    ]  # fmt: skip


def closed_form(returns: Returns, gamma: float, lam: float) -> tuple[float, str]:
    """Reward 1 at every step and value v everywhere. Over n steps, with g = gamma and c = gamma lambda, the return is

    (1 + g (1 - lambda) v) (1 - c^n) / (1 - c) + c^n v     where a time limit or the data's end lends v,
    and at a terminal the last step earns 1 alone: (1 + g (1 - lambda) v) (1 - c^(n-1)) / (1 - c) + c^(n-1).
    With v = 1 / (1 - g), the true value of going on for ever, the first is v itself.
    """
    worst, text = 0.0, ""
    values = {"v = 3": 3.0} | ({"v = 1 / (1 - gamma)": 1 / (1 - gamma)} if gamma < 1 else {})
    for name, v in values.items():
        for ends in (0, 1):
            first, last, terminal = (torch.zeros(1, STEPS + 1, dtype=torch.bool) for _ in range(3))
            first[0, 0] = last[0, -1] = True
            terminal[0, -1] = bool(ends)
            one = torch.ones(1, STEPS + 1, dtype=torch.float64)
            reward = one.clone()
            reward[0, 0] = 0
            found = returns(reward, v * one, first, last, terminal, gamma, lam)[0]
            left = torch.arange(STEPS, 0, -1, dtype=torch.float64)  # n
            c, step = gamma * lam, 1 + gamma * (1 - lam) * v
            summed = left - ends if c == 1 else (1 - c ** (left - ends)) / (1 - c)
            expected = step * summed + c ** (left - ends) * (1 if ends else v)
            error = float(((found - expected).abs() / expected.abs().clamp(min=1)).max())
            if not error <= worst:
                worst, text = error, f"{name}, {'terminal' if ends else 'time limit'}"
    return worst, text if worst > CLOSE else ""


def against_forward_view(returns: Returns, gamma: float, lam: float) -> tuple[float, str]:
    """Random rewards and values, columns that begin in mid-episode, terminals, time limits and an abandoned episode."""
    generator = torch.Generator().manual_seed(0)
    reward, value = (torch.randn(ROWS, STEPS + 1, generator=generator, dtype=torch.float64) for _ in range(2))
    first, last, terminal = (torch.zeros(ROWS, STEPS + 1, dtype=torch.bool) for _ in range(3))
    for row, step in ((0, 6), (1, 1), (2, STEPS), (3, 9), (3, 10), (4, STEPS - 1)):
        first[row, step] = last[row, step - 1] = True
        terminal[row, step - 1] = row != 3
    last[0, -1] = terminal[0, -1] = True
    reward = reward * ~first
    found = returns(reward, value, first, last, terminal, gamma, lam)
    expected = forward_view(reward, value, last, terminal, gamma, lam)
    counted = ~last[:, :-1]
    apart = ((found - expected).abs() * counted).nan_to_num(torch.inf)
    worst = float(apart.max())
    row, step = divmod(int(apart.argmax()), STEPS)
    return worst, f"row {row}, step {step}: {found[row, step]:.4g} for {expected[row, step]:.4g}" * (worst > CLOSE)


def forward_view(reward: Tensor, value: Tensor, last: Tensor, terminal: Tensor, gamma: float, lam: float) -> Tensor:
    """The definition, written out: (1 - lam) sum_n lam^(n-1) G_n + lam^(N-1) G_N, where G_n adds n rewards and then the
    value, and N is the number of steps to the end of the episode or of the data (Sutton and Barto 2018, equation 12.3).
    """
    out = torch.zeros_like(reward[:, :-1])
    for row in range(reward.shape[0]):
        for t in range(reward.shape[1] - 1):
            steps, summed, n_step = 0, 0.0, []
            while t + steps < reward.shape[1] - 1 and not (last[row, t + steps]):
                steps += 1
                summed += gamma ** (steps - 1) * float(reward[row, t + steps])
                boot = 0.0 if terminal[row, t + steps] else float(value[row, t + steps])
                n_step.append(summed + gamma**steps * boot)
            weights = [(1 - lam) * lam**n for n in range(steps - 1)] + [lam ** (steps - 1)] if steps else []
            out[row, t] = sum(w * g for w, g in zip(weights, n_step, strict=True))
    return out
