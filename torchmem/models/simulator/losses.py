"""The terms of a simulator's loss (spec 3.4), as functions of what they compare. `model.py` sums them over steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from torchmem.models.dists import categorical_kl


def half_square(guess: Tensor, truth: Tensor) -> Tensor:
    """Half the squared error: the likelihood of a Gaussian of unit variance, up to its constant. Elementwise."""
    return 0.5 * (guess - truth).square()


def memory_loss(guess: Tensor, truth: Tensor) -> Tensor:
    """(B, T, M) -> (B, T): half the squared distance between two memories."""
    return half_square(guess, truth).sum(-1)


def balanced_kl(
    posterior: Tensor, prior: Tensor, balance: float, kl: Callable[[Tensor, Tensor], Tensor] = categorical_kl
) -> Tensor:
    """Distributions (..., S, K), of categoricals log-probabilities -> (...): the share `balance` of their KL trains the
    prior, the rest the posterior."""
    to_prior = kl(posterior.detach(), prior)
    to_posterior = kl(posterior, prior.detach())
    return balance * to_prior + (1 - balance) * to_posterior


def update_loss(deter: Tensor, before: Tensor) -> Tensor:
    """h (B, T, D) and the h before step 0 (B, D) -> (B, T): the length of each step's change, not squared."""
    return torch.linalg.vector_norm(deter - torch.cat([before.unsqueeze(1), deter[:, :-1]], 1), dim=-1)


def repulsion(latent: Tensor, legacy: bool) -> Tensor:
    """Starts (B, L) -> scalar: log of the mean over pairs of exp(-|a - b|^2); 0 where there is no pair.

    legacy: log of the sum over all B x B pairs, each with itself too, as the original has it.
    """
    near = torch.exp(-torch.cdist(latent, latent, compute_mode="donot_use_mm_for_euclid_dist").square())
    if legacy:
        return near.sum().log()
    rows = latent.shape[0]
    if rows < 2:
        return latent.sum() * 0
    apart = ~torch.eye(rows, dtype=torch.bool, device=latent.device)
    return (near * apart).sum().div(rows * (rows - 1)).log()


def latent_kl(raw: Tensor) -> Tensor:
    """Mean and log deviation of a Gaussian start (B, 2 L) -> (B,): KL to the standard normal, nats."""
    mean, log_std = raw.chunk(2, -1)
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(-1)
