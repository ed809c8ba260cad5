"""Lambda returns and the range of returns that advantages are divided by (danijar/dreamerv3, agent.py)."""

from __future__ import annotations

import torch
from torch import Tensor


def lambda_return(
    reward: Tensor, live: Tensor, boot: Tensor, lam: float, last: Tensor | None = None
) -> Tensor:
    """Lambda return of every step but the final one. All inputs (N, T), the result (N, T - 1), float32.

    reward, live, boot at index t + 1 belong to the state that step t leads to: live is 1 (or the discount) where the
    future counts and 0 at a terminal; `last` cuts the lambda trace where a sequence crosses into another episode:

        R_t = r_{t+1} + live_{t+1} * ((1 - lam_{t+1}) boot_{t+1} + lam_{t+1} R_{t+1}),  lam_t = lam * (1 - last_t)

    with R at the final index = boot there (DreamerV3, Nature 2025, equation 5 and agent.py `lambda_return`).
    """
    trace = torch.full_like(reward, lam) if last is None else lam * (1 - last.float())
    base = reward + live * (1 - trace) * boot
    decay = live * trace
    ret = boot[:, -1]
    out = []
    for t in range(reward.shape[1] - 1, 0, -1):
        ret = base[:, t] + decay[:, t] * ret
        out.append(ret)
    return torch.stack(out[::-1], 1)


def percentile_range(returns: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Percentiles (in %) of all returns, linear interpolation. Sorts: torch.quantile refuses more than 2^24 values."""
    flat = returns.detach().flatten().sort().values
    out = []
    for percent in (low, high):
        position = percent / 100 * (flat.numel() - 1)
        below = int(position)
        above = min(below + 1, flat.numel() - 1)
        out.append(torch.lerp(flat[below], flat[above], position - below))
    return out[0], out[1]
