"""Do units keep their maps from world to world? Rate maps compared across worlds, and within each as a ceiling."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.analysis._probe_data import lookup
from torchmem.analysis._tuning_data import read_tuning_data
from torchmem.analysis._tuning_maps import mean_maps
from torchmem.analysis.nulls import p_value, spans
from torchmem.result import Provenance, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RemapResult", "remap_units"]


@dataclasses.dataclass(frozen=True)
class RemapResult(Result):
    """Similarity of maps, Pearson over tiles visited in both, each site -> (U,). NaN for units that are constant there.

    across: mean over pairs of worlds. within: mean over worlds, of its odd against its even episodes. null: (draws, U)
    of `across` with the unit's map in one world compared with another unit's in the other. worlds: their ids.
    tiles: (pairs,) tiles compared.
    """

    figure_size: ClassVar[tuple[float, float]] = (6.5, 4.0)

    sites: tuple[str, ...]
    worlds: tuple[str, ...]
    tiles: np.ndarray
    across: dict[str, np.ndarray]
    within: dict[str, np.ndarray]
    exchanged: dict[str, np.ndarray]  # mean over draws
    p: dict[str, float]  # of the mean of `across` against the exchanged units
    settings: dict[str, Any]

    def summary(self) -> str:
        """Per site the mean similarity across worlds, between its ceiling and units exchanged."""
        rows = []
        for site in self.sites:
            means = [_mean(group[site]) for group in (self.within, self.across, self.exchanged)]
            rows.append([site, str(len(self.across[site])), *map(style.number, means), f"{self.p[site]:.3f}"])
        header = ["site", "units", "within a world", "across", "units exchanged", "p"]
        title = f"similarity of rate maps over {len(self.worlds)} worlds ({int(self.tiles.mean())} tiles in common)"
        return title + "\n" + style.table(header, rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Sites as dots: across worlds, within a world, units exchanged."""
        ax = self.axes(ax)
        y = np.arange(len(self.sites))[::-1]
        looks = (("o", style.COLOURS[0], "across worlds"), ("^", style.COLOURS[2], "within a world"),
                 ("s", style.CONTROL_COLOUR, "units exchanged"))  # fmt: skip
        for group, (marker, colour, label) in zip((self.across, self.within, self.exchanged), looks):
            ax.plot([_mean(group[site]) for site in self.sites], y, marker, color=colour, label=label, mfc="none")
        ax.set_yticks(y, self.sites)
        return style.finish(ax, "correlation of rate maps, mean over units", "")


def remap_units(
    recording: Any,
    sites: str | Sequence[str] = "*",
    target: str = "pos",
    *,
    worlds: str = "world",
    where: str | Sequence[str] | np.ndarray | None = None,
    cell: float = 1.0,
    min_tiles: int = 10,
    draws: int = 100,
    seed: int = 0,
) -> RemapResult:
    """Compare the maps of each unit between the worlds that the covariate `worlds` names.

    A pair of worlds counts where at least min_tiles tiles were visited in both, within a world likewise between its odd
    and even episodes. Units that keep their map have `across` near `within`; after complete remapping `across` is what
    units exchanged show. Raises ValueError for fewer than two worlds, or too few tiles in common.
    """
    data = read_tuning_data(recording, sites, target, None, where, None, cell, None)
    world = lookup(recording.covariates, worlds, "covariate")[data.keep]
    if world.ndim != 1:
        raise ValueError(f"worlds: {worlds} has shape {world.shape[1:]} per step; it must be one id")
    names, index = np.unique(world, return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{worlds} is {names.tolist()} throughout: remapping needs two worlds")
    for rows in spans(data.episode):
        if (index[rows] != index[rows[0]]).any():
            raise ValueError(f"{worlds} changes within an episode")
    half = np.empty(len(index), np.int64)
    seen: dict[int, int] = {}
    for rows in spans(data.episode):
        k = int(index[rows[0]])
        seen[k] = seen.get(k, -1) + 1
        half[rows] = seen[k] % 2
    count = len(data.grid.cells)
    rng = np.random.default_rng(seed)
    across, within, exchanged, p = {}, {}, {}, {}
    tiles: list[int] = []
    for site in data.sites:
        activity = np.asarray(data.activity(site).values)
        maps = [mean_maps(activity[index == k], data.grid.y[index == k], count) for k in range(len(names))]
        pairs = [(a, b) for a, b in itertools.combinations(maps, 2) if _common(a, b).sum() >= min_tiles]
        if not pairs:
            raise ValueError(f"no two worlds share {min_tiles} visited tiles: lower min_tiles or record longer")
        tiles = [int(_common(a, b).sum()) for a, b in pairs]
        across[site] = _average([_similar(a, b) for a, b in pairs])
        split = []
        for k in range(len(names)):
            parts = [(index == k) & (half == h) for h in (0, 1)]
            if all(part.any() for part in parts):
                a, b = (mean_maps(activity[part], data.grid.y[part], count) for part in parts)
                split += [_similar(a, b)] if _common(a, b).sum() >= min_tiles else []
        within[site] = _average(split) if split else np.full(activity.shape[1], np.nan)
        null = np.stack([
            _average([_similar(a, b[:, order]) for a, b in pairs])
            for order in (_derange(activity.shape[1], rng) for _ in range(draws))
        ])  # fmt: skip
        exchanged[site] = _average(list(null))
        p[site] = float(p_value(np.array(_mean(across[site])), np.array([_mean(row) for row in null])))
    own = getattr(recording, "provenance", None) or Provenance.here()
    return RemapResult(
        sites=data.sites, worlds=tuple(map(str, names)), tiles=np.array(tiles), across=across, within=within,
        exchanged=exchanged, p=p, settings={"worlds": worlds, "min_tiles": min_tiles, "draws": draws, "seed": seed},
        provenance=own.again(seeds={**own.seeds, "remap_units": seed}),
    )  # fmt: skip


def _common(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(tiles,) visited in both."""
    return np.isfinite(a[:, 0]) & np.isfinite(b[:, 0])


def _similar(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(U,) Pearson over tiles visited in both. a, b: (tiles, U)."""
    both = _common(a, b)
    x, y = (m[both] - m[both].mean(0) for m in (a, b))
    scale = np.sqrt((x**2).sum(0) * (y**2).sum(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 1e-12, (x * y).sum(0) / scale, np.nan)


def _derange(count: int, rng: np.random.Generator) -> np.ndarray:
    """Each unit gets another: all are turned by one step of a random order."""
    order = rng.permutation(count)
    out = np.empty(count, np.int64)
    out[order] = np.roll(order, 1)
    return out


def _average(values: list[np.ndarray]) -> np.ndarray:
    stacked = np.stack(values)
    finite = np.isfinite(stacked)
    return np.where(finite.any(0), np.where(finite, stacked, 0).sum(0) / np.maximum(finite.sum(0), 1), np.nan)


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else np.nan
