"""Do units fall into kinds by the shape of their maps? Clusters of autocorrelograms, and of entries exchanged."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from torchmem.analysis import style
from torchmem.analysis._tuning_fields import autocorrelate
from torchmem.analysis._tuning_groups import GROUPS
from torchmem.analysis._tuning_result import TuningResult
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["ClusterResult", "cluster_units"]

METRICS = ("si", "ev", "moran", "geary", "getis", "field_size", "peaks")  # of the second view
COMPONENTS, PERPLEXITY, SMALLEST = 50, 30, 20  # as vviggyy/dreamerv3f sets them


@dataclasses.dataclass(frozen=True)
class ClusterResult(Result):
    """units: (n,) index of those that were clustered. cluster: (n,) label, -1 where HDBSCAN calls a unit noise.
    plane: (n, 2) t-SNE. kind: (n,) index into GROUPS. silhouette: mean over clustered units in principal components;
    exchanged: the same where every entry of the autocorrelograms comes from a random unit (draws,), which keeps how
    each entry is distributed and breaks the shapes; NaN where fewer than two clusters were found.
    agreement: adjusted Rand index of clusters and kinds.
    """

    figure_size: ClassVar[tuple[float, float]] = (5.5, 4.5)

    site: str
    view: str
    units: np.ndarray
    cluster: np.ndarray
    plane: np.ndarray
    kind: np.ndarray
    silhouette: float
    exchanged: np.ndarray
    agreement: float
    settings: dict[str, Any]

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int(self.cluster.max()) + 1

    def summary(self) -> str:
        """How many clusters, how well apart, beside the control."""
        found = self.exchanged[np.isfinite(self.exchanged)]
        control = f"{found.mean():.3f}" if len(found) else f"no two clusters in {len(self.exchanged)} draws"
        return (
            f"{self.site}: {self.count} clusters of {len(self.units)} units by {self.view}, "
            f"{(self.cluster < 0).mean():.0%} in none; silhouette {style.number(self.silhouette)} "
            f"(entries exchanged between units: {control}); agreement with kinds of cells {self.agreement:.3f}"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """The plane, coloured by cluster."""
        ax = self.axes(ax)
        for c in range(-1, self.count):
            colour = "0.8" if c < 0 else style.COLOURS[c % len(style.COLOURS)]
            mine = self.cluster == c
            ax.plot(*self.plane[mine].T, ".", ms=5, color=colour, label=f"{'none' if c < 0 else c} ({mine.sum()})")
        return style.finish(ax, "t-SNE 1", "t-SNE 2", legend_columns=4)


def cluster_units(
    tuning: TuningResult, site: str, *, view: str = "autocorrelation", smallest: int = SMALLEST, draws: int = 5,
    seed: int = 0,
) -> ClusterResult:  # fmt: skip
    """Cluster the units of a site. view: "autocorrelation" of the rate maps, or "metrics" (`METRICS`).

    Entries are z-scored over units, turned to up to 50 principal components, and clustered by HDBSCAN with clusters of
    at least `smallest` units; t-SNE with perplexity 30 shows them. Dead units, and for metrics units with NaN, are left
    out. Raises ValueError for an unknown site or view, or fewer than 3 * smallest units.
    """
    if site not in tuning.maps:
        raise ValueError(f"no site {site!r}; there are {', '.join(tuning.sites)}")
    if view == "autocorrelation":
        maps = tuning.maps[site]
        units = np.flatnonzero(tuning.groups[site] != GROUPS.index("dead"))
        features = autocorrelate(maps[units]).reshape(len(units), -1)
    elif view == "metrics":
        table = np.stack([tuning.scores[site][name] for name in METRICS], 1)
        units = np.flatnonzero(np.isfinite(table).all(1))
        features = table[units]
    else:
        raise ValueError(f"view={view!r}: autocorrelation or metrics")
    if len(units) < 3 * smallest:
        raise ValueError(f"{site} has {len(units)} units to cluster, which is too few for clusters of {smallest}")
    spread = features.std(0)
    z = (features - features.mean(0))[:, spread > 1e-6] / spread[spread > 1e-6]
    rng = np.random.default_rng(seed)
    points = _components(z)
    cluster, quality = _cluster(points, smallest)
    null = []
    for _ in range(draws):
        mixed = np.take_along_axis(z, rng.permuted(np.tile(np.arange(len(z))[:, None], (1, z.shape[1])), axis=0), 0)
        null.append(_cluster(_components(mixed), smallest)[1])
    from sklearn.manifold import TSNE
    from sklearn.metrics import adjusted_rand_score

    plane = TSNE(2, perplexity=min(PERPLEXITY, len(units) // 4), random_state=seed, init="pca").fit_transform(points)
    kind = tuning.groups[site][units]
    return ClusterResult(
        site=site, view=view, units=units, cluster=cluster, plane=plane, kind=kind, silhouette=quality,
        exchanged=np.array(null), agreement=float(adjusted_rand_score(kind, cluster)),
        settings={"smallest": smallest, "draws": draws, "seed": seed},
        provenance=tuning.provenance.again(seeds={**tuning.provenance.seeds, "cluster_units": seed}),
    )  # fmt: skip


def _components(z: np.ndarray) -> np.ndarray:
    u, s, _ = np.linalg.svd(z, full_matrices=False)
    return (u * s)[:, :COMPONENTS]


def _cluster(points: np.ndarray, smallest: int) -> tuple[np.ndarray, float]:
    """(labels, silhouette of the clustered, NaN for fewer than two clusters)."""
    from sklearn.cluster import HDBSCAN
    from sklearn.metrics import silhouette_score

    label = HDBSCAN(min_cluster_size=smallest, copy=True).fit_predict(points)  # pyright: ignore[reportArgumentType]
    inside = label >= 0
    if label.max() < 1:
        return label, np.nan
    return label, float(silhouette_score(points[inside], label[inside]))
