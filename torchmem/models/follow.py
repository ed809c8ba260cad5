"""Imagination, the same for every world model: the policy acts, the prior moves the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torchmem.models.heads import PolicyHead
from torchmem.models.noise import Noise


def follow(
    policy: PolicyHead,
    feature: Callable[[Any], Tensor],
    move: Callable[[Any, dict[str, Tensor], Tensor | None], Any],
    start: Any,
    horizon: int,
    noise: Noise,
    actions: Mapping[str, Tensor] | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Features (N, H + 1, F) and actions (N, H + 1, ...) along `horizon` steps from N states.

    feature: state -> (N, F). move: state, action, draw (N, S, K) or None for the mode -> the next state.
    noise.prior (N, H, S, K), noise.action[key] (N, H + 1, ...). actions: (N, H, ...) to take in place of the policy's.
    The action at the last state is drawn too, as DreamerV3 does.
    """
    state, feats, taken = start, [feature(start)], []
    for t in range(horizon + 1):
        step_noise = None if noise.action is None else {k: n[:, t] for k, n in noise.action.items()}
        chosen = policy.sample(policy(feats[-1]), step_noise)
        taken.append(chosen if actions is None or t == horizon else {k: a[:, t] for k, a in actions.items()})
        if t < horizon:
            state = move(state, taken[-1], None if noise.prior is None else noise.prior[:, t])
            feats.append(feature(state))
    return torch.stack(feats, 1), {key: torch.stack([a[key] for a in taken], 1) for key in taken[0]}
