"""Decoders of position, each fitted to all sites of a batch and all folds: held-out guesses, and one refit to keep."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis import _position_lda as lda
from torchmem.analysis._position_data import Grid, PositionData
from torchmem.analysis._position_score import Guesses

RIDGE_ALPHAS = (0.001, 0.01, 0.1, 1.0, 10.0)
Model = dict[str, np.ndarray]


def fit_tiles(x: Tensor, data: PositionData, guesses: Guesses, at: slice) -> list[Model]:
    """Linear discriminants over tiles. x: (S, N, D). Fills `guesses` at its sites `at`; returns the refits."""
    grid, tiles = data.grid, lda.Tiles.of(x, torch.as_tensor(data.fold, device=x.device))
    y = torch.as_tensor(grid.y, device=x.device)
    labels = lda.Labelling.of(tiles, y, len(grid.cells))
    far = torch.as_tensor(grid.far(), device=x.device)
    floor = torch.as_tensor(data.floor / np.prod(grid.shape), device=x.device).float()
    alpha, tau = lda.choose(tiles, labels, y, far, floor)
    for f in data.tested:
        rows = np.flatnonzero(data.fold == f)
        linear = _pick(tiles, labels, (f,), alpha[f])
        guesses.note(rows, linear.log_p(x[:, rows], tau[f]).exp(), grid.cells, data.floor[rows], at)
    linear = _pick(tiles, labels, (), alpha[-1])
    seen = {"tau": tau[-1], "alpha": alpha[-1], "weight": linear.weight * tau[-1][:, None, None]}
    seen["bias"] = (linear.bias + linear.prior) * tau[-1][:, None]
    return [{name: np.asarray(values[s].cpu()) for name, values in seen.items()} for s in range(len(x))]


def _pick(tiles: lda.Tiles, labels: lda.Labelling, without: tuple[int, ...], alpha: Tensor) -> lda.Linear:
    """The fit of each site at its own alpha (S,)."""
    values = sorted(set(alpha.tolist()))
    fits = lda.fit(tiles, labels, without, values)
    which = [values.index(a) for a in alpha.tolist()]
    weight = torch.stack([fits[i].weight[s] for s, i in enumerate(which)])
    bias = torch.stack([fits[i].bias[s] for s, i in enumerate(which)])
    return lda.Linear(weight, bias, fits[0].prior)


def null_tiles(tiles: lda.Tiles, y: np.ndarray, data: PositionData) -> tuple[np.ndarray, np.ndarray]:
    """(mean Manhattan error, accuracy), each (S,), of a refit to the labels y (N,).

    The penalty of each fold is the one that does best on it: a rival that errs in its own favour.
    """
    grid, x = data.grid, tiles.x
    labels = lda.Labelling.of(tiles, torch.as_tensor(y, device=x.device), len(grid.cells))
    far = torch.as_tensor(grid.far(), device=x.device)
    away, right, steps = np.zeros(len(x)), np.zeros(len(x)), 0
    for f in data.tested:
        rows = np.flatnonzero(data.fold == f)
        own = torch.as_tensor(y[rows], device=x.device)
        guess = torch.stack([one.logits(x[:, rows]).argmax(-1) for one in lda.fit(tiles, labels, (f,), lda.ALPHAS)])
        error, hits = far[guess, own].sum(-1), (guess == own).double().sum(-1)  # (A, S)
        best = error.argmin(0)
        away += error.gather(0, best[None])[0].cpu().numpy()
        right += hits.gather(0, best[None])[0].cpu().numpy()
        steps += len(rows)
    return away / steps, right / steps


def _ridge(tiles: lda.Tiles, cross: Tensor, target: Tensor, without: tuple[int, ...], alphas: Any) -> list[Tensor]:
    """(S, D + 1, 2) per alpha, the intercept last."""
    keep = torch.tensor([f not in without for f in range(tiles.folds)], device=tiles.x.device)
    rows = keep[tiles.fold]
    n = rows.sum()
    mean, centre = tiles.x[:, rows].double().mean(1), target[rows].mean(0)
    gram = tiles.gram[:, keep].sum(1) / n - mean[:, :, None] * mean[:, None]
    right = cross[:, keep].sum(1) / n - mean[:, :, None] * centre
    out = []
    for alpha in alphas:
        shrunk = gram.clone()
        shrunk.diagonal(dim1=1, dim2=2).add_(alpha)
        weight = torch.cholesky_solve(right, torch.linalg.cholesky(shrunk))
        out.append(torch.cat([weight, (centre - (mean[:, :, None] * weight).sum(1))[:, None]], 1).float())
    return out


def _place(x: Tensor, v: Tensor) -> Tensor:
    return torch.baddbmm(v[:, -1:], x, v[:, :-1])


def gaussian(mean: Tensor, covariance: Tensor, grid: Grid) -> tuple[Tensor, np.ndarray]:
    """Probabilities (S, n, W * H) of a normal distribution, mean (S, n, 2), covariance (S, 2, 2), and its tiles."""
    cells = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1).reshape(-1, 2)
    off = torch.as_tensor(cells).to(mean) - mean[:, :, None]
    return torch.softmax(-0.5 * torch.einsum("snci,sij,sncj->snc", off, torch.linalg.inv(covariance), off), -1), cells


def fit_ridge_position(x: Tensor, data: PositionData, guesses: Guesses, at: slice) -> list[Model]:
    """Ridge regression of x and y; the scatter of its own held-out errors makes the probabilities."""
    grid, fold = data.grid, torch.as_tensor(data.fold, device=x.device)
    tiles = lda.Tiles.of(x, fold)
    target = torch.as_tensor(grid.tile, device=x.device).double()
    rows = [np.flatnonzero(data.fold == f) for f in range(data.folds)]
    cross = torch.stack([x[:, r].double().mT @ target[r] for r in rows], 1)
    shape = (data.folds + 1, len(RIDGE_ALPHAS), len(x))
    error, scatter, count = x.new_zeros(shape), x.new_zeros(*shape, 2, 2), x.new_zeros(data.folds + 1)
    for f, k in itertools.combinations(range(data.folds), 2):
        for a, v in enumerate(_ridge(tiles, cross, target, (f, k), RIDGE_ALPHAS)):
            for out, seen in ((f, k), (k, f)):
                off = _place(x[:, rows[seen]], v) - target[rows[seen]].float()
                for to in (out, -1):
                    error[to, a] += off.abs().sum((1, 2))
                    scatter[to, a] += off.mT @ off
                    count[to] += len(rows[seen]) if a == 0 else 0
    best = len(RIDGE_ALPHAS) - 1 - error.flip(1).argmin(1)  # (F + 1, S)
    pick = torch.arange(len(x), device=x.device)
    eye = 1 / 12 * torch.eye(2, device=x.device)  # of a tile's own width
    for f in (*data.tested, -1):
        v = torch.stack(_ridge(tiles, cross, target, () if f == -1 else (f,), RIDGE_ALPHAS))[best[f], pick]
        covariance = scatter[f][best[f], pick] / count[f] + eye
        if f == -1:
            alphas = [RIDGE_ALPHAS[i] for i in best[-1].tolist()]
            break
        for part in np.array_split(rows[f], 1 + len(rows[f]) * grid.shape[0] * grid.shape[1] // 2**20):
            mean = _place(x[:, part], v)
            p, cells = gaussian(mean, covariance, grid)
            guesses.note(part, p, cells, data.floor[part], at, mean)
    return [
        {"weight": v[s, :-1].cpu().numpy(), "bias": v[s, -1].cpu().numpy(), "covariance": covariance[s].cpu().numpy(),
         "alpha": np.asarray(alphas[s])}
        for s in range(len(x))
    ]  # fmt: skip


def null_ridge(tiles: lda.Tiles, y: np.ndarray, data: PositionData) -> tuple[np.ndarray, np.ndarray]:
    """As `null_tiles`, of ridge regression."""
    grid, x = data.grid, tiles.x
    target = torch.as_tensor(grid.cells[y], device=x.device).double()
    rows = [np.flatnonzero(data.fold == f) for f in range(data.folds)]
    cross = torch.stack([x[:, r].double().mT @ target[r] for r in rows], 1)
    away, right, steps = np.zeros(len(x)), np.zeros(len(x)), 0
    for f in data.tested:
        fits = _ridge(tiles, cross, target, (f,), RIDGE_ALPHAS)
        off = torch.stack([(_place(x[:, rows[f]], v).round() - target[rows[f]].float()).abs().sum(-1) for v in fits])
        best = off.sum(-1).argmin(0)
        chosen = off[best, torch.arange(len(x), device=x.device)]
        away += chosen.sum(-1).cpu().numpy()
        right += (chosen == 0).sum(-1).cpu().numpy()
        steps += len(rows[f])
    return away / steps, right / steps
