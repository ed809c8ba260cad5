"""The parts of the report: contrasts, phases, scales, salvage and modules, each a result of its own."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from torchmem.result import Result
from torchmem.studies.updates.update_result import UpdateResult, plot_sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES = {
    "effects": "Does the update hold what was changed?",
    "phases": "The phases",
    "sweep": "Adding and taking away, at several scales",
    "salvage": "Salvage",
    "modules": "Module by module",
}


@dataclasses.dataclass(frozen=True)
class Effects(Result):
    """Contrasts of one measure after the other, K rows; estimates with bootstrap and Student intervals."""

    measures: tuple[str, ...]  # K
    texts: tuple[str, ...]  # K
    estimate: np.ndarray  # (K,)
    bootstrap: np.ndarray  # (K, 2)
    student: np.ndarray  # (K, 2), NaN for one agent
    p: np.ndarray  # (K,)
    by_seed: np.ndarray  # (K, S)
    told: str

    figure_size = (7.0, 6.0)

    def summary(self) -> str:
        return self.told

    def plot(self, ax: Axes | None = None) -> Axes:
        """The contrasts of the first measure."""
        ax = self.axes(ax)
        rows = [k for k, m in enumerate(self.measures) if m == self.measures[0]]
        for y, k in enumerate(rows):
            low, high = self.bootstrap[k]
            nothing = low <= 0 <= high
            ax.plot([low, high], [y, y], color="0.6" if nothing else "tab:red", linewidth=2)
            ax.plot(self.by_seed[k], np.full(self.by_seed.shape[1], y), ".", color="0.3", markersize=4)
            ax.plot(self.estimate[k], y, "o", color="0.6" if nothing else "tab:red")
        ax.axvline(0, color="0.8", zorder=0)
        ax.set_yticks(range(len(rows)), [self.texts[k] for k in rows])
        ax.invert_yaxis()
        ax.set_xlabel(f"{self.measures[0]}: difference per episode (dots: agents)")
        return ax

    def table(self) -> dict[str, list]:
        """Columns for a CSV file."""
        return {
            "measure": list(self.measures), "contrast": list(self.texts), "estimate": self.estimate.tolist(),
            "low": self.bootstrap[:, 0].tolist(), "high": self.bootstrap[:, 1].tolist(),
            "student_low": self.student[:, 0].tolist(), "student_high": self.student[:, 1].tolist(),
            "sign_flip_p": self.p.tolist(),
        }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Conditions(Result):
    """One measure's mean per agent under C conditions, (C, S), and a table of several as text."""

    measure: str
    conditions: tuple[str, ...]
    means: np.ndarray
    told: str

    def summary(self) -> str:
        return self.told

    def plot(self, ax: Axes | None = None) -> Axes:
        ax = self.axes(ax)
        place = np.arange(len(self.conditions))
        controls = ("null", "noise", "reseeded")
        grey = [c in ("init", "pre") or any(word in c for word in controls) for c in self.conditions]
        colours = ["0.75" if g else "tab:red" for g in grey]
        ax.bar(place, self.means.mean(1), color=colours, alpha=0.6)
        for s in range(self.means.shape[1]):
            ax.plot(place, self.means[:, s], "o", color="0.2", markersize=3)
        ax.set_xticks(place, self.conditions, rotation=35, ha="right")
        ax.set_ylabel(f"{self.measure} per episode")
        return ax


@dataclasses.dataclass(frozen=True)
class Sweep(Result):
    """The whole result, seen over the scale of each update."""

    result: dict[str, dict[str, np.ndarray]]  # arm -> measure -> (S, A)
    scales: np.ndarray
    measure: str

    def summary(self) -> str:
        lines = [f"{self.measure} per episode (mean over agents) with scale x update added",
                 f"{'arm':<12}" + "".join(f"{s:>10g}" for s in self.scales)]  # fmt: skip
        for arm, found in self.result.items():
            lines.append(f"{arm:<12}" + "".join(f"{v:>10.4g}" for v in found[self.measure].mean(0)))
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None) -> Axes:
        return plot_sweep(self.result, self.scales, self.measure, self.axes(ax))


def view(result: UpdateResult) -> dict[str, Result]:
    """Name -> part, in the order of FIGURES; salvage and modules where there are any."""
    where = {"provenance": result.provenance}
    parts: dict[str, Result] = {"effects": _effects(result)}
    names = list(result.tables)
    groups = {
        "phases": [n for n in names if not n.startswith(("salvage", "only"))],
        "salvage": ["pre", "sub", *(n for n in names if n.startswith("salvage"))],
        "modules": ["pre", "sub", *(n for n in names if n.startswith("only"))],
    }
    for name, chosen in groups.items():
        if len(chosen) > 2:
            means = np.stack([np.nanmean(result.tables[n][result.term], 1) for n in chosen])
            told = result.condition_lines(chosen)
            parts[name] = Conditions(measure=result.term, conditions=tuple(chosen), means=means, told=told, **where)
    swept = {arm: {m: np.nanmean(v, 2) for m, v in found.items() if m in result.shown}
             for arm, found in result.sweep.items()}  # fmt: skip
    parts["sweep"] = Sweep(result=swept, scales=result.scales, measure=result.term, **where)
    return {name: parts[name] for name in FIGURES if name in parts}


def _effects(result: UpdateResult) -> Effects:
    rows = [(m, t, c) for m in dict.fromkeys((result.term, *result.shown)) for t, c in result.effects(m).items()]
    return Effects(
        measures=tuple(m for m, _, _ in rows), texts=tuple(t for _, t, _ in rows),
        estimate=np.array([c.estimate for *_, c in rows]), bootstrap=np.array([(c.low, c.high) for *_, c in rows]),
        student=np.array([(c.t_low, c.t_high) for *_, c in rows]), p=np.array([c.p for *_, c in rows]),
        by_seed=np.stack([c.by_seed for *_, c in rows]), told=result.effect_lines(), provenance=result.provenance,
    )  # fmt: skip
