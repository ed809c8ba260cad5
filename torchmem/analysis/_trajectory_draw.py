"""Figures of paths. Coordinates are tiles, x to the right and y down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.analysis import style
from torchmem.analysis._probe_data import find_sites

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from torchmem.analysis._trajectory_result import TrajectoriesResult

MARGIN = 3  # tiles around what was visited
NAMED = 10  # episodes that the legend names
_BAR: dict[str, Any] = {"shrink": 0.7, "aspect": 15}
START, END = "#39ff14", "#d62728"


def world_axes(result: TrajectoriesResult, ax: Axes, *, whole: bool = False) -> Axes:
    """The world as a background, cut to what was visited unless `whole`."""
    from matplotlib.ticker import MaxNLocator

    height, width = result.picture.shape[:2]
    (x, y), tiles = result.origin, result.pixels
    ax.imshow(result.picture, extent=(x, x + width / tiles, y + height / tiles, y), interpolation="nearest", alpha=0.65)
    if not whole:
        low, high = result.places.min(0) - MARGIN, result.places.max(0) + MARGIN
        ax.set_xlim(max(low[0], x), min(high[0], x + width / tiles))
        ax.set_ylim(min(high[1], y + height / tiles), max(low[1], y))
    ax.set_aspect("equal")
    spans = [abs(high - low) for low, high in (ax.get_xlim(), ax.get_ylim())]
    for axis, span in zip((ax.xaxis, ax.yaxis), spans):  # the shorter side of the picture has room for fewer numbers
        axis.set_major_locator(MaxNLocator(max(2, round(8 * span / max(spans))), integer=True))
    ax.set_xlabel("x (tiles)")
    ax.set_ylabel("y (tiles)")
    return ax


def draw_paths(result: TrajectoriesResult, ax: Axes, *, whole: bool = False) -> Axes:
    """A line per episode. Lines of different episodes are shifted by some hundredths of a tile, to be told apart."""
    from matplotlib import colormaps

    if not ax.images:
        world_axes(result, ax, whole=whole)
    places, colours = result.places, colormaps["tab10"].colors  # type: ignore[attr-defined]
    shift = np.random.default_rng(0).uniform(-0.25, 0.25, (len(result.pieces), 2)) * result.tiled
    for number, steps in enumerate(result.pieces):
        x, y = (places[steps] + shift[number]).T
        label = None
        if number < NAMED:
            label = f"episode {int(result.episode[steps[0]])}: return {result.returns[number]:.1f}"
        alpha = 0.9 if len(result.pieces) <= NAMED else 0.5
        ax.plot(x, y, "-", lw=1.3, color=colours[number % 10], alpha=alpha, label=label)
        ax.plot(x[0], y[0], "o", ms=6, mfc=START, mec="black", zorder=5)
        ax.plot(x[-1], y[-1], "s", ms=5, mfc=END, mec="black", zorder=5)
    return style.finish(ax, "x (tiles); green: start, red: end", "y (tiles)", legend_columns=2)


def _figure(result: TrajectoriesResult, whole: bool = False) -> tuple[Any, Axes]:
    """Shaped like the part of the world that it shows."""
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(layout="constrained")
    world_axes(result, ax, whole=whole)
    wide, tall = np.ptp(ax.get_xlim()), np.ptp(ax.get_ylim())
    figure.set_size_inches(6.4, float(np.clip(5.2 * tall / wide + 1.1, 2.5, 12)))
    return figure, ax


def draw_trajectories(result: TrajectoriesResult) -> Any:
    """The paths, on what was visited."""
    figure, ax = _figure(result)
    draw_paths(result, ax)
    return figure


def draw_heatmap(result: TrajectoriesResult) -> Any:
    figure, ax = _figure(result)
    seen = result.occupancy.astype(float)
    extent = (result.origin[0], result.origin[0] + seen.shape[0], result.origin[1] + seen.shape[1], result.origin[1])
    limits = ax.get_xlim(), ax.get_ylim()
    image = ax.imshow(np.where(seen > 0, seen, np.nan).T, extent=extent, cmap="inferno", norm="log")
    ax.set(xlim=limits[0], ylim=limits[1])
    figure.colorbar(image, ax=ax, **_BAR, label=f"steps, of {int(seen.sum())}")
    ax.set_title(f"{len(result.pieces)} episodes, {int((seen > 0).sum())} tiles", fontsize=10)
    return figure


def draw_world(result: TrajectoriesResult) -> Any:
    """The whole picture with the paths."""
    figure, ax = _figure(result, whole=True)
    draw_paths(result, ax, whole=True)
    if (legend := ax.get_legend()) is not None:
        legend.remove()
    return figure


def draw_unit(result: TrajectoriesResult, recording: Any, site: str, unit: int) -> Any:
    """One unit along the paths, and how it goes with x and y. Raises ValueError for an unknown site or unit."""
    if recording is None:
        raise ValueError("to draw a unit, give the recording too")
    name = find_sites(recording, site)[0]
    values = np.asarray(recording.activations[name][:]).reshape(len(recording.episode), -1)[result.rows]
    if not 0 <= unit < values.shape[1]:
        raise ValueError(f"{name} has units 0 to {values.shape[1] - 1}, not {unit}")
    activity = values[:, unit].astype(float)
    places = result.places
    with np.errstate(invalid="ignore", divide="ignore"):
        r = [np.corrcoef(places[:, axis], activity)[0, 1] if activity.std() else np.nan for axis in (0, 1)]
    figure, ax = _figure(result)
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, places.shape) * result.tiled
    dots = ax.scatter(*(places + jitter).T, c=activity, s=8, cmap="viridis", lw=0)
    figure.colorbar(dots, ax=ax, **_BAR, label=f"{name}, unit {unit}")
    ax.set_title(f"r with x {r[0]:.3f}, with y {r[1]:.3f}", fontsize=10)
    return figure
