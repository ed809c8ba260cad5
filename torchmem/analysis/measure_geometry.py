"""Is near in space near in activity? Spatial representational similarity, its fall with distance, and the manifold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.optimize import OptimizeWarning, curve_fit
from scipy.spatial.distance import cdist, pdist
from scipy.stats import rankdata

from torchmem.analysis import style
from torchmem.analysis._position_data import stage
from torchmem.analysis._probe_data import Recorded, read_probe_data
from torchmem.analysis.nulls import p_value, shift_rows
from torchmem.result import Provenance, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GeometryResult", "measure_geometry"]

LEVELS = 50  # bins of neural distance, 0 to 1
NEIGHBOURS = 150  # of Isomap; fewer where there are fewer points


@dataclasses.dataclass(frozen=True)
class GeometryResult(Result):
    """Geometry of S sites. Neural distance is 1 - cosine, spatial distance Euclidean, in units of the position.

    srsa: (S,) Spearman correlation of the two over pairs of steps; shifted: (draws, S) with positions turned in a
    circle within episodes, p (S,). distances: (J,) centres of spatial bins; curve: (S, J) median neural distance;
    histogram: (S, J, 50) share of pairs at each neural distance, given the spatial one. hill: (S, 4) start, end,
    half-distance and exponent of the fit to the curve, NaN where none was found. manifold: site -> (n, 2) by Isomap,
    manifold_pos (n, 2) the positions of these. manifold_r2: (S,) share of position that is linear in it.
    dream: (S,) median distance of a dreamed state to the nearest waking one, awake: of a waking state to the nearest of
    another episode; NaN without dreams.
    """

    figure_size: ClassVar[tuple[float, float]] = (6.5, 4.2)

    sites: tuple[str, ...]
    steps: int
    srsa: np.ndarray
    shifted: np.ndarray
    p: np.ndarray
    distances: np.ndarray
    curve: np.ndarray
    histogram: np.ndarray
    hill: np.ndarray
    manifold: dict[str, np.ndarray]
    manifold_pos: np.ndarray
    manifold_r2: np.ndarray
    dream: np.ndarray
    awake: np.ndarray
    settings: dict[str, Any]

    def summary(self) -> str:
        """Per site: sRSA beside shifted positions, where the curve is half way, the manifold, dreams beside waking."""
        header = ["site", "sRSA", "shifted", "p", "half distance", "exponent", "Isomap R²", "dream-wake", "wake-wake"]
        rows = [
            [site, *map(style.number, (self.srsa[s], self.shifted[:, s].mean(), self.p[s], self.hill[s, 2],
                                       self.hill[s, 3], self.manifold_r2[s], self.dream[s], self.awake[s]))]
            for s, site in enumerate(self.sites)
        ]  # fmt: skip
        return f"geometry of {self.steps} steps\n" + style.table(header, rows)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Median neural distance against spatial distance, with the Hill fits."""
        ax = self.axes(ax)
        for s, site in enumerate(self.sites):
            colour = style.COLOURS[s % len(style.COLOURS)]
            ax.plot(self.distances, self.curve[s], "o", ms=3, color=colour, label=f"{site} (sRSA {self.srsa[s]:.2f})")
            if np.isfinite(self.hill[s]).all():
                ax.plot(self.distances, _hill(self.distances, *self.hill[s]), lw=1, color=colour)
        return style.finish(ax, "distance in space", "median neural distance (1 - cosine)", legend_columns=2)

    def plot_manifold(self, site: str) -> Any:
        """The two Isomap dimensions, coloured by x and by y. Returns the figure."""
        from matplotlib import pyplot as plt

        figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
        for ax, values, name in zip(axes, self.manifold_pos.T, "xy"):
            dots = ax.scatter(*self.manifold[site].T, c=values, s=6, cmap="viridis")
            figure.colorbar(dots, ax=ax, label=name)
            ax.set_axis_off()
        figure.suptitle(f"{site}: Isomap", fontsize=10)
        return figure


def _hill(distance: np.ndarray, start: float, end: float, half: float, exponent: float) -> np.ndarray:
    """start + (end - start) d^n / (d^n + h^n)."""
    ratio = (distance / half) ** exponent
    return start + (end - start) * ratio / (ratio + 1)


def measure_geometry(
    recording: Recorded,
    sites: str | Sequence[str] = "*",
    target: str = "pos",
    *,
    where: str | Sequence[str] | np.ndarray | None = None,
    steps: int = 2000,
    manifold_steps: int = 1000,
    draws: int = 20,
    dreams: Mapping[str, np.ndarray] | None = None,
    seed: int = 42,
) -> GeometryResult:
    """Compare distances between states with distances between places, over `steps` random steps.

    manifold_steps: of Isomap (2 dimensions, cosine, up to 150 neighbours); 0: none. dreams: site -> (n, ...) imagined
    states, whose distance to waking ones is measured (pRNN's sleep-wake distance). Steps without activity are left out.
    Raises ValueError for unknown names, a position that is not (x, y, ...), dreams of another width.
    """
    data = read_probe_data(recording, sites, target, kind="ridge", where=where)
    names = tuple(sorted(data.sites, key=stage))
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(data.rows))[:steps])
    pos = data.y[chosen]
    far = pdist(pos)
    width = max(1.0, float(far.max()) / 60)
    which = (far / width).astype(np.int64)
    bins = int(which.max()) + 1
    turned = [data.y[shift_rows(data.episode, rng)][chosen] for _ in range(draws)]
    place_ranks, null_ranks = _ranks(far), [_ranks(pdist(each)) for each in turned]
    few = chosen[:: max(1, len(chosen) // max(manifold_steps, 1))]
    rows: dict[str, list[Any]] = {k: [] for k in ("srsa", "null", "curve", "histogram", "hill", "r2", "dream", "awake")}
    manifold = {}
    distances = (np.arange(bins) + 0.5) * width
    for name in names:
        states = _unit(data.matrix(name))
        near = 1 - np.clip(1 - pdist(states[chosen], "sqeuclidean") / 2, -1, 1)
        ranks = _ranks(near)
        rows["srsa"].append(ranks @ place_ranks)
        rows["null"].append([ranks @ other for other in null_ranks])
        order = np.argsort(which, kind="stable")
        groups = np.split(near[order], np.cumsum(np.bincount(which, minlength=bins))[:-1])
        curve = np.array([np.median(g) if len(g) else np.nan for g in groups])
        rows["curve"].append(curve)
        counts = np.array([np.histogram(g, LEVELS, (0, 1))[0] for g in groups], float)
        rows["histogram"].append(counts / np.maximum(counts.sum(1, keepdims=True), 1))
        rows["hill"].append(_fit_hill(distances, curve, np.bincount(which, minlength=bins)))
        if manifold_steps:
            manifold[name] = _isomap(states[few])
            rows["r2"].append(_linear(manifold[name], data.y[few]))
        else:
            rows["r2"].append(np.nan)
        dream, awake = np.nan, np.nan
        if dreams and name in dreams:
            dream, awake = _sleep(states[chosen], data.episode[chosen], np.asarray(dreams[name]), name)
        rows["dream"].append(dream)
        rows["awake"].append(awake)
    null = np.array(rows["null"]).reshape(len(names), draws).T
    srsa = np.array(rows["srsa"])
    own = getattr(recording, "provenance", None) or Provenance.here()
    return GeometryResult(
        sites=names, steps=len(chosen), srsa=srsa, shifted=null, p=p_value(srsa, null), distances=distances,
        curve=np.array(rows["curve"]), histogram=np.array(rows["histogram"]), hill=np.array(rows["hill"]),
        manifold=manifold, manifold_pos=data.y[few], manifold_r2=np.array(rows["r2"]), dream=np.array(rows["dream"]),
        awake=np.array(rows["awake"]), settings={"target": target, "draws": draws, "seed": seed},
        provenance=own.again(seeds={**own.seeds, "measure_geometry": seed}),
    )  # fmt: skip


def _unit(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norm > 0, norm, 1)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, centred and of length 1: their dot product is Spearman's correlation."""
    ranks = rankdata(values)
    ranks -= ranks.mean()
    return ranks / np.linalg.norm(ranks)


def _fit_hill(distance: np.ndarray, curve: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Start and end within 0 to 1, exponent within 0.1 to 10; bins with few pairs weigh less."""
    import warnings

    known = np.isfinite(curve) & (pairs >= 10)
    bounds = ([0, 0, 1e-3, 0.1], [1, 1, 10 * float(distance.max()), 10])
    start = [np.clip(np.nanmin(curve), 0, 1), np.clip(np.nanmax(curve), 0, 1), float(np.median(distance)), 1.0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            found = curve_fit(_hill, distance[known], curve[known], start, pairs[known] ** -0.5, bounds=bounds)[0]
    except (RuntimeError, ValueError, TypeError):  # no fit: too few bins, or no minimum within the bounds
        return np.full(4, np.nan)
    return np.asarray(found)


def _isomap(states: np.ndarray) -> np.ndarray:
    from sklearn.manifold import Isomap

    neighbours = min(NEIGHBOURS, max(2, len(states) // 4))
    return Isomap(n_neighbors=neighbours, n_components=2, metric="cosine").fit_transform(states)


def _linear(points: np.ndarray, pos: np.ndarray) -> float:
    """Share of the variance of pos that is linear in points."""
    design = np.concatenate([points, np.ones((len(points), 1))], 1)
    rest = pos - design @ np.linalg.lstsq(design, pos, rcond=None)[0]
    return float(1 - (rest**2).sum() / ((pos - pos.mean(0)) ** 2).sum())


def _sleep(wake: np.ndarray, episode: np.ndarray, dreamed: np.ndarray, name: str) -> tuple[float, float]:
    """Median distance to the nearest waking state: of dreams, and of waking states to those of other episodes."""
    flat = dreamed.reshape(-1, wake.shape[1]) if dreamed.size % wake.shape[1] == 0 else None
    if flat is None or dreamed[0].size % wake.shape[1]:
        raise ValueError(f"dreams[{name!r}] has shape {dreamed.shape}; its states must have {wake.shape[1]} units")
    dream = cdist(_unit(flat), wake, "cosine").min(1)
    among = cdist(wake, wake, "cosine")
    among[episode[:, None] == episode] = np.inf
    nearest = among.min(1)
    return float(np.median(dream)), float(np.median(nearest[np.isfinite(nearest)]))
