"""A recording as xarray, pynapple or NWB.

The global clock, which pynapple and NWB need: episode e begins where episode e - 1 ended plus a gap of a second (at
least one step), so that no window reaches from one episode into the next.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchmem.files import sync_folder
from torchmem.recording.store import RecordingError

if TYPE_CHECKING:
    import pynapple
    import xarray

    from torchmem.recording.reader import Recording

GAP_S = 1.0


def starts(rec: Recording) -> np.ndarray:
    """(episodes,) seconds on the global clock at which each episode begins."""
    step = 1 / rec.control_hz
    spans = rec.episodes["length"] * step + max(GAP_S, step)
    return np.concatenate([[0.0], np.cumsum(spans)[:-1]]) if len(spans) else np.zeros(0)


def clock(rec: Recording) -> np.ndarray:
    """(steps,) seconds on the global clock."""
    return np.repeat(starts(rec), rec.episodes["length"]) + rec.time


def to_xarray(rec: Recording, names: list[str] | None = None) -> xarray.Dataset:
    """Everything (or `names`) in memory. Variables have the dimension `step` (with the coordinates `episode` and
    `time`) and `<name>.0`, ... beside it. A covariate whose name is taken by a site or a coordinate is
    `covariate.<name>`.
    """
    import xarray

    for name in names or ():
        rec.column(name)  # raises KeyError
    coordinates = {
        "episode": ("step", rec.episode),
        "step_in_episode": ("step", rec.step),
        "time": ("step", rec.time, {"units": "s"}),
    }
    variables = {}
    for kind, group in (("site.", rec.activations), ("covariate.", rec.covariates)):
        for name, column in group.items():
            if names is None or name in names:
                title = f"{kind}{name}" if name in (*variables, *coordinates, "step") else name
                dims = ("step", *(f"{title}.{i}" for i in range(column.ndim - 1)))
                unit = {"units": rec.units[name]} if name in rec.units else {}
                variables[title] = (dims, column[:], unit)
    return xarray.Dataset(variables, coordinates, {"control_hz": rec.control_hz, "source": str(rec.path)})


def epochs(rec: Recording) -> pynapple.IntervalSet:
    """One interval per episode, to half a step after its last, with `seed` and `complete` as metadata."""
    import pynapple

    begin = starts(rec)
    end = begin + (rec.episodes["length"] - 0.5) / rec.control_hz
    about = {"seed": rec.episodes["seed"], "complete": rec.episodes["complete"]}
    return pynapple.IntervalSet(begin, end, metadata=about)


def tsd(rec: Recording, name: str) -> pynapple.Tsd | pynapple.TsdFrame | pynapple.TsdTensor:
    """(steps,) as Tsd, (steps, N) as TsdFrame, more axes as TsdTensor."""
    import pynapple

    values = rec.column(name)[:]
    kind = {1: pynapple.Tsd, 2: pynapple.TsdFrame}.get(values.ndim, pynapple.TsdTensor)
    return kind(t=clock(rec), d=values, time_support=epochs(rec))


def to_nwb(rec: Recording, path: str | Path) -> Path:
    """Write an NWB file: sites in processing/activations, covariates in processing/covariates, episodes as trials.

    Values are copied piece by piece. Booleans become uint8. Raises RecordingError where pynwb is missing or a
    recording has no steps, FileExistsError where `path` exists.
    """
    try:
        import pynwb
        from hdmf.data_utils import GenericDataChunkIterator
    except ImportError as error:
        raise RecordingError("writing NWB needs pynwb: pip install pynwb") from error
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} already exists: choose another file")
    if not rec.steps:
        raise RecordingError(f"{rec.path} holds no complete episode yet: there is nothing to write")

    class Pieces(GenericDataChunkIterator):
        """A column, as pynwb likes to read it."""

        def __init__(self, column: Any) -> None:
            self.column = column
            rows = int(np.clip(2**22 // max(column.nbytes // len(column), 1), 1, len(column)))
            rest = column.shape[1:]
            super().__init__(buffer_shape=(rows, *rest), chunk_shape=(rows, *rest))

        def _get_data(self, selection: tuple[slice, ...]) -> np.ndarray:
            values = self.column[selection]
            return values.astype(np.uint8) if values.dtype == bool else values

        def _get_maxshape(self) -> tuple[int, ...]:
            return self.column.shape

        def _get_dtype(self) -> np.dtype:
            return np.dtype(np.uint8) if self.column.dtype == bool else self.column.dtype

    date = rec.provenance.date
    when = datetime.datetime.fromisoformat(date) if date else datetime.datetime.now(datetime.UTC)
    file: Any = pynwb.NWBFile(
        session_description=f"{len(rec.episodes)} episodes of {rec.provenance.checkpoint or 'an agent'}",
        identifier=f"{rec.provenance.weights or 'unknown'}-{date}",
        session_start_time=when,
        notes=rec.summary(),
    )
    stamps = clock(rec)
    for title, group in (("activations", rec.activations), ("covariates", rec.covariates)):
        module = file.create_processing_module(title, f"{title} of every step, on the global clock")
        first: Any = None
        for name, column in group.items():
            series: Any = pynwb.TimeSeries(
                name=name, data=Pieces(column), unit=rec.units.get(name) or "a.u.", timestamps=first or stamps
            )
            first = first or series  # all share one clock
            module.add(series)
    file.add_trial_column("seed", "reset seed of the episode, -1 where unknown")
    file.add_trial_column("complete", "seen to its end")
    ends = starts(rec) + rec.episodes["length"] / rec.control_hz
    for begin, end, row in zip(starts(rec), ends, rec.episodes, strict=True):
        file.add_trial(
            start_time=float(begin), stop_time=float(end), seed=int(row["seed"]), complete=bool(row["complete"])
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.{os.getpid()}.part.nwb")
    try:
        opened: Any = pynwb.NWBHDF5IO
        with opened(str(part), "w") as out:
            out.write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path
