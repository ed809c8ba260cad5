"""Recording: what was written, opened lazily. Analyses know agents (and animals) only through this."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from torchmem.recording.column import Column
from torchmem.recording.store import DATA, GROUPS, RecordingError, episode_table, read_header
from torchmem.result import Provenance

if TYPE_CHECKING:
    import pynapple
    import xarray


class Columns(Mapping[str, Column]):
    """Recorded arrays by name. An unknown name raises KeyError with the names that are there."""

    def __init__(self, kind: str, columns: Mapping[str, Column]) -> None:
        self._kind, self._columns = kind, dict(columns)

    def __getitem__(self, name: str) -> Column:
        if name not in self._columns:
            raise KeyError(f"no {self._kind} {name!r} was recorded; there are {', '.join(self._columns) or 'none'}")
        return self._columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return "\n".join(f"{name:<32}{column!r}" for name, column in self._columns.items())


class _Used:
    """Lives as long as somebody needs a folder."""


class Recording:
    """Whole episodes, one after the other along one axis of steps.

    activations[site], covariates[name]: `Column`, (steps, ...), read from disk where indexed.
    episodes: (episodes,) of `EPISODE` (start, stop, seed, length, complete). episode, step: (steps,) int, number of
    the episode and step within it. time: (steps,) seconds within the episode. units: name -> unit. sites: what is
    known of each site (dtype, pooling). plan: what was asked for. finished: whether all of it is there.

    A recording that is being written opens with the episodes that are complete so far. Raises RecordingError.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        header = read_header(self.path)
        self.steps: int = header["steps"]
        self.control_hz: float = header["control_hz"]
        self.units: Mapping[str, str] = header["units"]
        self.sites: Mapping[str, Mapping[str, Any]] = header["sites"]
        self.plan: Mapping[str, Any] = header["plan"]
        self.finished: bool = header["finished"]
        self.provenance = Provenance.from_json(header["provenance"], home=self.path)
        self.episodes: np.ndarray = episode_table(header["episodes"])
        found: dict[str, dict[str, Column]] = {group: {} for group in GROUPS}
        if self.steps:
            data = zarr.open_group(self.path / DATA, mode="r")
            for address in header["arrays"]:
                group, _, name = address.partition("/")
                array = data.get(address)
                if not isinstance(array, zarr.Array) or array.shape[0] < self.steps:
                    raise RecordingError(f"{self.path / DATA / address} is missing or short: the recording is damaged")
                dtype = self.sites.get(name, {}).get("dtype", "") if group == GROUPS[0] else ""
                found[group][name] = Column(array, self.steps, dtype)
        self.activations: Mapping[str, Column] = Columns("site", found[GROUPS[0]])
        self.covariates: Mapping[str, Column] = Columns("covariate", found[GROUPS[1]])
        self._folder: _Used | None = None

    def keep_only_while_used(self, folder: TemporaryDirectory) -> Recording:
        """Take over a temporary folder: it vanishes with this object and the last of its columns."""
        self._folder = token = _Used()
        for group in (self.activations, self.covariates):
            for column in group.values():
                column.used = token  # else it would read zeros once the recording is forgotten
        weakref.finalize(token, folder.cleanup)
        return self

    # Clock -----------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.steps

    @cached_property
    def episode(self) -> np.ndarray:
        """(steps,) int64: which episode each step belongs to."""
        return np.repeat(np.arange(len(self.episodes)), self.episodes["length"])

    @cached_property
    def step(self) -> np.ndarray:
        """(steps,) int64: agent step within the episode, from 0."""
        return np.arange(self.steps) - np.repeat(self.episodes["start"], self.episodes["length"])

    @property
    def time(self) -> np.ndarray:
        """(steps,) seconds within the episode: agent step / control_hz."""
        return self.step / self.control_hz

    def rows(self, episode: int) -> slice:
        """The steps of one episode: `rec.activations[site][rec.rows(3)]`."""
        if not -len(self.episodes) <= episode < len(self.episodes):
            raise IndexError(f"episode {episode} is outside the {len(self.episodes)} recorded episodes")
        row = self.episodes[episode]
        return slice(int(row["start"]), int(row["stop"]))

    # Other people's formats ------------------------------------------------------------------------------------------

    def to_xarray(self, names: list[str] | None = None) -> xarray.Dataset:
        """Sites and covariates (or those of `names`) in memory, along `step`; see `recording/export.py`."""
        from torchmem.recording.export import to_xarray

        return to_xarray(self, names)

    def tsd(self, name: str) -> pynapple.Tsd | pynapple.TsdFrame | pynapple.TsdTensor:
        """A site or covariate as pynapple's time series on the global clock, in seconds."""
        from torchmem.recording.export import tsd

        return tsd(self, name)

    def epochs(self) -> pynapple.IntervalSet:
        """The episodes on the global clock: one interval each, a gap between them."""
        from torchmem.recording.export import epochs

        return epochs(self)

    def to_nwb(self, path: str | Path) -> Path:
        """Write one NWB file (needs pynwb)."""
        from torchmem.recording.export import to_nwb

        return to_nwb(self, path)

    def column(self, name: str) -> Column:
        """A site, or else a covariate, of that name. Raises KeyError naming all that are there."""
        if name in self.activations:
            return self.activations[name]
        if name in self.covariates:
            return self.covariates[name]
        raise KeyError(
            f"nothing named {name!r} was recorded; sites: {', '.join(self.activations) or 'none'}; "
            f"covariates: {', '.join(self.covariates) or 'none'}"
        )

    def summary(self) -> str:
        """What is in it, in a few lines."""
        hours = self.steps / self.control_hz / 3600
        size = sum(c.nbytes for group in (self.activations, self.covariates) for c in group.values())
        state = "" if self.finished else " (not finished)"
        lines = [
            f"{self.path}: {len(self.episodes)} episodes{state}, {self.steps} steps"
            f" at {self.control_hz:g} Hz ({hours:.2f} h), {size / 1e6:.1f} MB in memory",
            f"agent: {self.provenance.checkpoint or 'unknown'}; edits: {len(self.provenance.edits) or 'none'}",
        ]
        for title, group in (("sites", self.activations), ("covariates", self.covariates)):
            lines.append(f"{title}:")
            lines += [
                f"  {name:<32}{list(column.shape)!s:<22}{column.dtype!s:<9} {self.units.get(name, '')}".rstrip()
                for name, column in group.items()
            ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Recording {self.path}: {len(self.episodes)} episodes, {self.steps} steps>"
