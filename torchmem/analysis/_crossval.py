"""Nested cross-validation in which every fit of every labelling shares the sums over the activations."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis._design import make_design
from torchmem.analysis._logistic import fit_logistic
from torchmem.analysis._ridge import fit_ridge

ELEMENTS = 2**23  # of the largest temporary, 64 MiB of float64: more labellings than fit are done in turns

BATCH = 2**27  # entries of the activations that are solved at once, 1 GiB of float64


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """quality: (S, R, N) of each held-out step: 1 right or 0 wrong (logistic), squared error (ridge).

    alpha: (S, F) penalty that the other folds chose, true labels. weight (S, D, O), bias (S, O): refit to all steps
    with true labels, in the units of the activations.
    """

    quality: Tensor
    alpha: Tensor
    weight: Tensor
    bias: Tensor


def _predict(x: Tensor, v: Tensor) -> Tensor:
    """x (S, n, D), v (S, R, D + 1, O) -> (S, R, n, O)."""
    _, r, _, o = v.shape
    flat = v.movedim(1, 2).flatten(2)
    return torch.baddbmm(flat[:, -1:], x, flat[:, :-1]).unflatten(-1, (r, o)).movedim(2, 1)


def _loss(z: Tensor, y: Tensor, classes: int) -> Tensor:
    """z (S, R, n, O), y (R, n, O or 1) -> (S, R, n): what chooses alpha."""
    if not classes:
        return (z - y).square().sum(-1)
    if classes == 2:
        return (torch.nn.functional.softplus(z) - z * y)[..., 0]
    return torch.logsumexp(z, -1) - z.gather(-1, y.expand(len(z), *y.shape))[..., 0]


def _quality(z: Tensor, y: Tensor, classes: int) -> Tensor:
    if not classes:
        return (z - y).square().sum(-1)
    guess = z[..., 0] > 0 if classes == 2 else z.argmax(-1)
    return (guess == y[..., 0]).to(z.dtype)


def cross_validate(
    x: Tensor, fold: Tensor, y: Tensor, alphas: Tensor, *, classes: int = 0, tolerance: float = 1e-6
) -> HeldOut:
    """Fit each site to each labelling on all folds but one, and look at that one.

    x: (S, N, D) float64. fold: (N,) int64, 3 folds or more. y: (R, N, O) float64, or (R, N, 1) int64 classes (classes
    >= 2). Labelling 0 is the true one. Standardisation and alpha come from the training folds alone: alpha by their own
    leave-one-fold-out loss, and as leaving out folds f and k serves both as k inside f and as f inside k, F (F - 1) / 2
    training sets serve all F inner cross-validations. tolerance: nats, of `fit_logistic`.
    """
    design = make_design(x, fold, keep_gram=not classes)
    fit = functools.partial(fit_logistic, classes=classes, tolerance=tolerance) if classes else fit_ridge
    folds = range(int(fold.max()) + 1)
    pairs = list(itertools.combinations(folds, 2))
    alphas = alphas.to(x).sort(descending=True).values  # strong first: it wins ties, and the next start from it
    rows = [torch.nonzero(fold == f)[:, 0] for f in folds]
    outputs = classes if classes > 2 else y.shape[-1]
    chunk = max(1, ELEMENTS // (x.shape[0] * x.shape[1] * len(pairs) * outputs))
    quality = torch.empty(len(x), len(y), x.shape[1], dtype=x.dtype, device=x.device)
    first: tuple[Tensor, Tensor] | None = None
    for at in range(0, len(y), chunk):
        part = y[at : at + chunk]
        inner = x.new_full((len(alphas), len(x), len(folds), len(part)), torch.inf)  # (A, S, F, R)
        live, v = torch.arange(len(part), device=x.device), None
        for a, alpha in enumerate(alphas):
            v = fit(design, pairs, part[live], alpha.expand(len(x), len(pairs), len(live)), v)
            loss = x.new_zeros(len(x), len(folds), len(live))
            for i, (f, k) in enumerate(pairs):
                for out, seen in ((f, k), (k, f)):
                    z = _predict(design.x[:, rows[seen]], v[:, i])
                    loss[:, out] += _loss(z, part[live][:, rows[seen]], classes).sum(-1)
            inner[a, :, :, live] = loss
            if a >= 2:  # weaker penalties cost most and will not win where two in a row did worse, at every site
                recent = inner[a - 2 : a + 1, :, :, live]
                on = ~(recent[1:] > recent[:-1]).all(0).all(0).all(0)
                live, v = live[on], v[:, :, on]
            if not len(live):
                break
        best = alphas[inner.argmin(0)]  # (S, F, R)
        v = fit(design, [(f,) for f in folds], part, best)
        for f in folds:
            z = _predict(design.x[:, rows[f]], v[:, f])
            quality[:, at : at + chunk, rows[f]] = _quality(z, part[:, rows[f]], classes)
        if at == 0:
            overall = alphas[inner[..., :1].sum(2).argmin(0)][:, None]  # (S, 1, 1)
            first = best[..., 0], fit(design, [()], part[:1], overall)[:, 0, 0]
    assert first is not None
    inverse = torch.where(design.spread > 0, 1 / design.spread, 0.0)
    weight = first[1][:, :-1] * inverse[..., None]
    bias = first[1][:, -1] - (design.shift[..., None] * weight).sum(1)
    return HeldOut(quality, first[0], weight, bias)


def validate_sites(
    matrices: Mapping[str, np.ndarray],
    fold: np.ndarray,
    y: np.ndarray,
    classes: int,
    alphas: Sequence[float],
    device: str,
) -> dict[str, HeldOut]:
    """y: (R, N, O). Sites of about the same width are padded and solved together."""
    sizes: dict[int, list[list[str]]] = {}
    for name, matrix in sorted(matrices.items(), key=lambda item: item[1].shape[1]):
        width = 1 << (matrix.shape[1] - 1).bit_length()
        batches = sizes.setdefault(width, [[]])
        if len(batches[-1]) * width * len(fold) > BATCH:
            batches.append([])
        batches[-1].append(name)
    found = {}
    labels, folds = torch.as_tensor(y, device=device), torch.as_tensor(fold, device=device)
    for width, batches in sizes.items():
        for names in batches:
            width = max(matrices[name].shape[1] for name in names)
            x = torch.zeros(len(names), len(fold), width, dtype=torch.float64, device=device)
            for s, name in enumerate(names):
                x[s, :, : matrices[name].shape[1]] = torch.as_tensor(matrices[name].astype(np.float64), device=device)
            held = cross_validate(x, folds, labels, torch.tensor(alphas, dtype=torch.float64), classes=classes)
            for s, name in enumerate(names):
                own = slice(s, s + 1)
                weight = held.weight[own, : matrices[name].shape[1]]
                parts = (held.quality[own], held.alpha[own], weight, held.bias[own])
                found[name] = HeldOut(*(part.cpu() for part in parts))
    return found
