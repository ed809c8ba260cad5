"""Into which behaviours does the play of an agent fall, real or simulated? Clusters of what agent and world hold.

Spec simulator.md 5.8 and R11. Clusters are found in principal components, never in a t-SNE. There are some where their
silhouette is above that of mixtures of episodes, and they are stable where other episodes would give the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchmem.analysis._behaviours_features import Features, read_features
from torchmem.analysis._behaviours_fit import fit, nearest, stability
from torchmem.analysis._behaviours_result import BehavioursResult
from torchmem.analysis._display import display_map
from torchmem.analysis._probe_data import Recorded, find_sites, lookup
from torchmem.analysis.nulls import resample_groups
from torchmem.provenance import Provenance

__all__ = ["BehavioursResult", "cluster_behaviours"]

PROFILED = ("reward", "reward_after", "value", "done", "is_terminal")
DRAWS = 500  # of episodes, for the bounds of a profile


def cluster_behaviours(
    recordings: Recorded | Sequence[Recorded],
    sites: Sequence[str] | None = None,
    *,
    lags: Sequence[int] = (2, 4, 6),
    skip: int = 0,
    count: int | None = None,
    most: int = 12,
    components: int = 64,
    draws: int = 20,
    profile: Sequence[str] = (),
    exemplars: int = 4,
    steps: int = 10_000,
    sample: int = 2000,
    display: str = "none",
    seed: int = 0,
) -> BehavioursResult:
    """Cluster every step whose window (up to the largest lag) lies in its episode.

    recordings: of one agent, played or simulated. sites: default memory, and world where all have it. skip: first steps
    of every episode to leave out, where a memory that fills up would be the only cluster. count: of
    clusters; None takes, of 2..most, the number whose silhouette exceeds that of mixtures of episodes the most.
    components: principal components at most, and 95 % of the variance. draws: of mixtures, of blocks exchanged, of
    episodes drawn again; below 19 no p can reach 5 %. profile: covariates told by cluster beside actions, reward, value
    and end. exemplars: of each cluster. steps: fitted at most, in whole episodes. display: tsne or umap, a map of
    `sample` steps that nothing is computed from.

    Raises ValueError for unknown sites or covariates, NaN, fewer than 8 episodes or too few steps.
    """
    several: list[Any] = list(recordings) if isinstance(recordings, Sequence) else [recordings]
    if not several:
        raise ValueError("give at least one recording")
    lags = tuple(sorted(set(lags)))
    if any(lag < 1 for lag in lags):
        raise ValueError(f"lags must be steps from 1 on, got {lags}")
    if skip < 0:
        raise ValueError(f"skip={skip}: 0 or more steps")
    if sites is None:
        sites = ["memory", *(["world"] if all("world" in rec.activations for rec in several) else [])]
    names = find_sites(several[0], list(sites))
    features = read_features(several, names, lags, skip)
    episodes = len(np.unique(features.episode))
    counts = np.arange(2, most + 1) if count is None else np.array([count])
    if counts.size == 0 or counts[0] < 2:
        raise ValueError(f"count={count}, most={most}: behaviours are 2 or more")
    if episodes < 8 or len(features.row) < 10 * counts[-1]:
        raise ValueError(
            f"{len(features.row)} steps of {episodes} episodes are too few for {counts[-1]} behaviours: give at least "
            f"8 episodes of more than {max(lags, default=0)} steps"
        )
    rng = np.random.default_rng(seed)
    found, rows = fit(features, counts.tolist(), components, draws, steps, rng)
    agree, chance, members = stability(features, found, rows, components, draws, rng)
    points = found.space.scores(features.x)
    own = nearest(points, found.centres)
    away = np.linalg.norm(points - found.centres[own], axis=1)
    where = {name: np.concatenate(parts) for name, parts in _places(several).items()}
    label = np.full(len(where["episode"]), -1, np.int16)
    distance = np.full(len(label), np.nan, np.float32)
    label[features.row], distance[features.row] = own, away
    told = _quantities(several, profile, where["step"])
    told = {name: values[features.row] for name, values in told.items()}
    value, low, high, everywhere = _profile(told, own, features.episode, len(found.centres), rng)
    shown = np.sort(rng.choice(len(own), min(sample, len(own)), replace=False))
    home = getattr(several[0], "provenance", None) or Provenance.here()
    sources = [rec.provenance for rec in several if getattr(rec, "provenance", None)]
    caveats = tuple(dict.fromkeys(one for source in sources for one in source.caveats))
    paths = tuple(str(getattr(rec, "path", f"recording {i}")) for i, rec in enumerate(several))
    return BehavioursResult(
        recordings=paths, sites=names, lags=lags, label=label, **where, distance=distance, counts=counts,
        silhouette=found.silhouette, mixed=found.mixed, exchanged=found.exchanged, p=found.p, stability=agree,
        by_chance=chance, members=members, quantities=("share of steps", *told), value=value, low=low, high=high,
        everywhere=everywhere, exemplars=_exemplars(features, own, away, where, len(found.centres), exemplars),
        shown=features.row[shown], points=points[shown, :2] if points.shape[1] > 1 else points[shown][:, [0, 0]],
        map=display_map(points[shown], display, seed),
        settings={"count": count, "skip": skip, "most": most, "components": components, "draws": draws, "steps": steps,
                  "seed": seed, "display": display, "kept_components": len(found.space.axes),
                  "fitted_steps": len(rows)},
        provenance=home.again(seeds={**home.seeds, "cluster_behaviours": seed}, caveats=caveats,
                              parents=paths if all(hasattr(rec, "path") for rec in several) else ()),
    )  # fmt: skip


def _places(recordings: Sequence[Recorded]) -> dict[str, list[np.ndarray]]:
    out: dict[str, list[np.ndarray]] = {"recording": [], "episode": [], "step": []}
    for number, rec in enumerate(recordings):
        episode = np.asarray(rec.episode)
        opens = np.concatenate([[True], episode[1:] != episode[:-1]])
        begin = np.maximum.accumulate(np.where(opens, np.arange(len(episode)), 0))
        out["recording"].append(np.full(len(episode), number, np.int16))
        out["episode"].append(episode.astype(np.int64))
        out["step"].append(np.arange(len(episode)) - begin)
    return out


def _quantities(recordings: Sequence[Any], profile: Sequence[str], step: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> (N,) of everything a profile tells."""

    def column(name: str) -> np.ndarray:
        return np.concatenate([lookup(rec.covariates, name, "covariate") for rec in recordings])

    shared = [name for name in recordings[0].covariates if all(name in rec.covariates for rec in recordings)]
    out: dict[str, np.ndarray] = {"step of the episode": step.astype(np.float64)}
    for name in dict.fromkeys([*(n for n in PROFILED if n in shared), *profile]):
        values = column(name)
        if values.ndim != 1:
            raise ValueError(f"{name} has shape {values.shape[1:]} per step; a profile tells single numbers")
        out[name] = values.astype(np.float64)
    for name in (n for n in shared if f"logits.{n}" in shared or f"mean.{n}" in shared or n == "action"):
        values = column(name).reshape(len(step), -1)
        if values.dtype.kind in "iub" and values.shape[1] == 1:
            out |= {f"{name} {a}": (values[:, 0] == a).astype(np.float64) for a in np.unique(values)}
        else:
            out |= {f"{name} {i}": values[:, i].astype(np.float64) for i in range(values.shape[1])}
    return out


def _profile(
    told: Mapping[str, np.ndarray], label: np.ndarray, episode: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Means by cluster (K, 1 + Q) with bounds, the share of steps first; and over all steps (1 + Q,)."""
    number = np.unique(episode, return_inverse=True)[1]
    size = int(number.max()) + 1
    weight = resample_groups(size, DRAWS, rng).astype(np.float64)

    def sums(values: np.ndarray) -> np.ndarray:
        out = np.zeros((size, count))
        np.add.at(out, (number, label), values)
        return out

    steps = sums(np.ones(len(label)))
    pairs = [(steps, np.repeat(steps.sum(1, keepdims=True), count, 1))]
    pairs += [(sums(values), steps) for values in told.values()]
    value, low, high = (np.full((count, len(pairs)), np.nan) for _ in range(3))
    for q, (above, below) in enumerate(pairs):
        value[:, q] = above.sum(0) / below.sum(0)
        under = weight @ below
        again = np.where(under > 0, weight @ above, np.nan) / np.where(under > 0, under, 1)
        low[:, q], high[:, q] = np.nanquantile(again, [0.025, 0.975], axis=0)
    everywhere = np.array([1 / count, *(float(v.mean()) for v in told.values())])
    return value, low, high, everywhere


def _exemplars(
    features: Features, label: np.ndarray, away: np.ndarray, where: Mapping[str, np.ndarray], count: int, wanted: int
) -> np.ndarray:
    """(K, M, 3): of each cluster the steps nearest to its centre, one per episode."""
    out = np.full((count, wanted, 3), -1)
    for k in range(count):
        mine = np.flatnonzero(label == k)
        mine = mine[np.argsort(away[mine], kind="stable")]
        first = np.sort(np.unique(features.episode[mine], return_index=True)[1])[:wanted]
        rows = features.row[mine[first]]
        out[k, : len(rows)] = np.stack([where[name][rows] for name in ("recording", "episode", "step")], 1)
    return out
