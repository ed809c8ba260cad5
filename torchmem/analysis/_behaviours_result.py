"""BehavioursResult: which behaviour each step belongs to, whether there are any, and what each is like."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVEL = 0.05
AGREE = 0.65  # adjusted Rand index from which two clusterings agree fairly (Steinley 2004, Psychological Methods 9)
FIRM = 0.75  # Jaccard index from which a cluster is the same one again (Hennig 2007, CSDA 52)


@dataclasses.dataclass(frozen=True)
class BehavioursResult(Result):
    """K clusters of the N steps of all `recordings`, one recording after the other.

    label (N,): cluster, -1 where the window of the step leaves its episode, or the step was skipped. recording,
    episode, step (N,): where each step is. distance (N,) to the centre of its cluster, in principal components; NaN
    where label is -1.
    counts (C,) numbers of clusters that were tried; silhouette (C,); mixed (draws, C) the same of mixtures of episodes,
    which have no clusters; exchanged (draws, C) with every block of features from another episode. p: of the largest
    excess over mixtures. stability, by_chance (draws,): adjusted Rand index when episodes are drawn again, and that of
    mixtures; members (draws, K): Jaccard index of each cluster. value, low, high (K, Q) of the quantities, means over
    the steps of a cluster with 95 % bounds over episodes; everywhere (Q,). exemplars (K, M, 3): recording, episode and
    step nearest to each centre, of M unlike episodes (-1: there are no more). points (S, 2): first two components of
    the steps `shown` (S,), map (S, 2) or (0, 2): for display only.
    """

    figure_size: ClassVar[tuple[float, float]] = (6.0, 4.0)

    recordings: tuple[str, ...]
    sites: tuple[str, ...]
    lags: tuple[int, ...]
    label: np.ndarray
    recording: np.ndarray
    episode: np.ndarray
    step: np.ndarray
    distance: np.ndarray
    counts: np.ndarray
    silhouette: np.ndarray
    mixed: np.ndarray
    exchanged: np.ndarray
    p: float
    stability: np.ndarray
    by_chance: np.ndarray
    members: np.ndarray
    quantities: tuple[str, ...]
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    everywhere: np.ndarray
    exemplars: np.ndarray
    shown: np.ndarray
    points: np.ndarray
    map: np.ndarray
    settings: dict[str, Any]

    @property
    def count(self) -> int:
        """Number of clusters, K."""
        return len(self.value)

    @property
    def stable(self) -> bool:
        """There are clusters, and other episodes would give the same ones."""
        return bool(self.p <= LEVEL and len(self.stability) and self.stability.mean() >= AGREE)

    def labels(self, recording: int = 0) -> np.ndarray:
        """(steps,) of one of the recordings, in its own order."""
        return self.label[self.recording == recording]

    def mask(self, cluster: int, recording: int = 0) -> np.ndarray:
        """(steps,) bool, as `where` of other analyses takes it. Raises ValueError for a cluster that is not there."""
        if not 0 <= cluster < self.count:
            raise ValueError(f"there is no behaviour {cluster}: there are 0 to {self.count - 1}")
        return self.labels(recording) == cluster

    def episode_labels(self, recording: int = 0) -> np.ndarray:
        """(episodes,) the label that most steps of each episode have (the smallest of equals); -1: none has any."""
        mine = self.recording == recording
        numbers, episode = np.unique(self.episode[mine], return_inverse=True)
        label = self.label[mine]
        votes = np.zeros((len(numbers), self.count), np.int64)
        np.add.at(votes, (episode[label >= 0], label[label >= 0]), 1)
        return np.where(votes.any(1), votes.argmax(1), -1)

    def clips(self, cluster: int, recordings: Sequence[Any]) -> np.ndarray:
        """(M, T, H, W, 3) uint8: what was shown from each exemplar to the end of its window.

        recordings: those of the result, in its order. Raises ValueError without a colour image, or for another cluster.
        """
        self.mask(cluster)  # raises for one that is not there
        key = next((name for name, c in recordings[0].covariates.items() if name.startswith("obs.") and c.ndim == 4
                    and c.shape[-1] == 3 and c.dtype == np.uint8), None)  # fmt: skip
        if key is None:
            raise ValueError(f"{self.recordings[0]} shows no colour image, so there are no clips to make")
        clips, length = [], max(self.lags, default=0) + 1
        for place, episode, step in self.exemplars[cluster]:
            if place >= 0:
                row = int(np.flatnonzero(np.asarray(recordings[place].episode) == episode)[step])
                clips.append(np.asarray(recordings[place].covariates[key][row : row + length]))
        return np.stack(clips)

    def table(self) -> dict[str, list]:
        """One row per cluster and quantity."""
        places = [(k, q) for k in range(self.count) for q in range(len(self.quantities))]
        columns = {"behaviour": [k for k, _ in places], "quantity": [self.quantities[q] for _, q in places]}
        for name in ("value", "low", "high"):
            columns[name] = [float(getattr(self, name)[place]) for place in places]
        return columns | {"everywhere": [float(self.everywhere[q]) for _, q in places]}

    def summary(self) -> str:
        at = int(np.flatnonzero(self.counts == self.count)[0])
        others = f"mixtures of episodes {_mean(self.mixed[:, at])}, blocks exchanged {_mean(self.exchanged[:, at])}"
        verdict = "" if self.stable else "NO STABLE BEHAVIOURS: "
        firm = self.members.mean(0) if len(self.members) else np.full(self.count, np.nan)
        head = (
            f"{verdict}{self.count} clusters of {int((self.label >= 0).sum())} steps by {', '.join(self.sites)}; "
            f"silhouette {self.silhouette[at]:.3f} ({others}), p {style.number(self.p)}; adjusted Rand index with "
            f"episodes drawn again {_mean(self.stability)} (mixtures {_mean(self.by_chance)})"
        )
        rows = []
        for k in range(self.count):
            told = sorted(range(1, len(self.quantities)), key=lambda q: -self._unlike(k, q))[:3]
            unlike = [
                f"{self.quantities[q]} {self.value[k, q]:.3g} [{self.low[k, q]:.3g}, {self.high[k, q]:.3g}] "
                f"({self.everywhere[q]:.3g})" for q in told if self._unlike(k, q) > 0
            ]  # fmt: skip
            rows.append([str(k), f"{self.value[k, 0]:.1%}", style.number(float(firm[k])), "; ".join(unlike) or "-"])
        header = ["behaviour", "steps", "Jaccard", "most unlike the rest (everywhere)"]
        return f"{head}\n{style.table(header, rows)}"

    def _unlike(self, k: int, q: int) -> float:
        """How far outside its interval the mean over everything is, in half widths."""
        half = max((self.high[k, q] - self.low[k, q]) / 2, 1e-9)
        found = abs(self.value[k, q] - self.everywhere[q]) / half - 1
        return float(found) if np.isfinite(found) else -1.0

    def plot(self, ax: Axes | None = None) -> Axes:
        """Silhouette by number of clusters, beside what has none."""
        ax = self.axes(ax)
        ax.plot(self.counts, self.silhouette, "o-", color=style.COLOURS[0], label="these steps")
        for values, colour, marker, name in (
            (self.mixed, style.CONTROL_COLOUR, "s", "episodes mixed: no clusters"),
            (self.exchanged, style.COLOURS[1], "D", "blocks of other episodes"),
        ):
            if len(values):
                ends = np.quantile(values, [0.025, 0.975], axis=0)
                bars = np.maximum([values.mean(0) - ends[0], ends[1] - values.mean(0)], 0)
                ax.errorbar(self.counts, values.mean(0), bars, fmt=f"{marker}--", ms=3, lw=1, color=colour, label=name)
        ax.axvline(self.count, color="0.85", zorder=0)
        if len(self.counts) <= 20:
            ax.set_xticks(self.counts)
        return style.finish(ax, "number of clusters", "silhouette", legend_columns=2)

    def figure(self) -> Any:
        """Where the clusters lie, and what each is like: quantities as bars, a line where everything is."""
        from matplotlib import colormaps
        from matplotlib.figure import Figure

        columns = [q for q in range(len(self.quantities)) if np.isfinite(self.everywhere[q])
                   and np.nanmax(np.abs(self.value[:, q] - self.everywhere[q])) > 0]  # fmt: skip
        wide = 2 if len(self.map) else 1
        figure = Figure(figsize=(4.2 * wide + 0.9 * len(columns), 4.2), layout="constrained")
        ratios = [4.2] * wide + [0.9] * len(columns)
        axes = figure.subplots(1, wide + len(columns), width_ratios=ratios, squeeze=False)[0]
        few = self.count <= len(style.COLOURS)
        colours = [style.COLOURS[k] if few else colormaps["tab20"](k % 20) for k in range(self.count)]
        label = self.label[self.shown]
        planes = [(self.points, "component 1", "component 2")]
        planes += [(self.map, "map, for display only", "")] if wide == 2 else []
        for ax, (points, x, y) in zip(axes, planes):
            for k in range(self.count):
                ax.plot(*points[label == k].T, ".", ms=2, color=colours[k], label=str(k))
            style.finish(ax, x, y, legend_columns=8)
        for ax, q in zip(axes[wide:], columns):
            at = np.arange(self.count)
            bars = np.abs([self.value[:, q] - self.low[:, q], self.high[:, q] - self.value[:, q]])
            ax.barh(at, self.value[:, q], xerr=np.nan_to_num(bars), color=colours, error_kw={"lw": 1})
            ax.axvline(self.everywhere[q], color="0.3", lw=1, ls="--")
            ax.set_ylim(self.count - 0.5, -0.5)
            ax.set_yticks(at if ax is axes[wide] else [])
            ax.tick_params(labelsize=7)
            ax.set_title(self.quantities[q], fontsize=8, rotation=30, loc="left")
            ax.spines[["top", "right"]].set_visible(False)
        return figure


def _mean(values: np.ndarray) -> str:
    return style.number(float(values.mean())) if len(values) else "-"
