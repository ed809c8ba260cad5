"""Along which directions does a memory move? PCA, ICA or NMF of any recorded site, with a test of how firm they are.

Spec of interpreting-rl-behavior, sections 5.1, 5.2 and R8: one centre and scale for fitting and projecting, signs and
order fixed, stability from episodes drawn again, exact gradients along directions (`DirectionsResult.push`).
"""

from __future__ import annotations

import numpy as np

from torchmem.analysis._directions_fit import METHODS, Basis, crowded, fit_basis, matched
from torchmem.analysis._directions_result import DirectionsResult
from torchmem.analysis._display import MAPS, display_map
from torchmem.analysis._probe_data import Recorded, find_sites, where_mask
from torchmem.analysis.nulls import spans
from torchmem.provenance import Provenance

__all__ = ["DirectionsResult", "find_directions"]


def find_directions(
    recording: Recorded,
    site: str = "memory",
    *,
    method: str = "pca",
    count: int = 16,
    where: str | list[str] | np.ndarray | None = None,
    steps: int = 50_000,
    draws: int = 10,
    outliers: bool = False,
    sample: int = 2000,
    display: str = "none",
    seed: int = 0,
) -> DirectionsResult:
    """K = count directions of one site of a recording (at most as many as it has numbers).

    method: pca, ica or nmf. where: conditions on covariates, as for `fit_probe`. steps: at most so many are fitted,
    drawn at random. draws: refits on episodes drawn again with replacement, for stability. outliers: leave lonely
    states out of the fit (the original's rule). sample: steps kept for scatter plots. display: also a map in two
    dimensions, tsne or umap, which nothing is computed from.

    Raises ValueError for an unknown site, method or count, for NaN, for a map that is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    if display not in MAPS:
        raise ValueError(f"display must be one of {', '.join(MAPS)}; got {display!r}")
    names = find_sites(recording, site)
    if len(names) != 1:
        raise ValueError(f"{site!r} matches {len(names)} sites ({', '.join(names)}): name one")
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(where_mask(recording, where))
    if len(rows) > steps:
        rows = np.sort(rng.choice(rows, steps, replace=False))
    if len(rows) < 2 * count:
        raise ValueError(f"{len(rows)} steps are too few for {count} directions: record more, or loosen where")
    column = recording.activations[names[0]]
    whole = len(rows) == len(recording.episode)
    x = np.asarray(column[:] if whole else column[rows], np.float64).reshape(len(rows), -1)
    if not 1 <= count <= x.shape[1]:
        raise ValueError(f"count={count}: {names[0]} has {x.shape[1]} numbers, so ask for 1 to {x.shape[1]} directions")
    if not np.isfinite(x).all():
        raise ValueError(f"{names[0]} holds NaN or infinity in the chosen steps: leave those out with where")
    episode, kept = np.asarray(recording.episode)[rows], np.ones(len(rows), bool)
    if outliers:
        deviation = x.std(0)
        kept = crowded((x - x.mean(0)) / np.where(deviation > 0, deviation, 1))
    basis = fit_basis(x[kept], method, count, seed)
    y = basis.scores(x)
    z = (x - x.mean(0)) / basis.scale
    shape = (basis.decode / basis.scale) ** 2
    power = float((z**2).sum(1).mean())
    rest = (x - basis.centre - y @ basis.decode) / basis.scale
    stability, chance = _stability(x[kept], episode[kept], basis, method, draws, rng)
    shown = np.sort(rng.choice(len(rows), min(sample, len(rows)), replace=False))
    own = getattr(recording, "provenance", None) or Provenance.here()
    return DirectionsResult(
        site=names[0], method=method, centre=basis.centre, scale=basis.scale, encode=basis.encode,
        decode=basis.decode, share=y.var(0) * shape.sum(1) / power,
        total=float(1 - (rest - rest.mean(0)).var(0).sum() / power), stability=stability, by_chance=chance,
        spread=y.std(0), low=np.quantile(y, 0.01, axis=0), high=np.quantile(y, 0.99, axis=0), sample=y[shown],
        sample_rows=rows[shown], map=display_map(y[shown] / y.std(0), display, seed), rows=len(rows),
        episodes=len(np.unique(episode)), kept=float(kept.mean()), converged=basis.converged,
        settings={"count": count, "where": "custom" if isinstance(where, np.ndarray) else where, "steps": steps,
                  "draws": draws, "outliers": outliers, "display": display, "seed": seed},
        provenance=own.again(seeds={**own.seeds, "find_directions": seed}),
    )  # fmt: skip


def _stability(
    x: np.ndarray, episode: np.ndarray, basis: Basis, method: str, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(draws, K) each: refits on episodes drawn again, and random directions of the same space, against the fit.

    A refit that is impossible (too few episodes were drawn to span K dimensions) counts as no agreement, 0.
    """
    pieces = spans(episode)
    y = basis.scores(x)
    white = (y - y.mean(0)) / y.std(0)
    count = y.shape[1]
    found, chance = np.zeros((draws, count)), np.zeros((draws, count))
    for draw in range(draws):
        again = np.concatenate([pieces[i] for i in rng.integers(0, len(pieces), len(pieces))])
        turn = np.linalg.qr(rng.normal(size=(count, count)))[0]
        chance[draw] = matched(white, white @ turn)
        try:
            found[draw] = matched(y, fit_basis(x[again], method, count, int(rng.integers(2**31))).scores(x))
        except ValueError:
            continue
    return found, chance
