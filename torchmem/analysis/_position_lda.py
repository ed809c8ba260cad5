"""Which tile: linear discriminants for many sites, training sets and labellings at once, in closed form.

Each tile is a Gaussian with a mean of its own and one covariance for all, shrunk towards the identity (units are
scaled to variance 1): a softmax over tiles that is linear in the activations, found by one Cholesky factor in place of
thousands of gradient steps. Source: Friedman 1989, Regularized Discriminant Analysis.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

ALPHAS = (0.003, 0.03, 0.3, 3.0)  # of the identity, in units of each unit's variance
TAUS = (0.03, 0.1, 0.3, 1.0)  # logits are multiplied by it: that calibrates them and leaves the likeliest tile


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Sums over the activations, per fold. x: (S, N, D) float32, gram: (S, F, D, D) float64."""

    x: Tensor
    fold: Tensor
    gram: Tensor

    @classmethod
    def of(cls, x: Tensor, fold: Tensor) -> Tiles:
        grams = []
        for f in range(int(fold.max()) + 1):
            part = x[:, fold == f].double()
            grams.append(part.mT @ part)
        return cls(x, fold, torch.stack(grams, 1))

    @property
    def folds(self) -> int:
        return self.gram.shape[1]


@dataclasses.dataclass(frozen=True)
class Labelling:
    """count: (F, K) steps per fold and tile. total: (S, F, K, D) sums of the activations of these."""

    count: Tensor
    total: Tensor

    @classmethod
    def of(cls, tiles: Tiles, y: Tensor, classes: int) -> Labelling:
        s, _, d = tiles.x.shape
        cell = tiles.fold * classes + y
        size = tiles.folds * classes
        count = torch.bincount(cell, minlength=size).to(tiles.x.dtype).view(tiles.folds, classes)
        total = tiles.x.new_zeros(s, size, d).index_add_(1, cell, tiles.x)
        return cls(count, total.view(s, tiles.folds, classes, d))


@dataclasses.dataclass(frozen=True)
class Linear:
    """Evidence x @ weight + bias, (S, D, K) and (S, K), beside the log of the prior (K,): -inf where never seen."""

    weight: Tensor
    bias: Tensor
    prior: Tensor

    def log_p(self, x: Tensor, tau: Tensor | float) -> Tensor:
        """x: (S, n, D), tau: a number or (S,) -> (S, n, K)."""
        scale = tau[:, None, None] if isinstance(tau, Tensor) else tau
        return torch.log_softmax(self.logits(x) * scale, -1)

    def logits(self, x: Tensor) -> Tensor:
        return torch.baddbmm((self.bias + self.prior)[:, None], x, self.weight)


def fit(tiles: Tiles, labels: Labelling, without: Sequence[int], alphas: Sequence[float]) -> list[Linear]:
    """One per alpha, trained on all folds but those of `without`."""
    keep = [f for f in range(tiles.folds) if f not in without]
    count = labels.count[keep].sum(0)
    n = count.sum()
    seen = count > 0
    mean = labels.total[:, keep].sum(1) / count.clamp_min(1)[:, None]  # (S, K, D)
    scaled = (mean * count.sqrt()[:, None]).double()
    within = (tiles.gram[:, keep].sum(1) - scaled.mT @ scaled) / n
    prior = torch.where(seen, (count / n).log(), -torch.inf)
    out = []
    for alpha in alphas:
        shrunk = within.clone()
        shrunk.diagonal(dim1=1, dim2=2).add_(alpha)
        weight = torch.cholesky_solve(mean.mT.double(), torch.linalg.cholesky(shrunk)).to(mean.dtype)
        out.append(Linear(weight, -(mean.mT * weight).sum(1) / 2, prior))
    return out


def choose(
    tiles: Tiles, labels: Labelling, y: Tensor, far: Tensor, floor: Tensor, alphas: Sequence[float] = ALPHAS
) -> tuple[Tensor, Tensor]:
    """(alpha, tau), each (F + 1, S): for every held-out fold by the other folds alone, and at last by all folds.

    alpha by the mean distance of the likeliest tile, tau then by the log loss. far: (K, K) distances between tiles.
    floor: (N,) probability added everywhere, so that a tile that was never seen costs something finite. As leaving out
    folds f and k serves both as k inside f and as f inside k, F (F - 1) / 2 training sets serve all.
    """
    s = len(tiles.x)
    folds = range(tiles.folds)
    rows = [torch.nonzero(tiles.fold == f)[:, 0] for f in folds]
    distance = tiles.x.new_zeros(tiles.folds + 1, s, len(alphas))
    loss = tiles.x.new_zeros(tiles.folds + 1, s, len(alphas), len(TAUS))
    for f, k in itertools.combinations(folds, 2):
        for a, linear in enumerate(fit(tiles, labels, (f, k), alphas)):
            for out, seen in ((f, k), (k, f)):
                at = rows[seen]
                logits = linear.logits(tiles.x[:, at])
                error = far[logits.argmax(-1), y[at]].sum(-1)
                own = logits.gather(-1, y[at].expand(s, -1)[..., None])[..., 0]
                lost = [-((own * t - (logits * t).logsumexp(-1)).exp() + floor[at]).log().sum(-1) for t in TAUS]
                for to in (out, -1):
                    distance[to, :, a] += error
                    loss[to, :, a] += torch.stack(lost, -1)
    a = len(alphas) - 1 - distance.flip(-1).argmin(-1)  # strong shrinkage wins ties
    chosen = loss.gather(2, a[..., None, None].expand(-1, -1, 1, len(TAUS)))[:, :, 0]
    return torch.tensor(alphas).to(tiles.x)[a], torch.tensor(TAUS).to(tiles.x)[chosen.argmin(-1)]
