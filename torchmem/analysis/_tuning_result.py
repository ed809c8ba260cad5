"""What `tune_units` found: maps, scores and kinds of all units, as tables, figures, xarray and a page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.analysis._tuning_groups import GROUPS
from torchmem.files import atomic_write
from torchmem.result import Result, save_figures

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

Numbers = dict[str, np.ndarray]
GROUP_COLOURS = ("0.75", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#E69F00", "0.3")


@dataclasses.dataclass(frozen=True)
class TuningResult(Result):
    """Tuning of U units of each site. Tiles are (W, H) from `origin`; maps are NaN where nobody was.

    maps: site -> (U, W, H) mean rate. curves: site -> (U, headings). occupancy: (W, H) steps. scores: site -> name ->
    (U,): rate; si, hd (Skaggs bits per unit of activity, less the mean of the shifts), si_raw, hd_raw, si_p, hd_p; ev
    (variance explained on held-out episodes), ev_in_sample; border; peaks, field_size, asymmetry; moran, geary, getis.
    groups: site -> (U,) index into GROUPS, by `thresholds`; with `corrected` a unit is only tuned to what it is at
    p <= alpha / 2.
    """

    figure_size: ClassVar[tuple[float, float]] = (7.5, 4.5)

    target: str
    sites: tuple[str, ...]
    origin: tuple[int, int]
    shape: tuple[int, int]
    cell: float
    steps: int
    episodes: int
    occupancy: np.ndarray
    walls: np.ndarray
    headings: tuple[str, ...]
    heading_occupancy: np.ndarray
    maps: Numbers
    curves: Numbers
    scores: dict[str, Numbers]
    groups: Numbers
    thresholds: dict[str, float]
    alpha: float
    corrected: bool
    hz: float
    settings: dict[str, Any]
    notes: tuple[str, ...]

    def shares(self) -> np.ndarray:
        """(sites, groups) share of units of each kind."""
        return np.stack([np.bincount(self.groups[s], minlength=len(GROUPS)) / len(self.groups[s]) for s in self.sites])

    def tuning_curves(self, site: str) -> xarray.DataArray:
        """(unit, x, y) as pynapple.compute_tuning_curves returns them, for its own tools and plots."""
        import xarray

        x, y = (self.cell * (self.origin[i] + np.arange(self.shape[i])) for i in (0, 1))
        edges = [self.cell * (self.origin[i] + np.arange(self.shape[i] + 1) - 0.5) for i in (0, 1)]
        about = {"occupancy": self.occupancy.astype(float), "bin_edges": edges, "fs": self.hz}
        return xarray.DataArray(self.maps[site], {"unit": np.arange(len(self.maps[site])), "x": x, "y": y},
                                ("unit", "x", "y"), attrs=about)  # fmt: skip

    def summary(self) -> str:
        """Per site: medians of the scores beside what the shifts gave, and the share of each kind of cell."""
        how = "corrected and tested" if self.corrected else "as the original measured them"
        lines = [
            f"tuning to {self.target}: {self.steps} steps, {self.episodes} episodes, {int((self.occupancy > 0).sum())} "
            f"of {self.shape[0]} x {self.shape[1]} tiles visited; kinds {how}"
        ]
        header = ["site", "units", "SI raw", "by chance", "p <= .05", "EV held out", "in sample", "HD", "p <= .05"]
        rows = []
        for site in self.sites:
            s = self.scores[site]
            finite = np.isfinite(s["si_raw"])
            means = [np.mean(each[finite]) if finite.any() else np.nan for each in (s["si_raw"], s["si_raw"] - s["si"])]
            share = [float((s[n] <= 0.05).mean()) if np.isfinite(s[n]).any() else np.nan for n in ("si_p", "hd_p")]
            numbers = [*means, share[0], s["ev"].mean(), s["ev_in_sample"].mean(), _mean(s["hd"]), share[1]]
            rows.append([site, str(len(s["rate"])), *map(style.number, numbers)])
        lines.append(style.table(header, rows))
        kinds = [[site, *(f"{v:.0%}" for v in row)] for site, row in zip(self.sites, self.shares())]
        lines += ["", style.table(["kind of unit", *GROUPS], kinds)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> str:
        """Settings, and per site the shares of each kind and the scores of every unit."""
        kinds = {site: dict(zip(GROUPS, row)) for site, row in zip(self.sites, self.shares())}
        names = ("target", "steps", "episodes", "thresholds", "alpha", "corrected", "settings", "notes", "scores")
        return style.as_json(
            {n: getattr(self, n) for n in names} | {"groups": kinds, "caveats": self.provenance.caveats}
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """The share of each kind of unit per site, early to late."""
        ax = self.axes(ax)
        y, left = np.arange(len(self.sites))[::-1], np.zeros(len(self.sites))
        for name, colour, share in zip(GROUPS, GROUP_COLOURS, self.shares().T):
            ax.barh(y, share, left=left, color=colour, label=name, height=0.7)
            left += share
        ax.set_yticks(y, [f"{site} ({len(self.groups[site])})" for site in self.sites])
        ax.set_xlim(0, 1)
        return style.finish(ax, "share of units", "", legend_columns=4)

    def plot_scores(self, name: str) -> Any:
        """One box per site of a score, such as "si" or "ev". Returns the figure."""
        from matplotlib import pyplot as plt

        figure, ax = plt.subplots(figsize=self.figure_size, layout="constrained")
        values = [self.scores[site][name] for site in self.sites]
        y = np.arange(len(values))[::-1]
        ax.boxplot([v[np.isfinite(v)] for v in values], positions=y, orientation="horizontal", showfliers=False,
                   manage_ticks=False, widths=0.6)  # fmt: skip
        ax.set_yticks(y, self.sites)
        style.finish(ax, name, "")
        return figure

    def plot_units(self, site: str, units: np.ndarray | None = None, count: int = 20) -> Any:
        """Maps of units, by default those with the most information. Returns the figure."""
        from matplotlib import pyplot as plt

        scores = self.scores[site]
        if units is None:
            units = np.argsort(-np.nan_to_num(scores["si"], nan=-np.inf))[:count]
        rows = -(-len(units) // 5)
        figure, axes = plt.subplots(rows, 5, figsize=(9, 1.9 * rows), layout="constrained", squeeze=False)
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, unit in zip(axes.flat, units):
            ax.imshow(self.maps[site][unit].T, cmap="viridis", interpolation="nearest")
            kind = GROUPS[self.groups[site][unit]]
            ax.set_title(f"{unit} {kind}\nSI {scores['si'][unit]:.2f} EV {scores['ev'][unit]:.2f}", fontsize=7)
        figure.suptitle(site, fontsize=10)
        return figure

    def plot_scatter(self, site: str) -> Any:
        """Information against explained variance, coloured by kind. Returns the figure."""
        from matplotlib import pyplot as plt

        figure, ax = plt.subplots(figsize=(6, 4.5), layout="constrained")
        scores, group = self.scores[site], self.groups[site]
        for i, (name, colour) in enumerate(zip(GROUPS, GROUP_COLOURS)):
            if (group == i).any():
                ax.plot(scores["ev"][group == i], scores["si"][group == i], ".", color=colour, label=name)
        ax.axvline(self.thresholds["ev"], color="0.8", lw=0.8, zorder=0)
        ax.axhline(self.thresholds["si"], color="0.8", lw=0.8, zorder=0)
        style.finish(ax, "variance explained (held-out episodes)", "spatial information (bits)")
        ax.set_title(site, fontsize=10, loc="right")
        return figure

    def save_figures(self, folder: str | Path) -> list[Path]:
        """layer_summary, layer_si, layer_ev, and per site _si_ev_scatter and _example_tuning_curves, png and svg."""
        figures = {"layer_summary": self.plot().figure, "layer_si": self.plot_scores("si"),
                   "layer_ev": self.plot_scores("ev")}  # fmt: skip
        for site in self.sites:
            stem = site.replace(".", "_")
            figures[f"{stem}_si_ev_scatter"] = self.plot_scatter(site)
            figures[f"{stem}_example_tuning_curves"] = self.plot_units(site)
        return save_figures(figures, folder, self.provenance.caveats)

    def save_page(self, path: str | Path) -> Path:
        """One HTML file that needs nothing beside itself: pick a unit in the scatter, see its map and scores."""
        from torchmem.analysis._tuning_page import page

        return atomic_write(path, page(self))


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan
