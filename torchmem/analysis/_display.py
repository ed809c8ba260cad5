"""Maps of points in two dimensions, to look at and never to compute from."""

from __future__ import annotations

import numpy as np

MAPS = ("none", "tsne", "umap")


def display_map(points: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """points (R, P) -> (R, 2), or (0, 2) for none. Raises ValueError for a map that is unknown or not installed."""
    if kind not in MAPS:
        raise ValueError(f"display must be one of {', '.join(MAPS)}; got {kind!r}")
    if kind == "none":
        return np.zeros((0, 2))
    if kind == "umap":
        try:
            from umap import UMAP  # type: ignore[import-not-found]
        except ImportError as error:
            raise ValueError("display=umap needs umap-learn, which is not installed: take display=tsne") from error
        return np.asarray(UMAP(random_state=seed).fit_transform(points))
    from sklearn.manifold import TSNE

    perplexity = min(30.0, max(2.0, (len(points) - 1) / 4))
    return TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(points)
