"""LaProp with adaptive gradient clipping, DreamerV3's optimiser (danijar/dreamerv3, embodied/jax/opt.py)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from torchmem.models.dreamer.config import DreamerConfig


def learning_rate(
    update: int, lr: float, warmup: int, schedule: str = "const", anneal: int = 0, hold: int = 0
) -> float:
    """Rate of update index `update` (from 0): linear warm-up from 0, so that the first update changes nothing.

    A linear or cosine schedule falls from update max(warmup, hold) to update anneal (hold is not in the original).
    """
    if warmup and update < warmup:
        return lr * update / warmup
    if schedule == "const":
        return lr
    start = max(warmup, hold)
    share = min(max(update - start, 0) / max(anneal - start, 1), 1.0)
    if schedule == "linear":
        return lr + (0.1 * lr - lr) * share
    if schedule == "cosine":
        floor = 0.1 * lr  # a share of lr, so 0.1 lr^2: the original hands optax its floor in the wrong unit
        return lr * ((1 - floor) * 0.5 * (1 + math.cos(math.pi * share)) + floor)
    raise ValueError(f"agent.schedule={schedule!r}: choose const, linear or cosine")


class LaProp(torch.optim.Optimizer):
    """Clip each tensor to a share of its norm, divide by the running gradient size, then take momentum.

    Per tensor (spec section 10): AGC on the whole tensor; nu <- b2 nu + (1 - b2) g^2; g <- g / (sqrt(nu hat) + eps);
    mu <- b1 mu + (1 - b1) g; w <- w - lr (mu hat + wd w). Weight decay touches weights only, not biases and scales.
    All on lists (foreach), without a device synchronisation. State per parameter: nu, mu; `updates` counts all calls.
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]], config: DreamerConfig) -> None:
        named = list(named)
        decayed = [p for n, p in named if n.endswith("weight")]
        others = [p for n, p in named if not n.endswith("weight")]
        super().__init__(
            [{"params": decayed, "decay": config.weight_decay}, {"params": others, "decay": 0.0}],
            {"decay": 0.0},
        )
        self.config = config
        self.updates = 0
        self.gradient_norm = torch.zeros(())  # of all gradients of the last step, before clipping
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"nu": torch.zeros_like(p), "mu": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update of every parameter that has a gradient; raises if a trained parameter has none."""
        c = self.config
        lr = learning_rate(self.updates, c.lr, c.warmup, c.schedule, c.anneal, c.hold)
        self.updates += 1
        nu_fix = 1 - c.beta2**self.updates
        mu_fix = 1 - c.beta1**self.updates
        squares = []
        for group in self.param_groups:
            params = group["params"]
            if not params:
                continue
            grads = [p.grad for p in params]
            if any(g is None for g in grads):
                raise RuntimeError("a trained parameter has no gradient; every loss must reach its module")
            nus = [self.state[p]["nu"] for p in params]
            mus = [self.state[p]["mu"] for p in params]
            norms = torch._foreach_norm(grads)
            squares.append(torch.stack(norms).double().square().sum())  # double: a large norm is not an infinite one
            limits = torch._foreach_clamp_min(torch._foreach_norm(params), c.agc_min)
            torch._foreach_mul_(limits, c.agc)
            torch._foreach_div_(norms, limits)
            torch._foreach_clamp_min_(norms, 1.0)
            grads = torch._foreach_div(grads, norms)
            torch._foreach_mul_(nus, c.beta2)
            torch._foreach_addcmul_(nus, grads, grads, 1 - c.beta2)
            denom = torch._foreach_div(nus, nu_fix)
            torch._foreach_sqrt_(denom)
            torch._foreach_add_(denom, c.eps)
            torch._foreach_div_(grads, denom)
            torch._foreach_lerp_(mus, grads, 1 - c.beta1)
            step = torch._foreach_div(mus, mu_fix)
            if group["decay"]:
                torch._foreach_add_(step, params, alpha=group["decay"])
            torch._foreach_add_(params, step, alpha=-lr)
        self.gradient_norm = torch.stack(squares).sum().sqrt()
