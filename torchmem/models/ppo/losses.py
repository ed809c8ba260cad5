"""Advantages and losses of PPO, as pure functions of (B, T) tensors.

Rows are steps of the timing diagram in types.py: reward[t + 1] is what action[t] earned. A step counts as a decision
where the next one goes on with the same episode; the closing step of an episode is a row too, so a time limit
bootstraps from the value of what was really seen last.
"""

from __future__ import annotations

import torch
from torch import Tensor


def decisions(is_first: Tensor) -> Tensor:
    """(B, T + 1) -> (B, T) bool: whether action[t] led to step t + 1."""
    return ~is_first[:, 1:]


def advantage(
    reward: Tensor, value: Tensor, is_first: Tensor, is_terminal: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimate (Schulman et al. 2016, arXiv:1506.02438) and value targets, each (B, T).

    All inputs (B, T + 1). Only a terminal step has no future; a step that the next row does not continue (a time
    limit, a world that was restarted, the end of the rollout) lends its own value. Entries that are no decision are 0.
    Equal to torchrl.objectives.value.functional.generalized_advantage_estimate, which a test compares.
    """
    goes_on = decisions(is_first).to(value.dtype)
    live = gamma * (~is_terminal[:, 1:]).to(value.dtype)
    delta = (reward[:, 1:] + live * value[:, 1:] - value[:, :-1]) * goes_on
    # The trace goes through step t + 1 if that is a decision; delta there is 0 otherwise, and so is the trace.
    decay = live * lam * goes_on
    out, trace = torch.empty_like(delta), torch.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        trace = torch.addcmul(delta[:, t], decay[:, t], trace)
        out[:, t] = trace
    return out, out + value[:, :-1]


def policy_loss(logp: Tensor, old_logp: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, negated, and the probability ratio; each (B, T)."""
    ratio = torch.exp(logp - old_logp)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage), ratio


def value_loss(value: Tensor, old_value: Tensor, target: Tensor, clip: float | None) -> Tensor:
    """Half the squared error, (B, T); with `clip` the larger one of value and value kept near the recorded one."""
    error = (value - target).square()
    if clip is not None:
        kept = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (kept - target).square())
    return 0.5 * error
