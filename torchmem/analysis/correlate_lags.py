"""What along one direction comes before what along another? Lagged correlation and regression, with honest nulls.

Spec simulator.md 5.9 and R10: centred, scaled by the pairs that are really there, per group by its own members. A
correlation is tested against episodes exchanged (what all episodes share at the same step stays in the null), a
coefficient of the regression on all directions together against episodes drawn again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.stats import norm

from torchmem.analysis import style
from torchmem.analysis._directions_result import DirectionsResult
from torchmem.analysis._lag_pairs import Moments, pairs_at
from torchmem.analysis._probe_data import Recorded, lookup, where_mask
from torchmem.analysis.nulls import exchange_rows, false_discoveries, resample_groups, spans
from torchmem.provenance import Provenance
from torchmem.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LagsResult", "correlate_lags"]


@dataclasses.dataclass(frozen=True)
class LagsResult(Result):
    """K signals; arrays (L, K, K) by lag: row the earlier signal, column the later one.

    correlation: Pearson's; exchanged (draws, L, K, K) the same with the later side of another episode; p, two-sided, by
    the normal distribution with mean and deviation of `exchanged`. regression: coefficient of each earlier signal, all
    together (a VAR at lag 1), with 95 % bounds low, high and p from episodes drawn again. unlinked
    (draws, L, K, K): the same where each later signal keeps its own past alone (what this leaves of it is exchanged
    between episodes): what unlike signals would show without any link. pairs (L,) of steps.
    """

    figure_size: ClassVar[tuple[float, float]] = (5.5, 4.6)

    site: str
    names: tuple[str, ...]
    lags: tuple[int, ...]
    pairs: np.ndarray
    episodes: int
    correlation: np.ndarray
    exchanged: np.ndarray
    p: np.ndarray
    regression: np.ndarray
    unlinked: np.ndarray
    low: np.ndarray
    high: np.ndarray
    regression_p: np.ndarray
    settings: dict[str, Any]

    def edges(self, rate: float = 0.05, what: str = "regression") -> np.ndarray:
        """(L, K, K) bool: what stands at this rate of false discoveries, of all pairs of unlike signals at lags > 0."""
        p = (self.regression_p if what == "regression" else self.p).copy()
        p[:, np.eye(len(self.names), dtype=bool)] = np.nan
        p[np.array(self.lags) == 0] = np.nan
        asked = np.isfinite(p)
        out = np.zeros(p.shape, bool)
        out[asked] = false_discoveries(p[asked], rate)
        return out

    def summary(self) -> str:
        found, both = self.edges(), self.edges(what="correlation")
        rows = []
        off = ~np.eye(len(self.names), dtype=bool)
        for place, lag in enumerate(self.lags):
            chance = np.abs(self.exchanged[:, place][:, off]).mean() if len(self.exchanged) and off.any() else np.nan
            size = np.abs(self.correlation[place][off]).mean() if off.any() else np.nan
            own = np.diagonal(self.correlation[place]).mean()
            rows.append([str(lag), str(int(self.pairs[place])), style.number(own), style.number(size),
                         style.number(chance), f"{both[place].sum()}", f"{found[place].sum()}"])  # fmt: skip
        header = ["lag", "pairs", "own r", "|r| of others", "(exchanged)", "edges by r", "by regression"]
        return (
            f"{len(self.names)} signals of {self.site} over {self.episodes} episodes; edges at 5% false discoveries:\n"
            + style.table(header, rows)
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Correlation at lag 1 (or the first), a dot on what stands by regression."""
        ax = self.axes(ax)
        place = self.lags.index(1) if 1 in self.lags else 0
        limit = max(float(np.abs(self.correlation[place]).max()), 1e-9)
        shown = ax.imshow(self.correlation[place], cmap="RdBu_r", vmin=-limit, vmax=limit)
        rows, columns = np.nonzero(self.edges()[place])
        ax.plot(columns, rows, "k.", ms=4)
        ax.figure.colorbar(shown, ax=ax, label=f"correlation at lag {self.lags[place]}")
        ticks = range(0, len(self.names), max(1, len(self.names) // 8))
        ax.set_xticks(list(ticks), [self.names[i] for i in ticks], rotation=45, ha="right", fontsize=7)
        ax.set_yticks(list(ticks), [self.names[i] for i in ticks], fontsize=7)
        ax.set_xlabel("later (dot: stands by regression)")
        ax.set_ylabel("earlier")
        return ax


def correlate_lags(
    recording: Recorded,
    directions: DirectionsResult | str = "memory",
    *,
    lags: tuple[int, ...] | int = 5,
    where: str | list[str] | np.ndarray | None = None,
    draws: int = 100,
    seed: int = 0,
) -> LagsResult:
    """Lagged correlation and regression of the scores along directions, or of the numbers of a site or covariate.

    lags: these, or 0..lags. where: a pair counts where its earlier step is chosen; a cluster is its boolean mask.
    draws: of exchanged episodes, and of episodes drawn again.

    Raises ValueError where nothing is chosen, the episodes are shorter than a lag or too few, or values are NaN.
    """
    lags = tuple(range(lags + 1)) if isinstance(lags, int) else tuple(lags)
    if not lags or min(lags) < 0:
        raise ValueError(f"lags must be steps from 0 on, got {lags}")
    if isinstance(directions, str):
        site = directions
        column = recording.activations.get(site)
        values = lookup(recording.covariates, site, "site or covariate") if column is None else np.asarray(column[:])
        y = values.reshape(len(values), -1).astype(np.float64)
        names = tuple(f"{site} {i}" for i in range(y.shape[1]))
    else:
        site = directions.site
        y = directions.scores(lookup(recording.activations, site, "site").reshape(len(recording.episode), -1))
        names = tuple(f"{directions.method} {i}" for i in range(y.shape[1]))
    episode, chosen = np.asarray(recording.episode), where_mask(recording, where)
    if not np.isfinite(y).all():
        raise ValueError(f"{site} holds NaN or infinity: record without it")
    episodes = len(spans(episode))
    if episodes < 4:
        raise ValueError(f"{episodes} episodes are too few to exchange: record at least 4")
    rng = np.random.default_rng(seed)
    weight = resample_groups(episodes, draws, rng)
    donors = [y[exchange_rows(episode, rng)] for _ in range(draws)]
    count, size = y.shape[1], len(lags)
    out = {name: np.zeros((size, count, count)) for name in ("r", "p", "beta", "low", "high", "beta_p")}
    exchanged, unlinked = (np.zeros((draws, size, count, count), np.float32) for _ in range(2))
    pairs = np.zeros(size, np.int64)
    for place, lag in enumerate(lags):
        earlier, later, number = pairs_at(episode, chosen, lag)
        if len(earlier) < 2 * count + 2:
            raise ValueError(f"only {len(earlier)} pairs of steps at lag {lag}: record longer episodes or loosen where")
        sums = Moments.of(y[earlier], y[later], number, episodes)
        whole = sums.drawn(np.ones((1, episodes)))
        pairs[place] = len(earlier)
        out["r"][place], out["beta"][place] = whole.correlation()[0], whole.regression()[0]
        if not draws:
            continue
        alone = _own_past(y[earlier], y[later])
        rest, none = y[later] - alone, np.zeros(len(earlier), np.int64)
        for draw, other in enumerate(donors):
            exchanged[draw, place] = Moments.of(y[earlier], other[later], none, 1).correlation()[0]
            apart = alone + rest[exchange_rows(number, rng)]
            unlinked[draw, place] = Moments.of(y[earlier], apart, none, 1).regression()[0]
        out["p"][place] = _two_sided(out["r"][place] - exchanged[:, place].mean(0), exchanged[:, place].std(0))
        usable = sums.drawn(weight[(weight @ sums.n) > 2 * count + 2])
        again = usable.regression()
        out["low"][place], out["high"][place] = np.quantile(again, [0.025, 0.975], axis=0)
        out["beta_p"][place] = _two_sided(out["beta"][place], again.std(0))
    own = getattr(recording, "provenance", None) or Provenance.here()
    return LagsResult(
        site=site, names=names, lags=lags, pairs=pairs, episodes=episodes, correlation=out["r"], exchanged=exchanged,
        p=out["p"], regression=out["beta"], unlinked=unlinked, low=out["low"],
        high=out["high"], regression_p=out["beta_p"],
        settings={"draws": draws, "seed": seed, "where": "custom" if isinstance(where, np.ndarray) else where},
        provenance=own.again(seeds={**own.seeds, "correlate_lags": seed}),
    )  # fmt: skip


def _own_past(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What each later signal (pairs, K) owes to itself earlier, by least squares."""
    centred = a - a.mean(0)
    size = (centred**2).sum(0)
    return b.mean(0) + centred * ((centred * b).sum(0) / np.where(size > 1e-300, size, np.inf))


def _two_sided(value: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    return 2 * norm.sf(np.abs(value) / np.where(deviation > 1e-300, deviation, np.inf))
