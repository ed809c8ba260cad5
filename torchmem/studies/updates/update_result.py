"""What isolating an update found: phases, nulls and scales, over one agent or several."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from torchmem.result import Result
from torchmem.studies.updates.contrasts import Contrast, contrast

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is compared: (text, condition, condition to subtract). Where a run lacks a condition the row is left out.
CONTRASTS = (
    ("change added - before", "post", "pre"),
    ("null added - before", "post null", "pre"),
    ("change added - null added", "post", "post null"),
    ("change taken away - before", "sub", "pre"),
    ("null taken away - before", "sub null", "pre"),
    ("noise taken away - before", "sub noise", "pre"),
    ("change taken away - null taken away", "sub", "sub null"),
    ("two nulls: null taken away - reseeded taken away", "sub null", "sub reseeded"),
    ("change taken away - null of equal length taken away", "sub", "sub null scaled"),
    ("change taken away - noise taken away", "sub", "sub noise"),
    ("change less null, taken away - before", "sub difference", "pre"),
    ("salvaged, optimiser kept - change taken away", "salvage kept", "sub"),
    ("salvaged, fresh optimiser - change taken away", "salvage fresh", "sub"),
    ("salvaged, fresh - kept optimiser", "salvage fresh", "salvage kept"),
    ("salvaged: change - null, fresh optimiser", "salvage fresh", "salvage null fresh"),
)


@dataclasses.dataclass(frozen=True)
class UpdateResult(Result):
    """S agents (seeds), E paired test episodes each, A scales.

    term: the measure that the change is about. shown: measures of the summary, term included. tables: condition ->
    measure -> (S, E). sweep: arm -> measure -> (S, A, E) at `scales`: weights before + scale * the arm's update.
    norms: arm -> (S,) length of its update. cosines: "a, b" -> (S,). steps: phase -> agent steps asked for.
    Conditions: init, pre, post (change added), sub (change taken away), and the same with "null" (training on, nothing
    changed), "reseeded" (likewise, other seeds), "null scaled" (as long as the change in every tensor), "noise"
    (random, as long in every tensor) and "difference" (change less null); salvage: trained on from a sub on the first
    reward, with the optimiser state after the change ("kept") or none ("fresh"); "only X": change taken away in module
    X alone.
    """

    world: str
    base: tuple[str, ...]
    change: tuple[str, ...]
    test: tuple[str, ...]
    term: str
    shown: tuple[str, ...]
    seeds: tuple[int, ...]
    tables: dict[str, dict[str, np.ndarray]]
    scales: np.ndarray
    sweep: dict[str, dict[str, np.ndarray]]
    norms: dict[str, np.ndarray]
    cosines: dict[str, np.ndarray]
    steps: dict[str, int]

    def effects(self, measure: str | None = None) -> dict[str, Contrast]:
        """Text -> contrast of one measure (default: the term)."""
        name = measure or self.term
        return {
            text: contrast(self.tables[a][name], self.tables[b][name])
            for text, a, b in CONTRASTS
            if a in self.tables and b in self.tables and self._counted(name, a, b)
        }

    def _counted(self, measure: str, *conditions: str) -> bool:
        return all(np.isfinite(self.tables[c][measure]).any(1).all() for c in conditions)

    def summary(self) -> str:
        """Conditions, then contrasts of the changed term and of the return."""
        return "\n\n".join([self.condition_lines(self.tables), self.effect_lines()])

    def condition_lines(self, conditions: Iterable[str]) -> str:
        """A table of conditions by shown measures: mean (standard deviation between agents)."""
        wide = max(24, *(len(name) + 2 for name in self.shown))
        lines = [
            f"{self.world}: change {' '.join(self.change)}; tested with {' '.join(self.test) or 'the same world'}; "
            f"{len(self.seeds)} agents x {self._episodes} episodes",
            f"{'condition':<24}" + "".join(f"{name:>{wide}}" for name in self.shown),
        ]
        for name in conditions:
            lines.append(f"{name:<24}" + "".join(f"{_across(self.tables[name][m]):>{wide}}" for m in self.shown))
        return "\n".join(lines)

    def effect_lines(self) -> str:
        """Contrasts of the changed term and of the return, then how long the updates are."""
        lines = []
        for measure in dict.fromkeys((self.term, "return")):
            lines += [f"{measure}: difference [95 % bootstrap over agents and episodes] (Student over agents; "
                      f"sign-flip p)"]  # fmt: skip
            lines += [*(f"  {text:<54}{_told(c)}" for text, c in self.effects(measure).items()), ""]
        lengths = ", ".join(f"{arm} {v.mean():.3g}" for arm, v in self.norms.items())
        angles = ", ".join(f"{pair} {v.mean():+.2f}" for pair, v in self.cosines.items())
        return "\n".join([*lines, f"length of the update: {lengths}; cosine: {angles}"])

    @property
    def _episodes(self) -> int:
        return next(iter(next(iter(self.tables.values())).values())).shape[1]

    def plot(self, ax: Axes | None = None) -> Axes:
        """The changed term over the scale of each arm's update; a band shows the range over agents."""
        over = {arm: {m: np.nanmean(v, 2) for m, v in found.items() if m == self.term}
                for arm, found in self.sweep.items()}  # fmt: skip
        return plot_sweep(over, self.scales, self.term, self.axes(ax))

    def rows(self) -> str:
        """Every number per agent as CSV: condition, measure, seed, mean, episodes that count."""
        content = io.StringIO()
        write = csv.writer(content, lineterminator="\n").writerow
        write(["condition", "measure", "seed", "mean", "episodes"])
        tables = dict(self.tables)
        for arm, found in self.sweep.items():
            for a, scale in enumerate(self.scales):
                tables[f"{arm} x {scale:g}"] = {m: v[:, a] for m, v in found.items()}
        for name, table in tables.items():
            for measure, values in table.items():
                for seed, row in zip(self.seeds, values):
                    good = row[np.isfinite(row)]
                    write([name, measure, seed, f"{good.mean():.6g}" if len(good) else "", len(good)])
        return content.getvalue()


def pooled(results: Sequence[UpdateResult]) -> UpdateResult:
    """Results of single agents as one. Raises ValueError where they are not of one experiment."""
    first = results[0]
    same = ("world", "base", "change", "test", "term", "shown", "steps")
    for other in results[1:]:
        for name in same:
            if getattr(other, name) != getattr(first, name):
                raise ValueError(f"results of two experiments: {name} is {getattr(first, name)!r} and "
                                 f"{getattr(other, name)!r}")  # fmt: skip
        if other.tables.keys() != first.tables.keys() or not np.array_equal(other.scales, first.scales):
            raise ValueError("results of two experiments: their conditions or scales differ")
    return dataclasses.replace(
        first,
        seeds=tuple(s for r in results for s in r.seeds),
        tables=_joined([r.tables for r in results]),
        sweep=_joined([r.sweep for r in results]),
        norms={k: np.concatenate([r.norms[k] for r in results]) for k in first.norms},
        cosines={k: np.concatenate([r.cosines[k] for r in results]) for k in first.cosines},
        provenance=first.provenance.again(seeds={f"agent {i}": s for i, r in enumerate(results) for s in r.seeds}),
    )


def _joined(parts: Sequence[dict[str, dict[str, np.ndarray]]]) -> dict[str, dict[str, np.ndarray]]:
    return {k: {m: np.concatenate([p[k][m] for p in parts]) for m in parts[0][k]} for k in parts[0]}


def _across(values: np.ndarray) -> str:
    """Mean over agents, and its standard deviation between them."""
    means = np.array([row[np.isfinite(row)].mean() if np.isfinite(row).any() else np.nan for row in values])
    spread = f" ({means.std(ddof=1):.3g})" if len(means) > 1 else ""
    return f"{means.mean():.4g}{spread}"


def _told(c: Contrast) -> str:
    text = f"{c.estimate:+9.4g} [{c.low:+.4g}, {c.high:+.4g}]"
    return text if np.isnan(c.p) else f"{text} ({c.t_low:+.4g}, {c.t_high:+.4g}; p {c.p:.3f})"


def plot_sweep(
    sweep: Mapping[str, Mapping[str, np.ndarray]], scales: np.ndarray, measure: str, ax: Axes
) -> Axes:
    """Mean over agents of a measure against the scale; the band is from the lowest to the highest agent."""
    colours = {"change": "tab:red", "null": "0.45", "noise": "0.7", "difference": "tab:purple"}
    for arm, found in sweep.items():
        values = found[measure]  # (S, A)
        colour = colours.get(arm)
        ax.plot(scales, values.mean(0), "o-", color=colour, label=arm)
        if len(values) > 1:
            ax.fill_between(scales, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    for place in (-1, 1):
        ax.axvline(place, color="0.85", zorder=0)
    ax.set(xlabel="scale of the update added to the weights before (-1: taken away)", ylabel=f"{measure} per episode")
    ax.legend(frameon=False)
    return ax
