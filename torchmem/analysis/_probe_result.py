"""What `fit_probe` found: a table and a figure in which no score stands without its controls."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Numbers = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class ProbeResult(Result):
    """Scores of S sites on held-out episodes, beside their controls. Intervals are 95 %, from resampled episodes.

    controls: name -> {"score", "spread", "selectivity", "p"}, each (S,). exchanged, shifted: mean and standard
    deviation over draws, p the share of draws that reach the score. The others: one probe or guess, spread NaN, p
    the share of bootstrap samples in which it reaches the score. selectivity = score - control.
    by_*: the same per bin (J) of the covariate `by`, of the same probes; J = 0 without it.
    directions (D, O), biases (O,): a probe refit to all chosen steps, in the units of the activations; with two classes
    a positive answer is the second class.
    """

    figure_size: ClassVar[tuple[float, float]] = (7.0, 4.2)

    target: str
    kind: str  # ridge, logistic, circular (ridge on cosine and sine)
    metric: str  # accuracy, balanced_accuracy, r2
    classes: tuple[str, ...]
    sites: tuple[str, ...]
    widths: tuple[int, ...]
    steps: int
    groups: int  # episodes, or what was named instead
    folds: int
    score: np.ndarray  # (S,)
    interval: np.ndarray  # (S, 2)
    alpha: np.ndarray  # (S, folds)
    controls: dict[str, Numbers]
    by: str
    bins: np.ndarray  # (J,) mean of `by` in each bin
    by_steps: np.ndarray  # (J,) int
    by_score: np.ndarray  # (S, J)
    by_interval: np.ndarray  # (S, J, 2)
    by_controls: Numbers  # name -> (S, J)
    by_p: Numbers  # exchanged, shifted -> (S, J)
    directions: Numbers
    biases: Numbers
    settings: dict[str, Any]
    notes: tuple[str, ...]

    def summary(self) -> str:
        """A table: score with interval, then each control with its p; per bin, the scores beside exchanged labels."""
        what = f"{self.target} ({self.kind}, {self.metric}; {self.steps} steps, {self.groups} groups"
        lines = [f"{what}, {self.folds} folds)"]
        header = ["site", "units", self.metric, "95 % interval", *self.controls]
        rows = []
        for s, site in enumerate(self.sites):
            low, high = self.interval[s]
            row = [site, str(self.widths[s]), style.number(self.score[s]), f"{low:.3f} to {high:.3f}"]
            for control in self.controls.values():
                spread = f"±{control['spread'][s]:.3f}" if np.isfinite(control["spread"][s]) else ""
                p = f" (p {control['p'][s]:.3f})" if np.isfinite(control["p"][s]) else ""
                row.append(style.number(control["score"][s]) + spread + p)
            rows.append(row)
        lines.append(style.table(header, rows))
        if len(self.bins):
            header = [self.by, "steps", *(word for site in self.sites for word in (site, "exchanged")), "time only"]
            rows = []
            for j, (b, n) in enumerate(zip(self.bins, self.by_steps)):
                pairs = zip(self.by_score[:, j], self.by_controls["exchanged"][:, j])
                numbers = [v for pair in pairs for v in pair] + [self.by_controls["time only"][0, j]]
                rows.append([f"{b:g}", str(n), *map(style.number, numbers)])
            lines += ["", style.table(header, rows)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> str:
        """Scores and controls (not the directions) as JSON; a number that does not exist is null."""
        left_out = ("provenance", "directions", "biases")
        names = [f.name for f in dataclasses.fields(self) if f.name not in left_out]
        return style.as_json({name: getattr(self, name) for name in names})

    def plot(self, ax: Axes | None = None) -> Axes:
        """Sites as dots with intervals, controls as grey marks; or, with `by`, one curve per site."""
        ax = self.axes(ax)
        label = f"{'R²' if self.metric == 'r2' else self.metric.replace('_', ' ')}, held-out episodes"
        if len(self.bins):
            return self._plot_bins(ax, label)
        y = np.arange(len(self.sites))[::-1]
        grey = {"ms": 5, "mfc": "none", "lw": 1, "color": style.CONTROL_COLOUR}
        for (name, control), marker in zip(self.controls.items(), style.CONTROL_MARKERS):
            bars = np.nan_to_num(control["spread"])
            ax.errorbar(control["score"], y, xerr=bars, fmt=marker, label=name, **grey)
        error = np.abs(self.interval.T - self.score)
        ax.errorbar(self.score, y, xerr=error, fmt="o", color=style.COLOURS[0], lw=1.8, label=self.target)
        ax.set_yticks(y, self.sites)
        ax.set_ylim(-0.6, len(y) - 0.4)
        ax.grid(axis="y", lw=0.5, color="0.92")
        ax.set_axisbelow(True)
        return style.finish(ax, label, "", legend_columns=4)

    def _plot_bins(self, ax: Axes, label: str) -> Axes:
        best = int(np.nanargmax(self.score))
        for s, site in enumerate(self.sites):
            colour = style.COLOURS[s % len(style.COLOURS)]
            low, high = self.by_interval[s].T
            ax.fill_between(self.bins, low, high, color=colour, alpha=0.2, lw=0)
            ax.plot(self.bins, self.by_score[s], "o-", ms=3, lw=1.8, color=colour, label=site)
        lines = ("--", ":", "-.", (0, (6, 2)), (0, (1, 3)), (0, (4, 1, 1, 1)))
        for (name, values), marker, line in zip(self.by_controls.items(), style.CONTROL_MARKERS, lines):
            alone = len(self.sites) == 1 or (values == values[:1]).all()  # one curve stands for all sites
            text = name if alone else f"{name} ({self.sites[best]})"
            grey = {"ms": 4, "mfc": "none", "lw": 1, "color": style.CONTROL_COLOUR}
            ax.plot(self.bins, values[best], ls=line, marker=marker, label=text, **grey)
        return style.finish(ax, self.by, label, legend_columns=3)
