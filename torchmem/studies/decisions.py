"""Where base and source first want different things: the step, the two actions, and how far a changed run has moved."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from torchmem.studies.moments import Moment


@dataclasses.dataclass(frozen=True)
class Decision:
    """Of the m rows of a moment. Steps count from the moment.

    base, source: logits (m, W, A) of the untouched runs along the base's actions. step: (m,) where the greedy actions
    first differ, W where they never do. ours, theirs: (m,) what base and source want there.
    """

    base: Tensor
    source: Tensor
    step: Tensor
    ours: Tensor
    theirs: Tensor

    @classmethod
    def between(cls, base: Tensor, source: Tensor, length: Tensor) -> Decision:
        """length (m,): steps of each row that count."""
        window = torch.arange(base.shape[1])
        differ = (base.argmax(-1) != source.argmax(-1)).cpu() & (window < length[:, None])
        step = torch.where(differ, window, base.shape[1]).amin(1)
        place = step.clamp(max=base.shape[1] - 1)
        rows = torch.arange(len(step))
        return cls(base, source, step, base[rows, place].argmax(-1), source[rows, place].argmax(-1))

    @property
    def found(self) -> Tensor:
        """(m,) bool."""
        return self.step < self.base.shape[1]

    def preference(self, logits: Tensor) -> Tensor:
        """(m,) logit of the source's action minus that of the base's at the decision. logits (m, W, A)."""
        rows = torch.arange(len(self.step), device=logits.device)
        there = logits[rows, self.step.clamp(max=logits.shape[1] - 1)]
        return there[rows, self.theirs] - there[rows, self.ours]

    def moved(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Per row with a decision: how far the preference moved, and how far it is from base to source."""
        start = self.preference(self.base)
        return (self.preference(logits) - start)[self.found], (self.preference(self.source) - start)[self.found]

    def distances(self, logits: Tensor) -> dict[str, float]:
        """Mean over rows and steps up to the decision, in nats: KL(source || changed), KL(base || changed), and the
        Jensen-Shannon divergence from the source."""
        counts = torch.arange(logits.shape[1]) <= self.step.clamp(max=logits.shape[1] - 1)[:, None]
        changed, base, source = (torch.log_softmax(x.float(), -1) for x in (logits, self.base, self.source))
        middle = torch.logsumexp(torch.stack([changed, source]), 0) - torch.log(torch.tensor(2.0))
        halves = (_kl(changed, middle) + _kl(source, middle)) / 2
        found = {"kl_source": _kl(source, changed), "kl_base": _kl(base, changed), "js_source": halves}
        return {name: float(value.cpu()[counts].mean()) for name, value in found.items()}


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum(-1)


def normalised(moved: Tensor, whole: Tensor) -> float:
    """0: as the base, 1: as the source. A ratio of means, as single rows may hardly differ."""
    return float(moved.mean() / whole.mean()) if len(whole) else float("nan")


def interval(moved: Tensor, whole: Tensor, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % of `normalised` over bootstrap samples of rows."""
    if not len(whole):
        return float("nan"), float("nan")
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(len(whole), (draws, len(whole)), generator=generator)
    ratio = moved.cpu()[pick].mean(1) / whole.cpu()[pick].mean(1)
    low, high = torch.quantile(ratio, torch.tensor([0.025, 0.975]).to(ratio))
    return float(low), float(high)


def decide(model: Any, base: Moment, source: Moment, length: Tensor) -> Decision:
    """The decision of each row. length (m,): steps from the moment that belong to the episode."""
    steps = int(length.max())
    return Decision.between(base.force(model, [{}], steps=steps)[0], source.force(model, [{}], steps=steps)[0], length)
