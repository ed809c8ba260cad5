"""What can be done to a memory at one moment: changes of the site's values by name, and the starts they hold from.

Means, directions and subspaces come from one half of the episodes, the changes act on the other.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from torchmem.studies.cue_runs import Pairs
from torchmem.studies.decisions import Decision, decide
from torchmem.studies.moments import Change, Changes, Moment

RANKS = (1, 2, 4, 8)  # of the subspaces that are swapped


@dataclasses.dataclass(frozen=True)
class Scene:
    """Useful pairs at t*, and what the site holds there in base and source, each (m, N)."""

    pairs: Pairs
    base: Moment
    source: Moment
    here: Tensor
    there: Tensor
    decision: Decision

    @classmethod
    def at(cls, model: Any, site: str, pairs: Pairs, rows: Tensor, steps: Tensor) -> Scene:
        """rows (m,) of the pairs, each at its step (m,)."""
        base, source = Moment(pairs.base, rows, steps), Moment(pairs.source, rows, steps)
        length = (pairs.base.last[rows] - steps).clamp(min=1)
        decision = decide(model, base, source, length)
        return cls(
            pairs, base, source, base.read(model, site, 1)[:, 0], source.read(model, site, 1)[:, 0], decision
        )

    @property
    def kinds(self) -> Tensor:
        """(m,) the cue of the base."""
        return self.base.runs.kinds[self.base.rows]

    @property
    def donor_kinds(self) -> Tensor:
        return self.source.runs.kinds[self.source.rows]

    @property
    def patience(self) -> int:
        """Steps to wait for an end: three times what the untouched runs needed, and twenty."""
        return 3 * int((self.pairs.base.last[self.base.rows] - self.base.steps).max()) + 20

    def next_of_kind(self) -> Tensor:
        """(m,) for each row another one with the same cue (itself where it is the only one)."""
        other = torch.arange(len(self.base))
        for kind in self.kinds.unique().tolist():
            own = (self.kinds == kind).nonzero().squeeze(1)
            other[own] = own.roll(1)
        return other


@dataclasses.dataclass(frozen=True)
class Condition:
    """One intervention: its change, where it starts, and for how many steps it holds."""

    changes: Changes
    start: Moment
    source: Moment
    group: str  # "swap", "subspace", "knock out", "wrong time" or "control"
    hold: int = 1


def halves(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Useful rows in two halves with all cues in both."""
    kinds = len(pairs.cues.kinds)
    rows = pairs.useful.nonzero().squeeze(1)
    odd = (rows // kinds) % 2 == 1
    return rows[~odd], rows[odd]


def put(units: Tensor, values: Tensor) -> Change:
    """Take these units (N,) bool over from values (m, N)."""
    return lambda there, step: torch.where(units, values, there)


def conditions(model: Any, site: str, fit: Scene, test: Scene, *, hold: int, seed: int) -> dict[str, Condition]:
    """Everything that is tried on the whole site, by name."""
    device = test.here.device
    everything = torch.ones(test.here.shape[1], dtype=torch.bool, device=device)
    means = {k: fit.here[fit.kinds == k].mean(0) for k in range(len(fit.pairs.cues.kinds))}
    own, theirs = (torch.stack([means[int(k)] for k in kinds]) for kinds in (test.kinds, test.donor_kinds))
    centre = fit.here.mean(0)
    peer = test.next_of_kind()
    swap = put(everything, test.there)

    def here(change: Change, group: str, hold: int = 1) -> Condition:
        return Condition({site: change}, test.base, test.source, group, hold)

    after = dataclasses.replace(test.base, steps=test.base.steps + 1, own=test.source.runs)
    later = test.source.read(model, site, hold)
    found = {
        "swap": here(swap, "swap"),
        f"swap held {hold} steps": here(lambda there, step: later[:, step], "swap", hold),
        "whole state": Condition({}, after, test.source, "swap"),
        "class mean": here(put(everything, theirs), "swap"),
        "shift by class means": here(lambda there, step: there + (theirs - own), "swap"),
    }
    bases = directions(fit)
    for name, basis in bases.items():
        found[f"swap in {name}"] = here(_within(basis, test.there), "subspace")
    generator = torch.Generator().manual_seed(seed)
    for rank in RANKS:
        basis = _orthonormal(torch.randn(test.here.shape[1], rank, generator=generator).to(test.here))
        found[f"swap in {rank} random directions"] = here(_within(basis, test.there), "control")
    for name in ("mean difference", "discriminant"):
        found[f"remove {name}"] = here(_without(bases[name], centre), "knock out")
    found |= {
        "zero": here(lambda there, step: torch.zeros_like(there), "knock out"),
        "mean of all": here(lambda there, step: centre.expand(there.shape), "knock out"),
        "unchanged": here(lambda there, step: there, "control"),
        "same cue": here(put(everything, test.here[peer]), "control"),
        "other start, other cue": here(put(everything, test.there[peer]), "swap"),
    }
    return found | _wrong_times(model, site, test, everything)


def _wrong_times(model: Any, site: str, test: Scene, everything: Tensor) -> dict[str, Condition]:
    """Swaps before the cue was seen, of episodes that do not open with it in sight."""
    unseen = (test.pairs.first_cue[test.base.rows] > 0).nonzero().squeeze(1)
    if not len(unseen):
        return {}
    rows = test.base.rows[unseen]
    zero = torch.zeros_like(rows)
    first, other = Moment(test.pairs.base, rows, zero), Moment(test.pairs.source, rows, zero)
    blank = other.read(model, site, 1)[:, 0]
    late = dataclasses.replace(test.base, rows=rows, steps=test.base.steps[unseen])
    donors = dataclasses.replace(test.source, rows=rows, steps=test.source.steps[unseen])
    false = put(everything, test.there[unseen])
    return {
        "before the cue": Condition({site: put(everything, blank)}, first, other, "wrong time"),
        "false memory before the cue": Condition({site: false}, first, other, "wrong time"),
        "donor before the cue": Condition({site: put(everything, blank)}, late, donors, "wrong time"),
    }


def directions(fit: Scene) -> dict[str, Tensor]:
    """Orthonormal bases (N, k) that may hold the cue: mean difference, discriminant, leading pair differences."""
    kinds = sorted(fit.kinds.unique().tolist())
    means = torch.stack([fit.here[fit.kinds == k].mean(0) for k in kinds])
    gaps = (means[1:] - means[0]).T  # (N, kinds - 1)
    spread = torch.cat([fit.here[fit.kinds == k] - means[i] for i, k in enumerate(kinds)]).double()
    within = spread.T @ spread / len(spread)
    ridge = 0.01 * within.diagonal().mean().clamp(min=1e-12)  # fewer episodes than units are no obstacle
    turned = torch.linalg.solve(within + ridge * torch.eye(len(within)).to(within), gaps.double()).to(gaps)
    left = torch.linalg.svd((fit.there - fit.here).T, full_matrices=False).U
    pairs = {f"{k} pair directions": left[:, :k] for k in RANKS if k <= left.shape[1]}
    return {"mean difference": _orthonormal(gaps), "discriminant": _orthonormal(turned), **pairs}


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns).Q


def _within(basis: Tensor, values: Tensor) -> Change:
    return lambda there, step: there + (values - there) @ basis @ basis.T


def _without(basis: Tensor, centre: Tensor) -> Change:
    return lambda there, step: there - (there - centre) @ basis @ basis.T
