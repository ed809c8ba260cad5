"""Several agents or settings side by side: decoding errors and tuning of the same sites, as one table and figure."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.analysis._position_data import stage
from torchmem.analysis._position_result import PositionResult
from torchmem.analysis._tuning_groups import GROUPS
from torchmem.analysis._tuning_result import TuningResult
from torchmem.files import atomic_write
from torchmem.result import Provenance, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ConditionsResult", "compare_conditions"]

DECODED = ("manhattan", "median", "accuracy", "bits")
TUNED = ("si", "ev", "hd")


@dataclasses.dataclass(frozen=True)
class ConditionsResult(Result):
    """values: measure -> (conditions, sites), NaN where a condition has no such site. low, high: 95 % interval of a
    decoding score, quartiles over units of a tuning score, NaN for shares. Measures: of decoding manhattan, median,
    accuracy, bits and "modal tile", the guess to beat; of tuning the medians over units of si, ev, hd, and the share of
    each kind of cell.
    """

    figure_size: ClassVar[tuple[float, float]] = (7.5, 4.5)

    conditions: tuple[str, ...]
    sites: tuple[str, ...]
    values: dict[str, np.ndarray]
    low: dict[str, np.ndarray]
    high: dict[str, np.ndarray]
    sources: tuple[dict[str, Any], ...]  # provenance of each condition

    def summary(self) -> str:
        """One block per measure: conditions by sites."""
        blocks = []
        for name, values in self.values.items():
            rows = [[c, *(style.number(v) for v in row)] for c, row in zip(self.conditions, values)]
            blocks.append(style.table([name, *self.sites], rows))
        return "\n\n".join(blocks)

    def plot(self, ax: Axes | None = None) -> Axes:
        """The first measure over sites, one line per condition, with its interval."""
        ax = self.axes(ax)
        name = next(iter(self.values))
        x = np.arange(len(self.sites))
        for i, condition in enumerate(self.conditions):
            colour, value = style.COLOURS[i % len(style.COLOURS)], self.values[name][i]
            ax.plot(x, value, "o-", ms=4, color=colour, label=condition)
            ax.fill_between(x, self.low[name][i], self.high[name][i], color=colour, alpha=0.15, lw=0)
        ax.set_xticks(x, self.sites, rotation=30, ha="right")
        return style.finish(ax, "", f"{name}, Manhattan error in tiles" if name == "manhattan" else name)

    def plot_heatmap(self, name: str) -> Any:
        """One measure, conditions by sites. Returns the figure."""
        from matplotlib import pyplot as plt

        figure, ax = plt.subplots(figsize=self.figure_size, layout="constrained")
        figure.colorbar(ax.imshow(self.values[name], aspect="auto"), ax=ax, label=name)
        ax.set_xticks(np.arange(len(self.sites)), self.sites, rotation=30, ha="right")
        ax.set_yticks(np.arange(len(self.conditions)), self.conditions)
        for i, row in enumerate(self.values[name]):
            for j, value in enumerate(row):
                ax.text(j, i, style.number(value, 2), ha="center", va="center", size=7, color="w")
        return figure

    def save_csv(self, path: str | Path) -> Path:
        """condition, site, measure, value, low, high: one row each."""
        text = io.StringIO()
        out = csv.writer(text)
        out.writerow(["condition", "site", "measure", "value", "low", "high"])
        for name, values in self.values.items():
            for (i, j), value in np.ndenumerate(values):
                ends = (self.low[name][i, j], self.high[name][i, j])
                numbers = ["" if np.isnan(v) else f"{v:.6g}" for v in (value, *ends)]
                out.writerow([self.conditions[i], self.sites[j], name, *numbers])
        return atomic_write(path, text.getvalue())


def compare_conditions(results: Mapping[str, PositionResult] | Mapping[str, TuningResult]) -> ConditionsResult:
    """Put results of one kind side by side. results: label -> PositionResult, or label -> TuningResult.

    Raises ValueError for fewer than two, for mixed kinds, and where decoders or tile sizes differ.
    """
    kinds = {type(result) for result in results.values()}
    if len(results) < 2 or len(kinds) != 1 or not kinds <= {PositionResult, TuningResult}:
        raise ValueError("compare two or more results of probe_position, or two or more of tune_units")
    for name in ("decoder", "cell"):
        found = {getattr(result, name, None) for result in results.values()}
        if len(found) > 1:
            raise ValueError(f"{name} differs between the results ({', '.join(map(str, found))}): they do not compare")
    sites = tuple(sorted({site for result in results.values() for site in result.sites}, key=stage))
    tables: dict[str, dict[str, np.ndarray]] = {}
    for i, result in enumerate(results.values()):
        for s, site in enumerate(result.sites):
            found = _decoded(result, s) if isinstance(result, PositionResult) else _tuned(result, site)
            for measure, triple in found.items():
                shape = (len(results), len(sites))
                parts = tables.setdefault(measure, {part: np.full(shape, np.nan) for part in ("value", "low", "high")})
                for part, number in zip(parts.values(), triple):
                    part[i, sites.index(site)] = number
    caveats = dict.fromkeys(one for result in results.values() for one in result.provenance.caveats)
    return ConditionsResult(
        conditions=tuple(results), sites=sites, values={name: parts["value"] for name, parts in tables.items()},
        low={name: parts["low"] for name, parts in tables.items()},
        high={name: parts["high"] for name, parts in tables.items()},
        sources=tuple(result.provenance.to_json() for result in results.values()),
        provenance=Provenance.here(caveats=tuple(caveats)),
    )  # fmt: skip


def _decoded(result: PositionResult, s: int) -> dict[str, tuple[float, float, float]]:
    found = {name: (result.scores[name][s], *result.intervals[name][s]) for name in DECODED}
    return found | {"modal tile": (result.controls["modal tile"]["manhattan"][s], np.nan, np.nan)}


def _tuned(result: TuningResult, site: str) -> dict[str, tuple[float, float, float]]:
    found = {}
    for name in TUNED:
        values = result.scores[site][name]
        finite = values[np.isfinite(values)]
        low, middle, high = np.percentile(finite, [25, 50, 75]) if len(finite) else [np.nan] * 3
        found[name] = (middle, low, high)
    shares = result.shares()[result.sites.index(site)]
    return found | {name: (share, np.nan, np.nan) for name, share in zip(GROUPS, shares)}
