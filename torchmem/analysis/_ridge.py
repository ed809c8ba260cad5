"""Ridge regression for many sites, training sets and labellings at once."""

from __future__ import annotations

import torch
from torch import Tensor

from torchmem.analysis._design import Design


def fit_ridge(
    design: Design, sets: list[tuple[int, ...]], y: Tensor, alpha: Tensor, start: Tensor | None = None
) -> Tensor:
    """Minimise mean squared error + alpha * |w|^2 over standardised units, without a penalty on the intercept.

    sets: G training sets, each by the folds that it leaves out. y: (R, N, O). alpha: (S, G, R), penalty per step
    (scikit-learn's Ridge(alpha) is alpha * n). start is unused: the solution is exact.
    Returns (S, G, R, D + 1, O): weights on `design.x`, the intercept last. One Cholesky factor per site, training set
    and value of alpha serves all R labellings.
    """
    x = design.x
    s, _, d = x.shape
    r, _, o = y.shape
    folds = range(len(design.rows))
    per_fold = [x[:, design.fold == f].mT @ y[:, design.fold == f].movedim(0, 1).flatten(1) for f in folds]
    cross_all = torch.stack(per_fold, 1)  # (S, F, D, R*O)
    sums = torch.stack([y[:, design.fold == f].sum(1) for f in folds])  # (F, R, O)
    out = x.new_zeros(s, len(sets), r, d + 1, o)
    for g, without in enumerate(sets):
        keep = design.kept(without)
        n, mean, inverse = design.scaling(without)
        gram = torch.einsum("f,sfde->sde", keep, design.gram) - n * mean[:, :, None] * mean[:, None]
        gram = gram * inverse[:, :, None] * inverse[:, None]
        y_mean = torch.einsum("f,fro->ro", keep, sums) / n
        cross = torch.einsum("f,sfdk->sdk", keep, cross_all) - n * mean[:, :, None] * y_mean.flatten()
        cross = cross * inverse[:, :, None]
        for value in alpha[:, g].unique():
            penalised = gram.clone()
            penalised.diagonal(dim1=1, dim2=2).add_(n * value)
            weight = torch.cholesky_solve(cross, torch.linalg.cholesky(penalised))
            weight = (weight * inverse[:, :, None]).unflatten(-1, (r, o)).movedim(2, 1)  # (S, R, D, O)
            bias = y_mean - torch.einsum("sd,srdo->sro", mean, weight)
            chosen = (alpha[:, g] == value)[..., None, None]
            out[:, g] = torch.where(chosen, torch.cat([weight, bias[:, :, None]], 2), out[:, g])
    return out
