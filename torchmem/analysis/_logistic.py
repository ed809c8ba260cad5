"""Logistic regression for many sites, training sets and labellings at once: preconditioned L-BFGS.

All fits share one product with the activations per iteration. The curvature of every fit is close to that of its first
step, (x x^T / 4n + alpha), so one eigendecomposition per site conditions them all; and because logits are linear in the
step, the line search needs no further product.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from torchmem.analysis._design import Design

MEMORY = 10  # pairs of L-BFGS; Nocedal & Wright, Numerical Optimization, 7.2: 3 to 20
CURVATURE = 0.25  # p (1 - p) at p = 1/2
ARMIJO = 1e-4  # Nocedal & Wright, 3.1


class _Problem:
    """One objective per (site, training set, labelling): mean log loss + alpha / 2 * |w|^2, and its gradient."""

    def __init__(self, design: Design, sets: list[tuple[int, ...]], y: Tensor, alpha: Tensor, outputs: int) -> None:
        self.x, self.alpha, self.outputs = design.x, alpha, outputs
        self.shape = (*alpha.shape, design.x.shape[2] + 1, outputs)  # (S, G, R, D + 1, O)
        scalings = [design.scaling(without) for without in sets]
        self.mean = torch.stack([mean for _, mean, _ in scalings], 1)[:, :, None, :, None]  # (S, G, 1, D, 1)
        self.inverse = torch.stack([inverse for _, _, inverse in scalings], 1)[:, :, None, :, None]
        kept = torch.stack([design.kept(without)[design.fold] for without in sets])  # (G, N)
        self.share = (kept / kept.sum(1, keepdim=True)).T[:, :, None]  # (N, G, 1), 1/n on kept rows
        self.y = y[:, :, 0].T[:, None, :, None].expand(-1, len(sets), -1, 1)  # (N, G, R, 1)
        count = design.rows.sum()
        values, self.basis = torch.linalg.eigh(design.gram.sum(1) / count)  # (S, D), (S, D, D)
        self.curvature = CURVATURE * values.clamp_min(0)[:, None, None, :, None]

    def in_x(self, w: Tensor) -> Tensor:
        """Standardised weights as weights on design.x."""
        weight = w[..., :-1, :] * self.inverse
        return torch.cat([weight, w[..., -1:, :] - (self.mean * weight).sum(-2, keepdim=True)], -2)

    def logits(self, w: Tensor) -> Tensor:
        """(S, N, G, R, O)"""
        _, g, r, _, o = self.shape
        v = self.in_x(w).movedim(3, 1).flatten(2)  # (S, D + 1, G*R*O)
        return torch.baddbmm(v[:, -1:], self.x, v[:, :-1]).unflatten(-1, (g, r, o))

    def loss(self, z: Tensor, w: Tensor) -> Tensor:
        """(S, G, R)"""
        if self.outputs == 1:
            nll = (torch.nn.functional.softplus(z) - z * self.y)[..., 0]
        else:
            nll = torch.logsumexp(z, -1) - z.gather(-1, self.y.expand(len(z), *self.y.shape))[..., 0]
        return (nll * self.share).sum(1) + self.alpha / 2 * w[..., :-1, :].square().sum((-1, -2))

    def gradient(self, z: Tensor, w: Tensor) -> Tensor:
        if self.outputs == 1:
            residual = torch.sigmoid(z) - self.y
        else:
            residual = torch.softmax(z, -1)
            index = self.y.expand(len(z), *self.y.shape)
            residual.scatter_add_(-1, index, -torch.ones_like(residual[..., :1]))
        residual = residual * self.share[..., None]
        pulled = (self.x.mT @ residual.flatten(2)).unflatten(-1, self.shape[1:3] + self.shape[4:]).movedim(1, 3)
        bias = residual.sum(1)[..., None, :]
        weight = (pulled - self.mean * bias) * self.inverse + self.alpha[..., None, None] * w[..., :-1, :]
        return torch.cat([weight, bias], -2)

    def precondition(self, g: Tensor) -> Tensor:
        _, sets, r, _, o = self.shape
        flat = g[..., :-1, :].movedim(3, 1).flatten(2)
        turned = (self.basis.mT @ flat).unflatten(-1, (sets, r, o)).movedim(1, 3)
        turned = turned / (self.curvature + self.alpha[..., None, None])
        back = (self.basis @ turned.movedim(3, 1).flatten(2)).unflatten(-1, (sets, r, o)).movedim(1, 3)
        return torch.cat([back, g[..., -1:, :] / CURVATURE], -2)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-1, -2))


def _wide(a: Tensor) -> Tensor:
    return a[..., None, None]


def fit_logistic(
    design: Design,
    sets: list[tuple[int, ...]],
    y: Tensor,
    alpha: Tensor,
    start: Tensor | None = None,
    *,
    classes: int = 2,
    tolerance: float = 1e-10,
    max_iterations: int = 500,
) -> Tensor:
    """Minimise mean log loss (nats) + alpha / 2 * |w|^2 over standardised units, without a penalty on the intercept.

    sets: G training sets, each by the folds that it leaves out. y: (R, N, 1) int64 classes. alpha: (S, G, R), penalty
    per step (scikit-learn's LogisticRegression(C) is 1 / (alpha * n)). start: an earlier answer to begin from.
    tolerance: stop where a Newton step would gain less than about this many nats.
    Returns (S, G, R, D + 1, O): weights on `design.x`, the intercept last; O is 1 for two classes, else `classes`.
    """
    p = _Problem(design, sets, y, alpha, 1 if classes == 2 else classes)
    w = p.x.new_zeros(p.shape)
    if start is not None:
        weight = torch.where(p.inverse > 0, start[..., :-1, :] / p.inverse.clamp_min(1e-300), 0.0)
        w = torch.cat([weight, start[..., -1:, :] + (p.mean * start[..., :-1, :]).sum(-2, keepdim=True)], -2)
    z = p.logits(w)
    f, g = p.loss(z, w), p.gradient(z, w)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # (step, change of gradient, 1 / their product or 0)
    scale = torch.ones_like(f)
    for _ in range(max_iterations):
        conditioned = p.precondition(g)
        busy = _dot(g, conditioned) / 2 > tolerance
        if not busy.any():
            break
        # two loops of L-BFGS, Nocedal & Wright, algorithm 7.4
        q, factors = g, []
        for s, change, rho in reversed(pairs):
            a = rho * _dot(s, q)
            q = q - _wide(a) * change
            factors.append(a)
        d = _wide(scale) * (p.precondition(q) if pairs else conditioned)
        for (s, change, rho), a in zip(pairs, reversed(factors)):
            d = d + s * _wide(a - rho * _dot(change, d))
        d = torch.where(_wide(busy), -d, 0.0)
        slope, dz = _dot(g, d), p.logits(d)
        t = torch.ones_like(f)
        for _ in range(40):
            new = p.loss(z + t[:, None, ..., None] * dz, w + _wide(t) * d)
            short = new > f + ARMIJO * t * slope + 1e-15 * f.abs()
            if not short.any():
                break
            t = torch.where(short, t / 2, t)
        step = _wide(t) * d
        w, z, f = w + step, z + t[:, None, ..., None] * dz, new
        fresh = p.gradient(z, w)
        change, g = fresh - g, fresh
        product = _dot(step, change)
        valid = product > 1e-30
        rho = torch.where(valid, 1 / product.clamp_min(1e-30), 0.0)
        pairs = [*pairs[1 - MEMORY :], (step, change, rho)]
        curved = _dot(change, p.precondition(change))
        scale = torch.where(valid, product / curved.clamp_min(1e-30), scale)
    else:
        logging.getLogger("torchmem").warning(
            "logistic probe: %d of %d fits stopped after %d iterations; larger alphas converge faster",
            int(busy.sum()), busy.numel(), max_iterations,
        )  # fmt: skip
    return p.in_x(w)
