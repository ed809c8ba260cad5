"""How many units it takes: the k best by each score are swapped, and k random and the k worst beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.stats import spearmanr

from torchmem.result import Provenance, Result
from torchmem.studies.decisions import normalised
from torchmem.studies.interventions import Scene, put
from torchmem.studies.unit_ranks import SCORES, order_of, rank_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ENOUGH = 0.9  # of the full swap's flips


@dataclasses.dataclass(frozen=True)
class UnitCurves(Result):
    """Flip rate and normalised logit difference against the number of units swapped.

    scores: (N,) by name. sizes: (K,) numbers of units. flips, moved: (K,) by ranking; "random" is the mean of its draws
    (all in `draws`, (R, K)), "worst" takes d' from below. k90: the fewest units with 90 % of the full swap's flips, 0
    where the full swap flips nothing. agreement: Spearman's correlation between scores.
    """

    site: str
    episodes: int
    scores: dict[str, np.ndarray]
    sizes: np.ndarray
    flips: dict[str, np.ndarray]
    moved: dict[str, np.ndarray]
    draws: np.ndarray
    k90: dict[str, int]
    agreement: dict[str, float]

    figure_size = (7.0, 4.5)

    @property
    def units(self) -> int:
        return len(next(iter(self.scores.values())))

    def summary(self) -> str:
        full = self.flips["d_prime"][-1]
        lines = [f"{self.site}: {self.units} units, {self.episodes} episodes; swapping all flips {full:.3f}"]
        for name, k in self.k90.items():
            share = f"{k} units ({k / self.units:.1%})" if k else "never"
            lines.append(f"90 % of the full swap's flips, {name}: {share}")
        lines.append("flip rate / normalised logit difference by number of units:")
        lines.append(f"{'':<12}" + "".join(f"{k:>12}" for k in self.sizes))
        for name, flips in self.flips.items():
            cells = "".join(f"{f'{a:.2f}/{b:.2f}':>12}" for a, b in zip(flips, self.moved[name], strict=True))
            lines.append(f"{name:<12}{cells}")
        lines.append("rank agreement: " + ", ".join(f"{k} {v:.2f}" for k, v in self.agreement.items()))
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        for name, flips in self.flips.items():
            colour = {"random": "black", "worst": "tab:gray"}.get(name)
            (line,) = ax.plot(self.sizes, flips, marker="o", ms=3, label=name, color=colour)
            ax.plot(self.sizes, self.moved[name], ls=":", color=line.get_color())
        ax.set_xscale("log", base=2)
        ax.set(xlabel="units swapped", ylabel="flip rate (solid), logit difference (dotted)", title=self.site)
        ax.legend(fontsize="small")
        return ax

    def table(self) -> dict[str, list]:
        """One row per ranking and size."""
        rows = [(name, k, i) for name in self.flips for i, k in enumerate(self.sizes.tolist())]
        return {
            "ranking": [name for name, _, _ in rows], "units": [k for _, k, _ in rows],
            "flip_rate": [float(self.flips[name][i]) for name, _, i in rows],
            "moved": [float(self.moved[name][i]) for name, _, i in rows],
        }


def trace_curves(
    model: Any, site: str, fit: Scene, test: Scene, *, draws: int, most: int, seed: int, provenance: Provenance
) -> UnitCurves:
    """Rank the units on `fit`, try them on `test`."""
    scores = rank_units(model, site, fit.base, fit.source, fit.decision, most=most)
    units = test.here.shape[1]
    sizes = [*(2**i for i in range(units.bit_length()) if 2**i < units), units]
    swap = _Swap(model, site, test)
    orders = {name: order_of(scores[name]) for name in SCORES}
    rng = np.random.default_rng(seed)
    plans = {**orders, "worst": orders["d_prime"][::-1]}
    plans |= {f"random {i}": rng.permutation(units) for i in range(draws)}
    rates = swap([order[:k] for order in plans.values() for k in sizes])
    shaped = np.array(rates).reshape(len(plans), len(sizes), 2)
    curves = dict(zip(plans, shaped, strict=True))
    random = np.stack([curve for name, curve in curves.items() if name.startswith("random")])
    shown = {name: curve for name, curve in curves.items() if not name.startswith("random")}
    shown["random"] = random.mean(0)
    full = float(shown["d_prime"][-1, 0])
    k90 = {name: _fewest(order, sizes, shown[name][:, 0], ENOUGH * full, swap) for name, order in orders.items()}
    k90["random"] = next((k for k, rate in zip(sizes, shown["random"][:, 0]) if full > 0 and rate >= ENOUGH * full), 0)
    return UnitCurves(
        site=site,
        episodes=len(test.base),
        scores=scores,
        sizes=np.array(sizes),
        flips={name: curve[:, 0] for name, curve in shown.items()},
        moved={name: curve[:, 1] for name, curve in shown.items()},
        draws=random[:, :, 0],
        k90=k90,
        agreement={f"{a}/{b}": _agreement(scores[a], scores[b]) for i, a in enumerate(SCORES) for b in SCORES[i + 1 :]},
        provenance=provenance,
    )


class _Swap:
    """(flip rate, normalised logit difference) of swapping sets of units."""

    def __init__(self, model: Any, site: str, scene: Scene) -> None:
        self.model, self.site, self.scene = model, site, scene

    def __call__(self, sets: Sequence[np.ndarray]) -> list[tuple[float, float]]:
        scene, changes = self.scene, []
        for units in sets:
            chosen = torch.zeros(scene.here.shape[1], dtype=torch.bool, device=scene.here.device)
            chosen[torch.as_tensor(units.copy())] = True
            changes.append({self.site: put(chosen, scene.there)})
        out = []
        decision = scene.decision
        length = int(decision.step[decision.found].max()) + 1 if decision.found.any() else 1
        played = scene.base.play(self.model, changes, steps=scene.patience)
        forced = scene.base.force(self.model, changes, steps=length)
        for ended, logits in zip(played, forced, strict=True):
            flipped = scene.pairs.cues.right_under(ended.state, scene.donor_kinds)
            out.append((float(flipped.float().mean()), normalised(*decision.moved(logits))))
        return out


def _fewest(
    order: np.ndarray, sizes: Sequence[int], rates: np.ndarray, wanted: float, swap: Callable[..., Any]
) -> int:
    """The smallest k whose flips reach `wanted`: between the sizes tried, by halving."""
    if not wanted > 0:
        return 0
    place = int(np.argmax(rates >= wanted))
    low, high = (sizes[place - 1] if place else 0), sizes[place]
    while high - low > 1:
        middle = (low + high) // 2
        (rate, _), = swap([order[:middle]])
        low, high = (low, middle) if rate >= wanted else (middle, high)
    return high


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return float("nan")
    found: Any = spearmanr(np.abs(a[both]), np.abs(b[both]))
    return float(found.statistic)
