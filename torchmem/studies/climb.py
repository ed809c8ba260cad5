"""Gradient ascent of starts in a simulator: many at once, each keeping the best point that it has met."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchmem.studies.latent_adam import LatentAdam

Score = Callable[[Tensor], tuple[Tensor, Tensor]]  # latent (R, L) -> (what is climbed (R,), what is told (R,))


@dataclasses.dataclass(frozen=True)
class Climb:
    """latent (R, L) the best met, told and total (R,) there, at (R,) the step. trace (steps + 1, R) of what is told,
    NaN where it was not finite. still, broken: shares of steps without any gradient, and with one that was no number.
    """

    latent: Tensor
    told: Tensor
    total: Tensor
    at: Tensor
    trace: Tensor
    still: float
    broken: float


def climb(score: Score, latent: Tensor, sphere: bool, steps: int, rate: float) -> Climb:
    """Raise `score` from latent (R, L) for `steps` steps; the rate falls to nothing along half a cosine.

    A point whose score or gradient is no number stays where it is. Raises ValueError where none ever has a score.
    """
    adam, x = LatentAdam(sphere), latent.detach().clone()
    best, told, at = x.clone(), torch.full_like(x[:, 0], torch.nan), torch.zeros(len(x), dtype=torch.long)
    highest, trace = torch.full_like(told, -torch.inf), []
    still = broken = 0
    for step in range(steps + 1):
        here = x.clone().requires_grad_()
        with torch.enable_grad():
            total, now = score(here)
        fine = torch.isfinite(total.detach()) & torch.isfinite(now.detach())
        better = fine & (total.detach() > highest)
        best[better], told[better] = x[better], now.detach()[better]
        highest[better], at[better.cpu()] = total.detach()[better], step
        trace.append(torch.where(fine, now.detach(), torch.nan))
        if step == steps:
            break
        gradient = torch.zeros_like(x)
        if total.requires_grad and fine.any():
            found = torch.autograd.grad(total[fine].sum(), here, allow_unused=True)[0]
            gradient = gradient if found is None else found
        wrong = ~torch.isfinite(gradient).all(-1) | ~fine
        gradient = torch.where(wrong[:, None], 0, gradient)
        broken += int(wrong.sum())
        still += int(((gradient == 0).all(-1) & ~wrong).sum())
        x = adam.step(x, gradient, rate * 0.5 * (1 + math.cos(math.pi * step / max(steps, 1))))
    if not torch.isfinite(highest).any():
        raise ValueError("the target is no finite number at any start: take another target or step")
    size = max(steps * len(x), 1)
    return Climb(best, told, highest, at, torch.stack(trace), still / size, broken / size)


def crowding(latent: Tensor, width: Tensor) -> Tensor:
    """(R,) 0..1: how many of the others are within about `width` of each of (R, L)."""
    if len(latent) < 2:
        return torch.zeros_like(latent[:, 0])
    near = torch.exp(-(latent[:, None] - latent).square().sum(-1) / (2 * width**2))
    return (near.sum(1) - 1) / (len(latent) - 1)
