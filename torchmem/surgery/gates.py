"""Gates of a weight mask, and what they cost: how a logit becomes kept or dropped so that gradients can find the mask.

    gate            value used in the pass                            probability of being kept
    gumbel_st       1[l + n > 0], gradient of sigmoid((l + n) / tau)  sigmoid(l)               Csordás et al. 2021
    hard_concrete   clip(1.2 sigmoid((l + n) / beta) - 0.1, 0, 1)     sigmoid(l - beta log(0.1 / 1.1))  Louizos 2018
    ste_sigmoid     1[l > 0], gradient of sigmoid(l)                  sigmoid(l)               no noise
    topk            1[l among the k largest], gradient 1              the same indicator       Ramanujan et al. 2020

l is the logit of one gate, n logistic noise. A gate covers one weight, or a whole row or column of a weight matrix.

ste_sigmoid does not explore: a self-weight that is once dropped cuts its own gradient through time, so it stays away
even if it is worth its price. On the planted agent it loses self-weights at an alpha at which gumbel_st loses none.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

Gate = Literal["gumbel_st", "hard_concrete", "ste_sigmoid", "topk"]
Penalty = Literal["none", "sum_prob", "sum_logit", "l0", "lagrangian", "constrained"]
Granularity = Literal["weight", "row", "column"]
GATES: tuple[Gate, ...] = ("gumbel_st", "hard_concrete", "ste_sigmoid", "topk")
PENALTIES: tuple[Penalty, ...] = ("none", "sum_prob", "sum_logit", "l0", "lagrangian", "constrained")

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # of hard concrete: temperature and the interval that is cut to [0, 1]
SHIFT = BETA * math.log(-GAMMA / ZETA)
BOUND = 10.0  # logits stay within +-BOUND: sum_logit would push for ever


def gate_shape(shape: torch.Size, granularity: Granularity) -> tuple[int, ...]:
    """Shape of the logits of one weight, which expand over it. Weights are (out, in, ...) or (blocks, out, in)."""
    if granularity == "weight":
        return tuple(shape)
    out = 1 if len(shape) == 3 else 0
    kept = {"row": (out,), "column": (out + 1,)}[granularity] + ((0,) if len(shape) == 3 else ())
    return tuple(size if axis in kept else 1 for axis, size in enumerate(shape))


def logistic(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard logistic noise: P(l + n > 0) = sigmoid(l)."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device, dtype=like.dtype)
    return torch.logit(uniform.clamp_(1e-7, 1 - 1e-7))


def draw(gate: Gate, logits: Tensor, generator: torch.Generator | None = None, tau: float = 1.0) -> Tensor:
    """One sample of gate values in [0, 1] for logits of any shape, differentiable in them. Not for topk."""
    if gate == "gumbel_st":
        noisy = logits + logistic(logits, generator)
        soft = torch.sigmoid(noisy / tau)
        return (noisy > 0).to(soft.dtype) + (soft - soft.detach())
    if gate == "hard_concrete":
        soft = torch.sigmoid((logits + logistic(logits, generator)) / BETA)
        return (soft * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
    if gate == "ste_sigmoid":
        soft = torch.sigmoid(logits)
        return (logits > 0).to(soft.dtype) + (soft - soft.detach())
    raise ValueError(f"gate {gate!r} draws nothing by itself; gates that do: {', '.join(GATES[:3])}")


def top(values: list[Tensor], sizes: list[int], count: int) -> list[Tensor]:
    """Indicator (bool) of the largest values of all tensors together, filled until `count` weights are kept.

    sizes: weights that one gate of each tensor covers; a gate is kept whole, if it still fits. Ties: earlier first.
    """
    flat = torch.cat([v.flatten() for v in values])
    covers = torch.cat([torch.full((v.numel(),), s, device=v.device) for v, s in zip(values, sizes, strict=True)])
    order = torch.sort(flat, descending=True, stable=True).indices
    kept = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    kept[order] = covers[order].cumsum(0) <= count
    return [k.view_as(v) for k, v in zip(kept.split([v.numel() for v in values]), values, strict=True)]


def keep_top(values: list[Tensor], sizes: list[int], count: int) -> list[Tensor]:
    """Gate values of topk: the indicator forward, the identity backward, so that dropped weights can come back."""
    hard = top([v.detach() for v in values], sizes, count)
    return [h.to(v.dtype) + (v - v.detach()) for h, v in zip(hard, values, strict=True)]


def probability(gate: Gate, logits: Tensor) -> Tensor:
    """P(gate > 0), differentiable; of topk not defined."""
    return torch.sigmoid(logits - SHIFT) if gate == "hard_concrete" else torch.sigmoid(logits)


def ramp(step: int, steps: int, flat: float = 0.25, rise: float = 0.5) -> float:
    """0 for the first quarter of `steps`, then linear over the next half, then 1 (Cao et al. 2021)."""
    return min(max((step / steps - flat) / rise, 0.0), 1.0)


@dataclasses.dataclass
class Cost:
    """The penalty of a mask in the making, and its multipliers.

        none          0
        sum_prob      alpha * sum sigmoid(l): the expected count; saturates
        sum_logit     alpha * sum l: parity with Csordás et al.; pushes for ever
        l0            alpha * sum P(gate > 0) of hard concrete
        lagrangian    a (s - s*) + b (s - s*)^2, s the expected kept share, s* falls to `target`; a, b climb
        constrained   s + m (KL - eps): the fewest weights within eps nats; m climbs while KL > eps, never below 0

    Sums run over weights, so a row gate counts as many times as it has weights.
    """

    kind: Penalty
    gate: Gate
    sizes: list[int]  # weights that one gate of each tensor covers
    alpha: float
    target: float  # kept share that lagrangian aims at
    epsilon: float  # nats that constrained allows
    rate: float  # of the multipliers
    first: float = 0.0  # a, or m
    second: float = 30.0  # b: stiff from the start, or the share swings around its target (measured: +-2 % with 0)

    def share(self, logits: list[Tensor]) -> Tensor:
        """Expected kept share of all weights, 0 to 1."""
        total = sum(size * logit.numel() for size, logit in zip(self.sizes, logits, strict=True))
        return self._sum([probability(self.gate, logit) for logit in logits]) / total

    def __call__(self, logits: list[Tensor], kl: Tensor, progress: float) -> Tensor:
        """The whole objective: distance plus penalty. progress: 0 to 1, from `ramp`; also moves the multipliers."""
        if self.kind == "none":
            return kl
        if self.kind == "sum_logit":
            return kl + self.alpha * progress * self._sum(logits)
        if self.kind in ("sum_prob", "l0"):
            gate = self.gate if self.kind == "l0" else "gumbel_st"
            return kl + self.alpha * progress * self._sum([probability(gate, logit) for logit in logits])
        share = self.share(logits)
        if self.kind == "constrained":
            excess = min(kl.item() / self.epsilon - 1, 1.0)  # a far start must not wind the multiplier up
            self.first = max(0.0, self.first + self.rate * excess)
            return share * progress + self.first * (kl - self.epsilon) / self.epsilon
        over = share - (1 - progress * (1 - self.target))
        value = kl + self.first * over + self.second * over**2
        if progress > 0:
            self.first += self.rate * over.item()
            self.second += self.rate * over.item() ** 2
        return value

    def _sum(self, values: list[Tensor]) -> Tensor:
        return torch.stack([size * value.sum() for size, value in zip(self.sizes, values, strict=True)]).sum()
