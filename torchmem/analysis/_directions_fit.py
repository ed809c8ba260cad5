"""Directions of a cloud of states: PCA, ICA, NMF as pairs of matrices, with signs and order that do not depend on luck.

x (R, N) rows of units. A `Basis` of K directions: y = (x - centre) @ encode.T and x ~ centre + y @ decode, with
encode @ decode.T = 1. Rows of `decode` are directions in units of the site: what a step of y moves.
"""

from __future__ import annotations

import dataclasses
import logging
import warnings

import numpy as np
from scipy.optimize import linear_sum_assignment

log = logging.getLogger("torchmem")
METHODS = ("pca", "ica", "nmf")
ICA_STEPS, ICA_TOLERANCE = 2000, 1e-4
NMF_STEPS = 2000


@dataclasses.dataclass(frozen=True)
class Basis:
    """centre, scale (N,); encode, decode (K, N); converged: the search for them came to an end."""

    centre: np.ndarray
    scale: np.ndarray
    encode: np.ndarray
    decode: np.ndarray
    converged: bool = True

    def scores(self, x: np.ndarray) -> np.ndarray:
        """(R, K)."""
        return (x - self.centre) @ self.encode.T


def fit_basis(x: np.ndarray, method: str, count: int, seed: int) -> Basis:
    """K = count directions of x (R, N) float64, each unit at its own standard deviation first (dead ones as they are).

    pca: by variance. ica: FastICA (logcosh, Hyvarinen 1999) on the whitened first `count` components, so y has variance
    1. nmf: of x above its smallest value; y is the unconstrained least-squares fit to its parts. Sign: the longer tail
    of y is positive, where no tail is surely longer the largest loading; nmf has none. Order: by variance.
    """
    centre = x.min(0) if method == "nmf" else x.mean(0)
    scale = x.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    z = (x - centre) / scale
    converged = True
    if method == "nmf":
        decode, converged = _nmf(z, count, seed)
        encode = np.linalg.pinv(decode).T
    else:
        spread, encode = principal(z, count)
        decode = encode
        if method == "ica":
            turn, converged = _unmix(z @ encode.T / spread, seed)
            encode, decode = turn @ (encode / spread[:, None]), turn @ (encode * spread[:, None])
    y = z @ encode.T
    size = y.var(0) * (decode**2).sum(1)
    order = np.argsort(-size, kind="stable")
    sign = np.ones(count) if method == "nmf" else _signs(y, decode)
    encode, decode = (encode * sign[:, None])[order], (decode * sign[:, None])[order]
    return Basis(centre, scale, encode / scale, decode * scale, converged)


def principal(z: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard deviations (K,) along the first K principal axes, and these (K, N), of centred rows."""
    values, axes = np.linalg.eigh(z.T @ z / len(z))
    values, axes = values[::-1][:count], axes.T[::-1][:count]
    if values[-1] <= 1e-10 * values[0]:
        rank = int((values > 1e-10 * values[0]).sum())
        raise ValueError(f"the states span {rank} dimensions, so there are no {count} directions: ask for fewer")
    return np.sqrt(values), axes


def _unmix(white: np.ndarray, seed: int) -> tuple[np.ndarray, bool]:
    """The rotation (K, K) that makes white rows independent."""
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    model = FastICA(
        whiten=False, fun="logcosh", max_iter=ICA_STEPS, tol=ICA_TOLERANCE, random_state=seed  # type: ignore[arg-type]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told in the result
        model.fit(white)
    left, _, right = np.linalg.svd(model.components_)
    return left @ right, model.n_iter_ < ICA_STEPS  # exactly orthogonal, so that its transpose undoes it


def _nmf(z: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, bool]:
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    model = NMF(count, init="nndsvda", max_iter=NMF_STEPS, random_state=seed)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(z)
    parts = np.asarray(model.components_, np.float64)
    if np.linalg.matrix_rank(parts) < count:
        raise ValueError(f"NMF finds fewer than {count} different parts: ask for fewer directions")
    return parts, model.n_iter_ < NMF_STEPS


def _signs(y: np.ndarray, decode: np.ndarray) -> np.ndarray:
    """(K,) of 1 and -1."""
    spread = y.std(0)
    skew = (((y - y.mean(0)) / np.where(spread > 0, spread, 1)) ** 3).mean(0)
    largest = np.take_along_axis(decode, np.abs(decode).argmax(1)[:, None], 1)[:, 0]
    # rows of one episode are alike, so a skew below a tenth says little however many rows there are
    return np.where(np.where(np.abs(skew) > 0.1, skew, largest) < 0, -1.0, 1.0)


def matched(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(K,) correlation, without sign, of each column of `mine` (R, K) with its partner among those of `other`, paired
    one to one so that the sum is largest."""
    a, b = (v - v.mean(0) for v in (mine, other))
    length = np.linalg.norm(a, axis=0)[:, None] * np.linalg.norm(b, axis=0)
    found = np.abs(a.T @ b) / np.where(length > 0, length, np.inf)
    rows, columns = linear_sum_assignment(-found)
    out = np.empty(mine.shape[1])
    out[rows] = found[rows, columns]
    return out


def crowded(z: np.ndarray, neighbours: int = 5) -> np.ndarray:
    """(R,) bool: rows that are no outliers, by the original's rule: the median distance to the nearest five others is
    below the mean over rows plus two standard deviations."""
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=neighbours + 1).fit(z).kneighbors(z)[0][:, 1:]
    middle = np.median(near, 1)
    return middle < middle.mean() + 2 * middle.std()
