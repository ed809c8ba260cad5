"""Figures of decoded positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.analysis import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchmem.analysis._position_result import PositionResult

MARGIN = 2.5  # tiles around those visited


def draw_errors(result: PositionResult, ax: Axes) -> Axes:
    """One row per site, early at the top."""
    y = np.arange(len(result.sites))[::-1]
    errors = [result.errors(site)[result.held_out] for site in result.sites]
    ax.boxplot(errors, positions=y, orientation="horizontal", widths=0.5, showfliers=False, manage_ticks=False,
               boxprops={"color": "0.75"}, whiskerprops={"color": "0.75"}, capprops={"color": "0.75"},
               medianprops={"color": "0.5"})  # fmt: skip
    grey: dict[str, Any] = {"ms": 5, "mfc": "none", "lw": 1, "color": style.CONTROL_COLOUR}
    for (name, control), marker in zip(result.controls.items(), "sD^v<>Ph"):
        if name == "uniform":  # far off the scale of the others
            continue
        bars = np.nan_to_num(control.get("spread", np.zeros(len(y))))
        ax.errorbar(control["manhattan"], y, xerr=bars, fmt=marker, label=name, **grey)
    score, interval = result.scores["manhattan"], result.intervals["manhattan"]
    bars = np.abs(interval.T - score)
    ax.errorbar(score, y, xerr=bars, fmt="o", color=style.COLOURS[0], lw=1.8, label=f"mean ({result.decoder})")
    ax.set_yticks(y, [f"{site} ({width})" for site, width in zip(result.sites, result.widths)])
    ax.set_ylim(-0.6, len(y) - 0.4)
    ax.set_xlim(left=0)
    chance = float(result.controls["uniform"]["manhattan"][0])
    text = f"Manhattan error (tiles), held-out steps; uniform guess {chance:.1f}"
    return style.finish(ax, text, "", legend_columns=4)


def per_tile(result: PositionResult, site: str) -> tuple[np.ndarray, np.ndarray]:
    """(visits (W, H), mean error (W, H), NaN where never held out)."""
    rows = result.held_out
    index = result.tile[rows, 0].astype(int) * result.shape[1] + result.tile[rows, 1]
    size = result.shape[0] * result.shape[1]
    visits = np.bincount(index, minlength=size)
    total = np.bincount(index, result.errors(site)[rows], size)
    mean = np.divide(total, visits, out=np.full(size, np.nan), where=visits > 0)
    return visits.reshape(result.shape), mean.reshape(result.shape)


def _world(ax: Axes, result: PositionResult, values: np.ndarray, background: np.ndarray | None, **look: Any) -> Any:
    extent = (result.origin[0] - 0.5, result.origin[0] + result.shape[0] - 0.5,
              result.origin[1] + result.shape[1] - 0.5, result.origin[1] - 0.5)  # fmt: skip
    if background is not None:
        ax.imshow(background, extent=extent, interpolation="nearest")
    image = ax.imshow(values.T, extent=extent, interpolation="nearest", **look)
    low, high = result.cells.min(0) + result.origin, result.cells.max(0) + result.origin
    ax.set_xlim(low[0] - MARGIN, high[0] + MARGIN)
    ax.set_ylim(high[1] + MARGIN, low[1] - MARGIN)
    ax.set_xticks([])
    ax.set_yticks([])
    return image


def draw_occupancy(result: PositionResult, site: str, background: np.ndarray | None) -> Any:
    from matplotlib import pyplot as plt

    visits, error = per_tile(result, site)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    shown = np.where(visits > 0, visits, np.nan)
    figure.colorbar(_world(axes[0], result, shown, background, cmap="viridis", norm="log"), ax=axes[0], label="visits")
    figure.colorbar(
        _world(axes[1], result, error, background, cmap="magma", vmin=0), ax=axes[1], label="mean error (tiles)"
    )
    met = visits > 0
    ax = axes[2]
    ax.plot(visits[met], error[met], ".", color="0.7", ms=4)
    edges = np.unique(np.round(np.geomspace(1, visits.max() + 1, 9)))
    which = np.digitize(visits[met], edges) - 1
    used = [i for i in range(len(edges)) if (which == i).any()]
    groups = [error[met][which == i] for i in used]
    centres = [visits[met][which == i].mean() for i in used]
    low, middle, high = np.array([np.percentile(g, [25, 50, 75]) for g in groups]).T
    ax.fill_between(centres, low, high, color=style.COLOURS[0], alpha=0.2, lw=0)
    ax.plot(centres, middle, "o-", ms=3, color=style.COLOURS[0], label="median, quartiles")
    sem = [g.std() / np.sqrt(len(g)) for g in groups]
    ax.errorbar(centres, [g.mean() for g in groups], sem, fmt="s-", ms=3, color=style.COLOURS[1], label="mean, SEM")
    ax.set_xscale("log")
    style.finish(ax, "visits to the tile", "error (tiles)")
    figure.suptitle(f"{site}: occupancy against error", fontsize=10)
    return figure


def draw_maps(result: PositionResult, site: str, background: np.ndarray | None) -> Any:
    from matplotlib import pyplot as plt

    maps, s = result.maps[result.sites.index(site)], result.sites.index(site)
    columns = 4
    rows = -(-len(maps) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.3 * columns, 2.3 * rows), layout="constrained", squeeze=False)
    origin = np.array(result.origin)
    for ax in axes.flat[len(maps) :]:
        ax.set_visible(False)
    for ax, p, step in zip(axes.flat, maps, result.shown):
        alpha = None if background is None else np.clip(p.T / max(p.max(), 1e-9) * 2, 0, 0.85)
        _world(ax, result, p, background, cmap="magma", vmin=0, vmax=max(float(p.max()), 1e-9), alpha=alpha)
        ax.plot(*(result.tile[step] + origin), "o", mfc="none", mec=style.COLOURS[5], ms=8, mew=1.5)
        ax.plot(*(result.best[s, step] + origin), "x", color=style.COLOURS[2], ms=6, mew=1.5)
        ax.set_title(f"step {int(result.rows[step])}, error {int(result.errors(site)[step])}", fontsize=8)
    figure.suptitle(f"{site}: probability of each tile; circle: true, cross: likeliest", fontsize=10)
    return figure
