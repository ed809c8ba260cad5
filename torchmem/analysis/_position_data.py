"""What position probes are fitted on: tiles, folds, and each site as a matrix of bounded width."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from torchmem.analysis._probe_data import ProbeData, Recorded, read_probe_data
from torchmem.analysis.nulls import deal_folds

STAGES = ("encoder", "dynamics.posterior", "dynamics.stoch", "dynamics.prior", "dynamics", "core", "memory", "actor",
          "behaviour.policy", "critic", "behaviour.value")  # fmt: skip
HOLDOUT_SEED = 42  # of the split by episode in vviggyy/dreamerv3f


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tiles. origin: lowest (x, y). shape: (W, H). tile: (N, 2) int64 of each step, from the origin.

    cells: (K, 2) tiles that were visited; y: (N,) which of them.
    """

    origin: tuple[int, int]
    shape: tuple[int, int]
    tile: np.ndarray
    cells: np.ndarray
    y: np.ndarray

    def far(self) -> np.ndarray:
        """(K, K) float32 Manhattan distances between visited tiles."""
        return np.abs(self.cells[:, None] - self.cells[None]).sum(-1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class PositionData:
    """fold: (N,) int64. tested: the folds that are held out in turn. floor: (N,) share of a guess that is spread over
    the whole grid, by how often the training steps met a tile for the only time (Good and Turing)."""

    probe: ProbeData
    grid: Grid
    fold: np.ndarray
    tested: tuple[int, ...]
    floor: np.ndarray

    @property
    def folds(self) -> int:
        return int(self.fold.max()) + 1


def make_grid(pos: np.ndarray, cell: float, area: tuple[int, int] | None) -> Grid:
    """pos: (N, 2). area: (W, H) of a grid that begins at 0; None: the box around what was visited."""
    tile = np.floor(pos / cell).astype(np.int64)
    low, high = tile.min(0), tile.max(0)
    if area is not None:
        if (low < 0).any() or (high >= area).any():
            raise ValueError(f"positions reach from tile {low.tolist()} to {high.tolist()}, beyond area={area}")
        low, high = np.zeros(2, np.int64), np.array(area) - 1
    cells, y = np.unique(tile - low, axis=0, return_inverse=True)
    shape = high - low + 1
    if shape.prod() > 2**16:
        raise ValueError(f"{shape[0]} x {shape[1]} tiles are too many to tell apart: choose a larger cell=")
    return Grid((int(low[0]), int(low[1])), (int(shape[0]), int(shape[1])), tile - low, cells, y.reshape(-1))


def read_position_data(
    recording: Recorded, sites: str | Sequence[str], target: str, *, groups: str | np.ndarray, folds: int,
    holdout: float, where: str | Sequence[str] | np.ndarray | None, cell: float, area: tuple[int, int] | None,
    rng: np.random.Generator,
) -> PositionData:  # fmt: skip
    """See `probe_position` for the arguments. Raises ValueError."""
    probe = read_probe_data(recording, sites, target, kind="ridge", groups=groups, where=where)
    if probe.y.shape[1] != 2:
        raise ValueError(f"{target} has {probe.y.shape[1]} columns; a position has two, x and y")
    probe = dataclasses.replace(probe, sites=tuple(sorted(probe.sites, key=stage)))
    grid = make_grid(probe.y, cell, area)
    if len(grid.cells) < 3:
        raise ValueError(f"{len(grid.cells)} tiles were visited: there is nothing to decode")
    count = len(np.unique(probe.group))
    tested = tuple(range(folds))
    if not 3 <= folds <= count:
        raise ValueError(f"folds={folds} over {count} groups: record more episodes, or choose 3 to {count} folds")
    if holdout:
        fold, tested = _hold_out(probe.group, holdout, folds, rng), (0,)
    else:
        fold = deal_folds(probe.group, folds, rng)
    floor = np.empty(len(fold))
    for f in range(folds):
        visits = np.bincount(grid.y[fold != f])
        floor[fold == f] = max(int((visits == 1).sum()), 1) / max(int(visits.sum()), 1)
    return PositionData(probe, grid, fold, tested, floor)


def _hold_out(group: np.ndarray, share: float, folds: int, rng: np.random.Generator) -> np.ndarray:
    """One test set (fold 0) as vviggyy/dreamerv3f draws it; the rest is dealt to the other folds."""
    ids = np.unique(group)
    shuffled = np.random.RandomState(HOLDOUT_SEED).permutation(ids)  # the same split as the original
    held = np.isin(group, shuffled[: max(1, int(share * len(ids)))])
    if len(ids) - len(np.unique(group[held])) < folds - 1:
        raise ValueError(f"holdout={share} leaves too few groups for {folds - 1} folds to choose the penalty by")
    fold = np.zeros(len(group), np.int64)
    fold[~held] = 1 + deal_folds(group[~held], folds - 1, rng)
    return fold


def stage(site: str) -> tuple[int, str]:
    """Orders sites from early to late: encoder, dynamics, actor, critic, others."""
    for i, prefix in enumerate(STAGES):
        if site == prefix or site.startswith(prefix + "."):
            return i, site
    return len(STAGES), site


@dataclasses.dataclass(frozen=True)
class Scaled:
    """One site for the solvers: z = ((activation - mean) / std) @ basis, float32 (N, D). basis None: the units as they
    are. The transform looks at no label, so all steps may serve it. kept: share of the variance in z."""

    z: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    basis: np.ndarray | None
    kept: float

    def apply(self, x: np.ndarray) -> np.ndarray:
        """(n, units) -> (n, D)."""
        z = ((x - self.mean) / self.std).astype(np.float32)
        return z if self.basis is None else z @ self.basis


def scale_site(x: np.ndarray, widest: int, seed: int = 0) -> Scaled:
    """Variance 1 per unit (a constant one becomes 0); where there are more units than `widest`, principal components.

    Components are found by a randomised SVD (Halko et al. 2011) with two power iterations.
    """
    x = x.astype(np.float32)
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > 1e-6 * (1 + np.abs(mean)), std, np.inf).astype(np.float32)
    z = (x - mean) / std
    if z.shape[1] <= widest:
        return Scaled(z, mean, std, None, 1.0)
    generator = torch.Generator().manual_seed(seed)
    full = torch.as_tensor(z)
    sketch = full @ torch.randn(z.shape[1], widest, generator=generator)
    for _ in range(2):
        sketch = full @ (full.T @ torch.linalg.qr(sketch).Q)
    small = torch.linalg.qr(sketch).Q.T @ full
    basis = torch.linalg.svd(small, full_matrices=False).Vh[:widest].T.contiguous()
    turned = full @ basis
    kept = float(turned.square().sum() / full.square().sum())
    return Scaled(turned.numpy(), mean, std, basis.numpy(), kept)


def batches(scaled: dict[str, Scaled], limit: int) -> list[list[str]]:
    """Sites of about one width together, at most `limit` entries of their squared widths at once."""
    found: list[list[str]] = []
    for name in sorted(scaled, key=lambda n: scaled[n].z.shape[1]):
        width = scaled[name].z.shape[1]
        fits = bool(found) and (len(found[-1]) + 1) * width**2 <= limit
        if fits and 2 * scaled[found[-1][0]].z.shape[1] >= width:
            found[-1].append(name)
        else:
            found.append([name])
    return found


def stack(scaled: dict[str, Scaled], names: Sequence[str], device: str) -> Tensor:
    """(S, N, D) float32, narrower sites padded with zeros."""
    width = max(scaled[name].z.shape[1] for name in names)
    parts = [np.pad(scaled[name].z, ((0, 0), (0, width - scaled[name].z.shape[1]))) for name in names]
    return torch.as_tensor(np.stack(parts), device=device)
