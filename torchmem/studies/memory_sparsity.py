"""How few units hold the cue through the delay: the numbers behind "memory is sparse" (circuits spec 7.6)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis.nulls import false_discoveries
from torchmem.result import Result
from torchmem.studies.unit_ranks import d_prime

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALIKE = 20  # episodes of each cue that a lag must have


@dataclasses.dataclass(frozen=True)
class SparsityResult(Result):
    """d' of every unit between cues at the end of the delay, what exchanged cues give, and how even it is spread.

    d_prime, null: (N,) and the 95th percentile over episode-wise exchanges of the cue. p: (N,) share of all units'
    exchanges that reach it. held: (N,) bool, d' > 1 and p stands at a false discovery rate of 5 %. over_time: (L, N)
    d' at lags 1..L since the cue was last seen, NaN where a lag has too few episodes. lasts: (N,) lags during which a
    held unit stays above 1. measures: of the vector of mean differences, each beside that of a Gaussian vector as long.
    """

    site: str
    episodes: int
    d_prime: np.ndarray
    null: np.ndarray
    p: np.ndarray
    held: np.ndarray
    over_time: np.ndarray
    lasts: np.ndarray
    measures: dict[str, tuple[float, float]]

    def summary(self) -> str:
        units = len(self.d_prime)
        lines = [
            f"{self.site}: {int(self.held.sum())} of {units} units ({self.held.mean():.1%}) tell the cues apart by "
            f"more than one deviation at the end of the delay (false discovery rate 5 %, {self.episodes} episodes); "
            f"under exchanged cues the median unit's 95th percentile is d' = {np.median(self.null):.2f}",
        ]
        if self.held.any():
            lines.append(
                f"a held unit stays above d' = 1 for {np.median(self.lasts[self.held]):g} of {len(self.over_time)} "
                f"delay steps (median)"
            )
        lines += [
            f"{name}: {value:.3f} (Gaussian vector: {control:.3f})" for name, (value, control) in self.measures.items()
        ]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        order = np.argsort(-self.d_prime)
        ax.plot(self.d_prime[order], label="cues")
        ax.plot(np.sort(self.null)[::-1], color="tab:gray", label="exchanged cues, 95th percentile")
        ax.axhline(1, color="black", lw=0.5)
        ax.set(xlabel="units, sorted", ylabel="d' between cues", title=f"{self.site} at the end of the delay")
        ax.set_yscale("symlog", linthresh=1)
        ax.legend()
        return ax

    def table(self) -> dict[str, list]:
        """One row per unit."""
        return {
            "unit": list(range(len(self.d_prime))), "d_prime": self.d_prime.tolist(), "null_95": self.null.tolist(),
            "p": self.p.tolist(), "held": self.held.tolist(), "lasts": self.lasts.tolist(),
        }


def measure_sparsity(
    values: Tensor, kinds: Tensor, over_time: Tensor, lags: Tensor, *, draws: int = 1000, seed: int = 0
) -> dict:
    """Fields of a SparsityResult. values (E, N) at the end of the delay, kinds (E,) the cue; over_time (E, T, N) with
    lags (E, T): steps since the cue was last seen while waiting, else -1."""
    generator = torch.Generator().manual_seed(seed)
    values, over_time = values.double().cpu(), over_time.double().cpu()
    found = d_prime(values, kinds)
    null = torch.stack([d_prime(values, kinds[torch.randperm(len(kinds), generator=generator)]) for _ in range(draws)])
    # of all units' exchanges together: d' has one scale, and a single unit would need 20 N of its own to stand
    pool = np.sort(null.numpy().ravel())
    p = (1 + len(pool) - np.searchsorted(pool, found.numpy(), "left")) / (1 + len(pool))
    held = (found.numpy() > 1) & false_discoveries(p)
    rows = []
    for lag in range(1, int(lags.max()) + 1):
        row, step = (lags == lag).nonzero(as_tuple=True)
        enough = all(int((kinds[row] == k).sum()) >= ALIKE for k in kinds.unique().tolist())
        here = d_prime(over_time[row, step], kinds[row]) if enough else torch.full_like(found, float("nan"))
        rows.append(here.numpy())
    curve = np.stack(rows) if rows else np.zeros((0, len(found)))
    means = torch.stack([values[kinds == k].mean(0) for k in kinds.unique().tolist()])
    gap = (means.amax(0) - means.amin(0)).numpy()
    other = np.abs(np.random.default_rng(seed).standard_normal((200, len(gap))))
    measures = {
        name: (rule(gap), float(np.mean([rule(v) for v in other]))) for name, rule in MEASURES.items()
    }
    return {
        "episodes": len(values), "d_prime": found.numpy(), "null": np.quantile(null.numpy(), 0.95, axis=0), "p": p,
        "held": held, "over_time": curve, "lasts": np.nansum(curve > 1, 0), "measures": measures,
    }


def participation(v: np.ndarray) -> float:
    """Participation ratio: 1 for one unit, N for all alike."""
    return float((v**2).sum() ** 2 / max((v**4).sum(), 1e-300))


def hoyer(v: np.ndarray) -> float:
    """0 for all alike, 1 for one unit (Hoyer 2004)."""
    root = np.sqrt(len(v))
    return float((root - np.abs(v).sum() / max(np.linalg.norm(v), 1e-300)) / max(root - 1, 1e-300))


def gini(v: np.ndarray) -> float:
    """0 for all alike, 1 - 1/N for one unit."""
    v = np.sort(np.abs(v))
    ranks = np.arange(1, len(v) + 1)
    return float(((2 * ranks - len(v) - 1) * v).sum() / max(len(v) * v.sum(), 1e-300))


def treves_rolls(v: np.ndarray) -> float:
    """Sparseness (Treves and Rolls 1991): 1/N for one unit, 1 for all alike."""
    v = np.abs(v)
    return float(v.mean() ** 2 / max((v**2).mean(), 1e-300))


MEASURES = {"participation ratio": participation, "Hoyer": hoyer, "Gini": gini, "Treves-Rolls": treves_rolls}
