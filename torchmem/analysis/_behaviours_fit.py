"""k-means in principal components: how many clusters, whether there are any, and whether others would find the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from torchmem.analysis._behaviours_features import Features, Space, exchanged, mixed
from torchmem.analysis.nulls import p_value, spans

TRIED, STARTS = 4000, 3  # points that one k-means sees at most, and how often it starts
JUDGED = 1000  # points of a silhouette


@dataclasses.dataclass(frozen=True)
class Fit:
    """space and centres (K, P) of the chosen number; silhouette (C,) by number; mixed, exchanged (draws, C);
    p of the largest excess of silhouettes over those of mixtures."""

    space: Space
    centres: np.ndarray
    silhouette: np.ndarray
    mixed: np.ndarray
    exchanged: np.ndarray
    p: float


def fit(
    features: Features, counts: Sequence[int], components: int, draws: int, steps: int, rng: np.random.Generator
) -> tuple[Fit, np.ndarray]:
    """The fit, and the rows of the features it was made on: whole episodes, at most about `steps` rows."""
    rows = whole_episodes(features.episode, steps, rng)
    x, episode = features.x[rows].astype(np.float64), features.episode[rows]
    space = Space.of(x, components, 0.95)
    points = space.scores(x)
    found = [scan(points, counts, rng)]
    nulls: dict[str, list[np.ndarray]] = {"mixed": [], "exchanged": []}
    for _ in range(draws):
        nulls["mixed"].append(scan(mixed(points, episode, rng), counts, rng)[0])
        other = exchanged(x, features.blocks, episode, rng)
        nulls["exchanged"].append(scan(Space.of(other, components, 0.95).scores(other), counts, rng)[0])
    silhouette, centres = found[0]
    null = np.array(nulls["mixed"]).reshape(draws, len(counts))
    # of the truth and its mixtures alike, so that without clusters the truth is one of them
    typical = np.concatenate([silhouette[None], null]).mean(0)
    best = int((silhouette - typical).argmax())
    p = float(p_value(np.array((silhouette - typical).max()), (null - typical).max(1))) if draws else np.nan
    apart = np.array(nulls["exchanged"]).reshape(draws, len(counts))
    return Fit(space, centres[best], silhouette, null, apart, p), rows


def whole_episodes(episode: np.ndarray, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of episodes drawn at random, in order, until there are `steps`."""
    pieces = spans(episode)
    order = rng.permutation(len(pieces))
    enough = int(np.searchsorted(np.cumsum([len(pieces[i]) for i in order]), steps)) + 1
    return np.concatenate([pieces[i] for i in sorted(order[:enough])])


def scan(points: np.ndarray, counts: Sequence[int], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Silhouette (C,) and centres of each number of clusters."""
    judged = rng.choice(len(points), min(JUDGED, len(points)), replace=False)
    out, kept = [], []
    for count in counts:
        centres = means(points, count, rng)
        kept.append(centres)
        out.append(silhouette(points[judged], nearest(points[judged], centres)))
    return np.array(out), kept


def means(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, P)."""
    from sklearn.cluster import KMeans

    seen = points if len(points) <= TRIED else points[rng.choice(len(points), TRIED, replace=False)]
    model = KMeans(count, n_init=STARTS, random_state=int(rng.integers(2**31)))  # type: ignore[arg-type]
    return np.asarray(model.fit(seen).cluster_centers_)


def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """(R,) index of the nearest centre."""
    return ((centres**2).sum(1)[None] - 2 * points @ centres.T).argmin(1)


def silhouette(points: np.ndarray, label: np.ndarray) -> float:
    """Mean over points; 0 where only one cluster has any."""
    from sklearn.metrics import silhouette_score

    number = len(np.unique(label))
    return float(silhouette_score(points, label)) if 1 < number < len(points) else 0.0


def stability(
    features: Features, found: Fit, rows: np.ndarray, components: int, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of refits on episodes drawn again: adjusted Rand index (draws,) with the fit, the same for mixtures without
    clusters, and of each cluster the Jaccard index with the refit's cluster that is most like it (draws, K)."""
    x, episode = features.x[rows].astype(np.float64), features.episode[rows]
    points, count = found.space.scores(x), len(found.centres)
    pieces = spans(episode)

    def again() -> np.ndarray:
        return np.concatenate([pieces[i] for i in rng.integers(0, len(pieces), len(pieces))])

    def agreement(mine: np.ndarray, x: np.ndarray, drawn: np.ndarray) -> tuple[float, np.ndarray]:
        from sklearn.metrics import adjusted_rand_score

        other = nearest(x, means(x[drawn], count, rng))
        both = np.zeros((count, count))
        np.add.at(both, (mine, other), 1)
        union = both.sum(1)[:, None] + both.sum(0)[None] - both
        return float(adjusted_rand_score(mine, other)), (both / np.maximum(union, 1)).max(1)

    label = nearest(points, found.centres)
    own, chance = [], []
    for _ in range(draws):
        drawn = again()
        own.append(agreement(label, Space.of(x[drawn], components, 0.95).scores(x), drawn))
        other = mixed(points, episode, rng)
        chance.append(agreement(nearest(other, means(other, count, rng)), other, again())[0])
    return (np.array([a for a, _ in own]), np.array(chance),
            np.array([j for _, j in own]).reshape(draws, count))  # fmt: skip
