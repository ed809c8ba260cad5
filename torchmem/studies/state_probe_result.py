"""What `probe_state` found: value and actions over levels of vitals, beside those over an item that means little."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.result import Result, save_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TOP = 6  # actions that a figure shows


@dataclasses.dataclass(frozen=True)
class StateProbeResult(Result):
    """F scenes, V vitals at L levels each, A actions.

    value: (F, L, ..., L) one axis per vital; p: (F, L, ..., L, A). control_value: (F, L), control_p: (F, L, A): of the
    control item, vitals as they were. mean, interval: "value" (range of the mean value over the levels of one vital)
    and "bits" (that the action tells of the level, other vitals held, all levels alike often) -> vital or control ->
    number, or (2,) 95 % bootstrap over scenes. frames: (F, side, side, 3); row, episode: (F,) of the recording;
    inventory: (F, 16) as recorded.
    """

    figure_size: ClassVar[tuple[float, float]] = (6.0, 4.0)

    vitals: tuple[str, ...]
    levels: tuple[int, ...]
    control: str
    value: np.ndarray
    p: np.ndarray
    control_value: np.ndarray
    control_p: np.ndarray
    mean: dict[str, dict[str, float]]
    interval: dict[str, dict[str, np.ndarray]]
    frames: np.ndarray
    row: np.ndarray
    episode: np.ndarray
    inventory: np.ndarray
    actions: tuple[str, ...]
    settings: dict[str, Any]

    def profile(self, name: str) -> np.ndarray:
        """(F, L) value at each level of a vital, over all levels of the others; or of the control."""
        if name == self.control:
            return self.control_value
        axis = 1 + self.vitals.index(name)
        return self.value.mean(tuple(i for i in range(1, self.value.ndim) if i != axis))

    def chosen(self, name: str) -> np.ndarray:
        """(F, L, A) probabilities at each level, as `profile`."""
        if name == self.control:
            return self.control_p
        axis = 1 + self.vitals.index(name)
        return self.p.mean(tuple(i for i in range(1, self.p.ndim - 1) if i != axis))

    def summary(self) -> str:
        """How much the value and the actions follow each vital, beside the control item."""
        rows = []
        for name in (*self.vitals, self.control):
            cells = []
            for what in ("value", "bits"):
                low, high = self.interval[what][name]
                cells.append(f"{self.mean[what][name]:.4f} [{low:.4f}, {high:.4f}]")
            ends = self.profile(name).mean(0)
            label = f"{name} (control)" if name == self.control else name
            rows.append([label, *cells, f"{ends[0]:.3f}", f"{ends[-1]:.3f}"])
        header = ["shown", "range of value", "bits of the action", f"value at {self.levels[0]}",
                  f"value at {self.levels[-1]}"]  # fmt: skip
        carry = "remembering the episode" if self.settings["history"] else "with a blank memory"
        return (f"{len(self.row)} scenes, levels {', '.join(map(str, self.levels))}, {carry}; mean [95 % over scenes]\n"
                + style.table(header, rows))  # fmt: skip

    def plot(self, ax: Axes | None = None) -> Axes:
        """Value against the level of each vital, less the scene's own mean: mean and 95 % over scenes."""
        ax = self.axes(ax)
        for i, name in enumerate((*self.vitals, self.control)):
            profile = self.profile(name)
            profile = profile - profile.mean(1, keepdims=True)
            middle, bar = profile.mean(0), 1.96 * profile.std(0) / np.sqrt(len(profile))
            colour = style.CONTROL_COLOUR if name == self.control else style.COLOURS[i % len(style.COLOURS)]
            label = f"{name} (control)" if name == self.control else name
            ax.errorbar(self.levels, middle, bar, fmt="o-", ms=4, lw=1.4, color=colour, label=label)
        ax.axhline(0, color="0.8", lw=0.8, zorder=0)
        return style.finish(ax, "level shown in the status bar", "value, less the scene's mean", legend_columns=4)

    def plot_actions(self) -> Figure:
        """Probabilities of the actions that change most, over the levels of each vital and of the control."""
        from matplotlib import pyplot as plt

        names = (*self.vitals, self.control)
        curves = {name: self.chosen(name).mean(0) for name in names}
        top = np.argsort(-np.max([np.ptp(one, axis=0) for one in curves.values()], axis=0))[:TOP]
        figure, axes = plt.subplots(1, len(names), figsize=(2.7 * len(names), 3), sharey=True, layout="constrained")
        for ax, name in zip(np.atleast_1d(axes), names):
            for i, a in enumerate(top):
                colour = style.COLOURS[i % len(style.COLOURS)]
                ax.plot(self.levels, curves[name][:, a], "o-", ms=3, lw=1.2, color=colour, label=self.actions[a])
            style.finish(ax, f"{name}{' (control)' if name == self.control else ''}", "")
            ax.get_legend().remove()
        np.atleast_1d(axes)[0].set_ylabel("mean probability")
        handles, labels = np.atleast_1d(axes)[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=6, frameon=False, fontsize=8)
        return figure

    def plot_heatmaps(self) -> Figure:
        """Mean value over each pair of vitals."""
        from matplotlib import pyplot as plt

        pairs = [(a, b) for a in range(len(self.vitals)) for b in range(a + 1, len(self.vitals))] or [(0, 0)]
        figure, axes = plt.subplots(1, len(pairs), figsize=(3.3 * len(pairs), 3), layout="constrained", squeeze=False)
        mean = self.value.mean(0)
        tables = [mean.mean(tuple(i for i in range(mean.ndim) if i not in pair)) if mean.ndim > 1 else mean[:, None]
                  for pair in pairs]  # fmt: skip
        low, high = min(map(np.min, tables)), max(map(np.max, tables))
        image: Any = None
        for ax, (a, b), table in zip(axes.flat, pairs, tables):
            image = ax.imshow(table.T, origin="lower", vmin=low, vmax=high, cmap="viridis", aspect="auto")
            ax.set_xticks(range(len(self.levels)), self.levels)
            ax.set_yticks(range(table.shape[1]), self.levels[: table.shape[1]])
            ax.set_xlabel(self.vitals[a])
            ax.set_ylabel(self.vitals[b] if a != b else "")
        figure.colorbar(image, ax=axes, label="mean value")
        return figure

    def plot_frames(self) -> Figure:
        """The scenes as recorded."""
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(-(-len(self.frames) // 4), 4, figsize=(8, 2.1 * -(-len(self.frames) // 4)),
                                    layout="constrained", squeeze=False)  # fmt: skip
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, frame, row, episode in zip(axes.flat, self.frames, self.row, self.episode):
            ax.imshow(frame, interpolation="nearest")
            ax.set_title(f"episode {episode}, row {row}", fontsize=7)
        return figure

    def save_figures(self, folder: str | Path) -> list[Path]:
        """value_vs_vitals, action_probs_vs_vitals, value_heatmaps, probe_frames, as svg and png."""
        figures = {"value_vs_vitals": self.plot().figure, "action_probs_vs_vitals": self.plot_actions(),
                   "value_heatmaps": self.plot_heatmaps(), "probe_frames": self.plot_frames()}  # fmt: skip
        return save_figures(figures, folder, self.provenance.caveats)
