"""Figures of decoded dreams."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.analysis import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from torchmem.analysis._dream_result import DreamResult

MARGIN = 1.5  # tiles around those shown
PANELS = {
    "displacement": "from the own start (tiles)", "from_start": "from the real start (tiles)",
    "spread": "between copies (tiles)", "step": "length of a step (tiles)", "stay_put": "share of steps on one tile",
    "jump": "length of a move (tiles)",
}  # fmt: skip


def _band(ax: Axes, result: DreamResult, measure: str, c: int, fill: bool = True, **look: Any) -> None:
    steps, mean = np.arange(result.horizon + 1), result.means[measure][c]
    bounds = np.array(result.intervals[measure][c])
    if fill:  # many bands on top of each other show nothing
        ax.fill_between(steps, *bounds.T, color=look["color"], alpha=0.18, lw=0)
    ax.plot(steps, mean, **look)


def draw_divergence(result: DreamResult, ax: Axes) -> Axes:
    """Means with 95 % intervals; rotated futures and standing still in grey."""
    dreams = result.conditions[:-1]
    for c, name in enumerate(dreams):
        label, line = ("observed (awake)", "--") if name == "awake" else (f"dream {name}", "-")
        _band(ax, result, "divergence", c, fill=len(dreams) < 4 or c == 0, color=style.COLOURS[c % len(style.COLOURS)],
              marker="o", ms=3, lw=1.4, ls=line, label=label)  # fmt: skip
    grey = {"color": style.CONTROL_COLOUR, "lw": 1.2}
    _band(ax, result, "chance", 0, ls="--", label=f"rotated futures (of dream {result.conditions[0]})", **grey)
    _band(ax, result, "stay", 0, ls=":", label="standing still at the real start", **grey)
    ax.set_ylim(bottom=0)
    style.finish(ax, "step of the dream", f"distance to the real {result.target} (tiles)", legend_columns=2)
    return ax


def _limits(ax: Axes, points: np.ndarray) -> None:
    known = points.reshape(-1, 2)
    known = known[np.isfinite(known).all(1)]
    low, high = known.min(0) - MARGIN, known.max(0) + MARGIN
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(high[1], low[1])  # y grows downwards
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])


def _dreams(result: DreamResult, most: int) -> np.ndarray:
    """Rows of the first condition, one per start, spread over the starts; those whose real future lasts, if any."""
    lasting = np.isfinite(result.real[:, (result.horizon + 1) // 2]).all(-1)
    own = (result.condition == 0) & (result.copy == 0)
    rows = np.flatnonzero(own & lasting) if (own & lasting).any() else np.flatnonzero(own)
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]


def draw_futures(result: DreamResult) -> Figure:
    """Up to 6 dreams: the observed path before, what really came, what was dreamed."""
    from matplotlib import pyplot as plt

    rows = _dreams(result, 6)
    figure, axes = plt.subplots(2, 3, figsize=(8.5, 6), layout="constrained")
    for ax in axes.flat[len(rows) :]:
        ax.set_visible(False)
    for ax, row in zip(axes.flat, rows):
        ax.plot(*result.before[row].T, "-", color="0.7", lw=2.5, label="observed before")
        ax.plot(*result.real[row].T, "o-", ms=3, lw=1.2, color=style.COLOURS[2], label="real future")
        ax.plot(*result.tile[row].T, "s-", ms=3, lw=1.2, color=style.COLOURS[1], alpha=0.8, label="dream")
        ax.plot(*result.real[row, 0], "*", ms=11, color="k", label="start")
        _limits(ax, np.concatenate([result.before[row], result.real[row], result.tile[row]]))
        far = np.nanmean(np.abs(result.tile[row, 1:] - result.real[row, 1:]).sum(1))
        ax.set_title(f"episode {result.episode[row]}, {far:.1f} tiles apart", fontsize=8)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def draw_world(result: DreamResult, background: np.ndarray | None = None) -> Figure:
    """Up to 12 decoded dreams on the map, coloured by step."""
    from matplotlib import pyplot as plt

    rows = _dreams(result, 12)
    figure, ax = plt.subplots(figsize=(6, 5.2), layout="constrained")
    _background(ax, result, background)
    rng = np.random.default_rng(0)
    dots: Any = None
    for row in rows:
        path = result.tile[row] + rng.uniform(-0.15, 0.15, 2)  # so that dreams on one tile can be told apart
        ax.plot(*path.T, "-", color="0.6", lw=0.7)
        dots = ax.scatter(*path.T, c=np.arange(len(path)), cmap="viridis", s=14, zorder=3)
        ax.plot(*path[0], "o", mfc="none", mec="k", ms=7)
    figure.colorbar(dots, ax=ax, label="step of the dream")
    _limits(ax, result.tile[rows])
    return figure


def _background(ax: Axes, result: DreamResult, picture: np.ndarray | None) -> None:
    if picture is not None:
        (x, y), (width, height) = result.origin, result.shape
        ax.imshow(picture, extent=(x - 0.5, x + width - 0.5, y + height - 0.5, y - 0.5), interpolation="nearest")


def draw_maps(result: DreamResult, number: int, background: np.ndarray | None = None) -> Figure:
    """Six steps of one dream: decoded probabilities, the decoded and the real tile."""
    from matplotlib import pyplot as plt

    row = result.shown[number]
    steps = np.unique(np.linspace(0, result.horizon, min(6, result.horizon + 1)).astype(int))
    figure, axes = plt.subplots(1, len(steps), figsize=(2.1 * len(steps), 2.6), layout="constrained", squeeze=False)
    (x, y), (width, height) = result.origin, result.shape
    extent = (x - 0.5, x + width - 0.5, y + height - 0.5, y - 0.5)
    for ax, step in zip(axes.flat, steps):
        _background(ax, result, background)
        p = result.maps[number, step].astype(float)
        ax.imshow(p.T, extent=extent, cmap="magma", interpolation="nearest", alpha=1 if background is None else 0.7)
        ax.plot(*result.real[row, step], "x", color=style.COLOURS[2], ms=8, mew=2, label="real")
        ax.plot(*result.tile[row, step], "s", mfc="none", mec=style.COLOURS[5], ms=9, label="likeliest")
        ax.set_title(f"step {step}" + ("" if np.isfinite(result.real[row, step]).all() else " (past the end)"),
                     fontsize=8)  # fmt: skip
        ax.set_xticks([])
        ax.set_yticks([])
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def draw_continuity(result: DreamResult) -> Figure:
    """Shares of step lengths: real, dreamed, and from one dream to another."""
    from matplotlib import pyplot as plt

    ax = plt.subplots(figsize=(6.5, 4), layout="constrained")[1]
    steps = np.sqrt((np.diff(result.tile, axis=1) ** 2).sum(-1))
    steps = np.where(np.isfinite(result.real[:, 1:]).all(-1), steps, np.nan)
    top = int(np.nanmax(steps)) + 1
    edges = np.concatenate([[-0.5], np.arange(0.5, min(top, 12) + 1), [top + 1.5]])
    for c, name in enumerate(result.conditions):
        own = steps[result.condition == c]
        own = own[np.isfinite(own)]
        if len(own):
            share = np.histogram(own, edges)[0] / len(own)
            colour = style.CONTROL_COLOUR if name == "real" else style.COLOURS[c % len(style.COLOURS)]
            ax.plot(np.arange(len(share)), share, "o-", ms=4, lw=1.2, color=colour, label=name)
    apart = result.pooled["elsewhere"][0]
    if np.isfinite(apart):
        ax.axvline(min(apart, len(edges) - 2), color=style.CONTROL_COLOUR, ls=":", label="mean step to another dream")
    ax.set_yscale("symlog", linthresh=1e-3)
    ax.set_ylim(bottom=0)
    return style.finish(ax, "length of a step (tiles)", "share of steps", legend_columns=4).figure  # type: ignore[return-value]


def draw_ablation(result: DreamResult) -> Figure:
    """Six measures over the steps of the dream, one line per condition."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(10, 5.6), layout="constrained")
    for ax, (measure, label) in zip(axes.flat, PANELS.items()):
        for c, name in enumerate(result.conditions):
            if np.isfinite(result.means[measure][c]).any():
                colour = style.CONTROL_COLOUR if name == "real" else style.COLOURS[c % len(style.COLOURS)]
                few = len(result.conditions) < 5
                _band(ax, result, measure, c, fill=few, color=colour, lw=1.3, marker="o", ms=2.5, label=name)
        if measure == "spread" and not ax.lines:
            ax.text(0.5, 0.5, "one copy per start", ha="center", va="center", transform=ax.transAxes, color="0.4")
        ax.set_ylim(bottom=0)
        style.finish(ax, "step of the dream", label)
        if (legend := ax.get_legend()) is not None:
            legend.remove()
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=8, frameon=False, fontsize=8)
    return figure


def draw_warmup(result: DreamResult) -> Figure:
    """Mean divergence of a dream by how long the agent had observed before."""
    from matplotlib import pyplot as plt

    ax = plt.subplots(figsize=(6, 4), layout="constrained")[1]
    edges = result.warmup_edges
    place = np.arange(len(edges) - 1)
    for c, name in enumerate(result.conditions[:-1]):
        mean, (low, high) = result.by_warmup["mean"][c], result.by_warmup["interval"][c].T
        colour = style.COLOURS[c % len(style.COLOURS)]
        ax.errorbar(place + 0.04 * c, mean, np.abs([mean - low, high - mean]), fmt="o-", ms=4, lw=1.2, color=colour,
                    label=name)  # fmt: skip
    names = [f"{a:g}" if b - a == 1 else f"{a:g} to {b - 1:g}" for a, b in itertools.pairwise(edges)]
    ax.set_xticks(place, names)
    ax.set_ylim(bottom=0)
    return style.finish(ax, "steps observed before the dream", "distance to the real steps (tiles)").figure  # type: ignore[return-value]


def film(result: DreamResult) -> np.ndarray:
    """(H + 1, height, width, 3) uint8: the maps of up to 8 dreams side by side, step by step; white: the real tile."""
    count = min(8, len(result.maps))
    zoom = max(1, 160 // max(result.shape))
    frames = []
    for step in range(result.horizon + 1):
        panels = []
        for number, row in enumerate(result.shown[:count]):
            p = result.maps[number, step].astype(float).T  # (H', W)
            picture = np.zeros((*p.shape, 3))
            picture[..., 0] = np.sqrt(p / max(p.max(), 1e-9))
            real = result.real[row, step] - result.origin
            if np.isfinite(real).all() and (real >= 0).all() and (real < result.shape).all():
                picture[int(real[1]), int(real[0])] = 1
            picture = np.kron(picture, np.ones((zoom, zoom, 1)))
            panels.append(np.pad(picture, ((2, 2), (2, 2), (0, 0)), constant_values=0.4))
        frames.append(np.concatenate(panels, 1))
    return (np.stack(frames) * 255).astype(np.uint8)
