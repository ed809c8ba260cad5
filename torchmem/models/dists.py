"""Distributions of DreamerV3, as pure functions of float32 logits (danijar/dreamerv3, embodied/jax/outs.py, heads.py).

Sampling takes its noise as an argument: `None` is the mode; Gumbel noise makes `argmax(logits + noise)` a fair draw.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmem.models.fused import widen


def symlog(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    return torch.sign(x) * torch.expm1(x.abs())


def gumbel(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device | str) -> Tensor:
    """Standard Gumbel noise, float32."""
    uniform = torch.rand(shape, generator=generator, device=device)
    # rand can return 0; 1 - 2^-24 is the last float below 1
    return -torch.log(-torch.log(uniform.clamp_(1e-20, 1 - 2**-24)))


# Categorical latents -----------------------------------------------------------------------------------------------


def unimix(logits: Tensor, share: float) -> Tensor:
    """Normalised log-probabilities of (1 - share) softmax(logits) + share / K. logits (..., K) -> float32 or wider."""
    logits = widen(logits)
    if share == 0:
        return F.log_softmax(logits, -1)
    return torch.log((1 - share) * torch.softmax(logits, -1) + share / logits.shape[-1])


def sample_index(logits: Tensor, noise: Tensor | None) -> Tensor:
    """Class indices (...) drawn from logits (..., K)."""
    return (logits if noise is None else logits + noise).argmax(-1)


def straight_through(logp: Tensor, noise: Tensor | None) -> Tensor:
    """One-hot sample (..., S, K) whose gradient is that of the probabilities exp(logp)."""
    sample = F.one_hot(sample_index(logp.detach(), noise), logp.shape[-1]).to(logp.dtype)
    if not logp.requires_grad:
        return sample
    probs = logp.exp()
    return sample + (probs - probs.detach())


def categorical_kl(logp: Tensor, logq: Tensor) -> Tensor:
    """KL(p || q) summed over the S variables. Normalised log-probabilities (..., S, K) -> (...)."""
    return (logp.exp() * (logp - logq)).sum((-2, -1))


def categorical_entropy(logp: Tensor) -> Tensor:
    """Entropy over the last axis. Normalised log-probabilities (..., K) -> (...)."""
    return -(logp.exp() * logp).sum(-1)


# Two-hot over symexp-spaced bins -----------------------------------------------------------------------------------


def symexp_bins(count: int) -> Tensor:
    """Exactly antisymmetric bins, (count,) float32: symexp of [-20, 20] in even steps; an even count holds 0 twice."""
    points = torch.linspace(-20, 0, (count + 1) // 2 if count % 2 else count // 2, dtype=torch.float32)
    half = symexp(points)
    return torch.cat([half, -(half[:-1] if count % 2 else half).flip(0)])


def twohot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Expectation over the bins. logits (..., bins) -> (...), float32.

    Mirrored bins are added first, so that uniform logits give exactly 0: single terms reach 2e6 (spec trap 2).
    """
    probs = torch.softmax(widen(logits), -1)
    count = bins.shape[0]
    low, high = count // 2, (count + 1) // 2
    weighted = probs * bins
    pairs = (weighted[..., :low].flip(-1) + weighted[..., high:]).sum(-1)
    return pairs + weighted[..., low:high].sum(-1)


def twohot_loss(logits: Tensor, bins: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the two bins around the target. logits (..., bins), target (...) -> (...)."""
    logits, target = widen(logits), widen(target.detach())
    count = bins.shape[0]
    # bins <= t and count - (bins > t) are the same number for finite bins: one search gives both neighbours.
    upto = torch.searchsorted(bins, target.contiguous(), right=True)
    below = (upto - 1).clamp(0, count - 1)
    above = upto.clamp(0, count - 1)
    to_below = (bins[below] - target).abs()
    to_above = (bins[above] - target).abs()
    same = (below == above) & ~target.isnan()  # a NaN must show in the loss; the search puts it above all bins
    to_below = torch.where(same, 1.0, to_below)
    to_above = torch.where(same, 1.0, to_above)
    total = to_below + to_above
    picked = logits.gather(-1, torch.stack([below, above], -1))
    weights = torch.stack([to_above / total, to_below / total], -1)
    return logits.logsumexp(-1) - (picked * weights).sum(-1)


# Other heads -------------------------------------------------------------------------------------------------------


def binary_loss(logit: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy with a soft label, elementwise."""
    logit = widen(logit)
    return -(label * F.logsigmoid(logit) + (1 - label) * F.logsigmoid(-logit))


def bounded_normal(mean: Tensor, std: Tensor, min_std: float, max_std: float) -> tuple[Tensor, Tensor]:
    """Mean in (-1, 1) and deviation in (min_std, max_std), float32, from raw outputs (computed in their dtype)."""
    bounded = (max_std - min_std) * torch.sigmoid(std + 2.0) + min_std
    return widen(torch.tanh(mean)), widen(bounded)


def normal_logp(mean: Tensor, std: Tensor, event: Tensor) -> Tensor:
    """Log-density summed over the last axis. (..., A) -> (...)."""
    z = (widen(event.detach()) - mean) / std
    return (-0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def normal_entropy(std: Tensor) -> Tensor:
    """Differential entropy summed over the last axis. (..., A) -> (...)."""
    return (0.5 * torch.log(2 * math.pi * std.square()) + 0.5).sum(-1)
