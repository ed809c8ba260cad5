"""Which units of a site carry the cue? Five scores of every unit, larger for more (circuits spec 7.4).

    d_prime      |difference of the class means| in pooled standard deviations
    auc          how well the unit alone tells the cues apart: 2 |AUC - 1/2|
    attribution  gradient of the choice at the base's value times (source - base): a straight line
    integrated   the same with the mean gradient on the way from base to source; adds up to the whole effect
    exact        what swapping this unit alone does to the choice

The first two look at the values only, the others at what the policy makes of them: the preference for the source's
action at the decision (decisions.py), normalised so that the swap of all units counts 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

from torchmem.studies.decisions import Decision
from torchmem.studies.moments import Moment

SCORES = ("d_prime", "auc", "attribution", "integrated", "exact")


def d_prime(values: Tensor, kinds: Tensor) -> Tensor:
    """(..., N) largest |difference of two class means| / pooled deviation. values (..., E, N), kinds (E,).

    0 where a unit is the same in all episodes.
    """
    classes = [values[..., kinds == k, :] for k in kinds.unique().tolist()]
    means = torch.stack([c.mean(-2) for c in classes])
    spread = torch.stack([c.var(-2, unbiased=False) for c in classes]).mean(0).sqrt()
    gap = means.amax(0) - means.amin(0)
    floor = 1e-6 * values.abs().amax().clamp(min=1e-12)  # rounding of a value that does not vary
    return torch.where(gap > floor, gap / torch.maximum(spread, floor), 0.0)


def auc(values: Tensor, kinds: Tensor) -> Tensor:
    """(N,) 2 |AUC - 1/2| of the first kind against the rest; the largest over kinds. values (E, N)."""
    ranks = torch.as_tensor(rankdata(values.cpu().numpy(), axis=0))
    found = []
    for kind in kinds.unique().tolist():
        mine = kinds == kind
        n, m = int(mine.sum()), int((~mine).sum())
        area = (ranks[mine].sum(0) - n * (n + 1) / 2) / (n * m)
        found.append(2 * (area - 0.5).abs())
    return torch.stack(found).amax(0)


def rank_units(
    model: Any, site: str, base: Moment, source: Moment, decision: Decision, *, points: int = 8, most: int = 512
) -> dict[str, np.ndarray]:
    """Scores (N,) by name, from the rows of the moment. Signed ones are positive towards the source.

    points: of integrated gradients. most: units swapped one by one, the best of "integrated"; the rest are NaN.
    """
    here, there = (moment.read(model, site, 1)[:, 0] for moment in (base, source))
    kinds = base.runs.kinds[base.rows]
    length = int(decision.step[decision.found].max()) + 1 if decision.found.any() else 1
    whole = decision.moved(decision.source)[1].mean()

    def shares(fractions: list[float]) -> Tensor:
        leaves = [torch.lerp(here, there, f).detach().requires_grad_() for f in fractions]
        logits = base.force(
            model, [{site: lambda _, __, leaf=leaf: leaf} for leaf in leaves], steps=length, grad=True
        )
        total = torch.stack([decision.preference(x)[decision.found].sum() for x in logits]).sum()
        grads = torch.autograd.grad(total, leaves)
        return (torch.stack(grads).mean(0) * (there - here))[decision.found].mean(0) / whole

    scores = {"d_prime": d_prime(here, kinds), "auc": auc(here, kinds)}
    scores["attribution"] = shares([0.0])
    scores["integrated"] = shares([(i + 0.5) / points for i in range(points)])
    exact = torch.full_like(scores["integrated"], float("nan"))
    tried = scores["integrated"].abs().argsort(descending=True)[:most].tolist()
    for unit, logits in zip(tried, base.force(model, [{site: _one(u, there)} for u in tried], steps=length)):
        exact[unit] = decision.moved(logits)[0].mean() / whole
    scores["exact"] = exact
    return {name: value.detach().cpu().double().numpy() for name, value in scores.items()}


def _one(unit: int, there: Tensor) -> Any:
    def change(value: Tensor, step: int) -> Tensor:
        new = value.clone()
        new[:, unit] = there[:, unit]
        return new

    return change


def order_of(score: np.ndarray) -> np.ndarray:
    """(N,) units from the one that carries most to the one that carries least. Unmeasured ones come last."""
    return np.argsort(-np.where(np.isfinite(score), score, -np.inf), kind="stable")
