"""What probes are fitted on: several sites of equal (padded) width, and what each training set knows of them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

DEAD = 1e-12  # a unit with less than this share of its variance in the training set is constant there


@dataclasses.dataclass(frozen=True)
class Design:
    """x: (S, N, D) float64, each unit shifted and scaled once so that sums are accurate (mean 0, variance 1 over all
    rows; constant and padding units are 0). No information: every training set standardises again with its own rows.

    fold: (N,) int. rows, total, square, gram: sums per fold, of 1, x, x^2 (F,), (S, F, D) and x x^T (S, F, D, D).
    shift, spread: (S, D), original unit = x * spread + shift.
    """

    x: Tensor
    fold: Tensor
    rows: Tensor
    total: Tensor
    square: Tensor
    gram: Tensor
    shift: Tensor
    spread: Tensor

    def kept(self, without: tuple[int, ...]) -> Tensor:
        """(F,) 1 for folds of the training set that leaves `without` out."""
        keep = torch.ones_like(self.rows)
        keep[list(without)] = 0
        return keep

    def scaling(self, without: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """(n, mean (S, D), 1 / standard deviation (S, D)) of a training set; 0 for units that are constant in it."""
        keep = self.kept(without)
        n = (self.rows * keep).sum()
        mean = torch.einsum("f,sfd->sd", keep, self.total) / n
        variance = torch.einsum("f,sfd->sd", keep, self.square) / n - mean**2
        return n, mean, torch.where(variance > DEAD, variance.clamp_min(DEAD).rsqrt(), 0.0)


def make_design(x: Tensor, fold: Tensor, *, keep_gram: bool = True) -> Design:
    """x: (S, N, D) float64 activations, fold: (N,) int64. keep_gram=False: one gram over all folds, (S, 1, D, D)."""
    shift = x.mean(1)
    spread = (x - shift[:, None]).square().mean(1).sqrt()
    # A unit whose spread is rounding noise of its mean is constant.
    spread = torch.where(spread > 1e-10 * shift.abs(), spread, 0.0)
    x = (x - shift[:, None]) * torch.where(spread > 0, 1 / spread, 0.0)[:, None]
    parts = [x[:, fold == f] for f in range(int(fold.max()) + 1)]
    rows = torch.tensor([part.shape[1] for part in parts], dtype=x.dtype, device=x.device)
    grams = [part.mT @ part for part in parts] if keep_gram else [x.mT @ x]
    return Design(
        x=x,
        fold=fold,
        rows=rows,
        total=torch.stack([part.sum(1) for part in parts], 1),
        square=torch.stack([part.square().sum(1) for part in parts], 1),
        gram=torch.stack(grams, 1),
        shift=shift,
        spread=spread,
    )
