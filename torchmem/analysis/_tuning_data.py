"""A recording as pynapple sees it, cut to what tuning needs: activity, bins of position and heading, episodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pynapple as nap

from torchmem.analysis._position_data import Grid, make_grid, stage
from torchmem.analysis._probe_data import find_sites, lookup, where_mask

HEADINGS = ("heading", "facing", "facing_from_actions")
SECTORS = 8  # of a continuous heading
CATEGORIES = 8  # more values than that are continuous


@dataclasses.dataclass(frozen=True)
class TuningData:
    """T steps. position: TsdFrame (T, 2). grid: its tiles. heading: (T,) category or None; headings: their names.
    episode: (T,) from 0. keep: (steps,) bool of the recording's steps."""

    recording: Any
    sites: tuple[str, ...]
    position: nap.TsdFrame
    grid: Grid
    heading: np.ndarray | None
    headings: tuple[str, ...]
    episode: np.ndarray
    keep: np.ndarray

    def activity(self, site: str) -> nap.TsdFrame:
        """(T, units) float32. Raises ValueError where it holds NaN or infinity."""
        series = self.recording.tsd(site)
        values = np.asarray(series.values).reshape(len(series), -1)
        values = np.asarray(values if self.keep.all() else values[self.keep], np.float32)
        if not np.isfinite(values).all():
            raise ValueError(f"{site} holds NaN or infinity in the chosen steps: leave those out with where=")
        return nap.TsdFrame(t=self.position.t, d=values, time_support=self.position.time_support)


def read_tuning_data(
    recording: Any, sites: str | Sequence[str], target: str, heading: str | None,
    where: str | Sequence[str] | np.ndarray | None, epochs: nap.IntervalSet | None, cell: float,
    area: tuple[int, int] | None,
) -> TuningData:  # fmt: skip
    """See `tune_units`. Raises ValueError."""
    names = tuple(sorted(find_sites(recording, sites), key=stage))
    if not hasattr(recording, "tsd"):
        raise ValueError("tuning needs a Recording, which gives its columns as pynapple's time series")
    lookup(recording.covariates, target, "covariate")
    whole = recording.tsd(target)
    if whole.ndim != 2 or whole.shape[1] != 2:
        raise ValueError(f"{target} has shape {whole.shape[1:]} per step; a position is x and y")
    keep = where_mask(recording, where)
    if epochs is not None:
        keep &= np.isfinite(epochs.in_interval(nap.Ts(whole.t)))
    if not keep.any():
        raise ValueError(f"where={where!r} and epochs leave no step")
    position = whole[keep]
    values = np.asarray(position.values, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{target} is NaN or infinite in the chosen steps: leave those out with where=")
    turned, titles = _headings(recording, heading, keep)
    return TuningData(
        recording, names, nap.TsdFrame(t=position.t, d=values, time_support=whole.time_support, columns=["x", "y"]),
        make_grid(values, cell, area), turned, titles, np.unique(np.asarray(recording.episode)[keep],
        return_inverse=True)[1], keep,
    )  # fmt: skip


def _headings(recording: Any, name: str | None, keep: np.ndarray) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Each heading that occurs is a category of its own: bins of an angle would merge some and leave others empty."""
    if name is None:
        name = next((one for one in HEADINGS if one in recording.covariates), None)
        if name is None:
            return None, ()
    values = lookup(recording.covariates, name, "covariate")[keep]
    found = values.reshape(len(values), -1)
    kinds, index = np.unique(found, axis=0, return_inverse=True)
    if len(kinds) <= CATEGORIES:
        return index.reshape(-1), tuple(",".join(f"{v:g}" for v in row) for row in kinds)
    if found.shape[1] != 1:
        raise ValueError(f"{name} takes {len(kinds)} values of {found.shape[1]} columns: give an angle in rad")
    width = 2 * np.pi / SECTORS
    sector = np.round(found[:, 0] / width).astype(np.int64) % SECTORS
    return sector, tuple(f"{i * 360 / SECTORS:g}°" for i in range(SECTORS))
