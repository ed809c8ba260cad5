"""Sums over pairs of steps (t, t + lag) of one episode, episode by episode, so that episodes can be drawn again."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from torchmem.analysis.nulls import spans


def pairs_at(episode: np.ndarray, chosen: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(earlier, later, which episode in order of appearance) rows of all pairs whose earlier step is chosen."""
    earlier, later, number = [], [], []
    for index, rows in enumerate(spans(episode)):
        first = rows[: max(len(rows) - lag, 0)]
        keep = chosen[first]
        earlier.append(first[keep])
        later.append(rows[lag:][keep] if len(first) else first)
        number.append(np.full(int(keep.sum()), index))
    return np.concatenate(earlier), np.concatenate(later), np.concatenate(number)


@dataclasses.dataclass(frozen=True)
class Moments:
    """By episode (E, ...): n, sums of a and b, and of a a', a b', b b (the diagonal), a earlier and b later."""

    n: np.ndarray
    a: np.ndarray
    b: np.ndarray
    aa: np.ndarray
    ab: np.ndarray
    bb: np.ndarray

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray, number: np.ndarray, episodes: int) -> Moments:
        """a, b (pairs, K); number (pairs,) of the episode, in order."""
        edges = np.searchsorted(number, np.arange(episodes + 1))
        parts = [(a[i:j], b[i:j]) for i, j in itertools.pairwise(edges)]
        return cls(
            np.diff(edges).astype(np.float64), np.stack([x.sum(0) for x, _ in parts]),
            np.stack([y.sum(0) for _, y in parts]), np.stack([x.T @ x for x, _ in parts]),
            np.stack([x.T @ y for x, y in parts]), np.stack([(y**2).sum(0) for _, y in parts]),
        )  # fmt: skip

    def drawn(self, weight: np.ndarray) -> Moments:
        """The sums over episodes, each counted `weight` (draws, E) times: fields (draws, ...)."""
        return Moments(*(np.tensordot(weight, getattr(self, f.name), 1) for f in dataclasses.fields(self)))

    def correlation(self) -> np.ndarray:
        """(..., K, K) Pearson's, row the earlier, column the later; 0 where one does not vary."""
        n = self.n[..., None]
        ma, mb = self.a / n, self.b / n
        cross = self.ab / n[..., None] - ma[..., :, None] * mb[..., None, :]
        va = np.diagonal(self.aa, axis1=-2, axis2=-1) / n - ma**2
        vb = self.bb / n - mb**2
        size = np.sqrt(np.maximum(va, 0))[..., :, None] * np.sqrt(np.maximum(vb, 0))[..., None, :]
        return np.where(size > 1e-12, cross / np.where(size > 1e-12, size, 1), 0.0)

    def regression(self) -> np.ndarray:
        """(..., K, K): coefficient of each earlier (row) for each later one (column), all earlier ones together.

        Least squares with intercept; a ridge of 1e-8 of the mean variance keeps it solvable.
        """
        n = self.n[..., None]
        ma, mb = self.a / n, self.b / n
        cross = self.ab / n[..., None] - ma[..., :, None] * mb[..., None, :]
        within = self.aa / n[..., None] - ma[..., :, None] * ma[..., None, :]
        count = within.shape[-1]
        ridge = 1e-8 * np.trace(within, axis1=-2, axis2=-1) / count + 1e-300
        return np.linalg.solve(within + ridge[..., None, None] * np.eye(count), cross)
