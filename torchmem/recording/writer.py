"""Writes recordings: whole episodes, in big pieces, so that a kill at any instant costs only what was not flushed."""

from __future__ import annotations

import fcntl
import json
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from torchmem.files import atomic_write
from torchmem.recording.store import (
    BFLOAT16,
    DATA,
    EPISODE,
    FORMAT,
    GROUPS,
    HEADER,
    LOCK,
    RecordingError,
    episode_table,
    read_header,
    to_bfloat16,
)
from torchmem.result import Provenance

CHUNK_BYTES = 2**21
log = logging.getLogger("torchmem")


class RecordingWriter:
    """Appends episodes to a recording folder; a context manager.

    path: a new or empty folder. control_hz: steps per second. units: name -> unit of sites and covariates.
    sites: what is known of each site beyond its values, such as {"memory": {"dtype": "bfloat16", "pooling": "none"}};
    "dtype" bfloat16 is stored as rounded 16 bits, any other dtype is the array's own. plan: JSON values that say what
    this recording will be once finished. resume: go on with the folder if it holds a recording of the same plan.
    flush_bytes, flush_s: how much is held back at most before it is written.

    Raises FileExistsError where the folder holds something else (or resume is False), RecordingError where its plan
    differs or another process writes to it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        control_hz: float,
        units: Mapping[str, str] | None = None,
        sites: Mapping[str, Mapping[str, Any]] | None = None,
        plan: Mapping[str, Any] | None = None,
        provenance: Provenance | None = None,
        resume: bool = False,
        flush_bytes: int = 2**27,
        flush_s: float = 30.0,
    ) -> None:
        self.path = Path(path)
        self._flush_bytes, self._flush_s = flush_bytes, flush_s
        self._waiting: list[tuple[dict[str, np.ndarray], int, bool]] = []  # whole episodes not yet on disk
        self._bytes, self._since = 0, time.monotonic()
        self._arrays: dict[str, zarr.Array] = {}
        self._header: dict[str, Any] = {
            "format": FORMAT,
            "finished": False,
            "steps": 0,
            "control_hz": control_hz,
            "units": dict(units or {}),
            "sites": {name: dict(about) for name, about in (sites or {}).items()},
            "plan": json.loads(json.dumps(dict(plan or {}))),
            "provenance": (provenance or Provenance.here()).to_json(),
            "arrays": {},  # "activations/memory" -> shape of a row and stored dtype
            "episodes": {name: [] for name in EPISODE.names or ()},
        }
        there = self.path.exists() and (not self.path.is_dir() or any(p.name != LOCK for p in self.path.iterdir()))
        if there and not (resume and (self.path / HEADER).is_file()):
            way = f"it is no recording (it holds no {HEADER})" if resume else "choose another folder, or resume"
            raise FileExistsError(f"{self.path} already exists: {way}")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._locked()
        try:
            if there:
                self._go_on()
            else:
                self._commit({})
        except BaseException:
            self._lock.close()
            raise

    def _locked(self):
        """Held until this process closes it or dies. The file itself may stay behind: it means nothing."""
        lock = open(self.path / LOCK, "w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise RecordingError(f"{self.path} is being written by another process") from error
        return lock

    def _go_on(self) -> None:
        found = read_header(self.path)
        if found["plan"] != self._header["plan"]:
            old, new = found["plan"], self._header["plan"]
            keys = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
            first = keys[0]
            raise RecordingError(
                f"{self.path} is another recording: {first} was {old.get(first)!r}, is {new.get(first)!r}"
                f"{f' ({len(keys) - 1} more differ)' if keys[1:] else ''}; choose another folder"
            )
        commit = self._header["provenance"]["commit"]
        if found["provenance"]["commit"] != commit:
            log.warning("%s was begun by commit %s, this is %s", self.path, found["provenance"]["commit"], commit)
        self._header = found
        if found["steps"]:
            data = zarr.open_group(self.path / DATA, mode="r+")
            self._arrays = {name: _array(data, name) for name in found["arrays"]}

    # State -----------------------------------------------------------------------------------------------------------

    @property
    def episodes(self) -> np.ndarray:
        """(episodes,) of EPISODE: those on disk."""
        return episode_table(self._header["episodes"])

    @property
    def finished(self) -> bool:
        """`finish` was called, in this or an earlier sitting."""
        return self._header["finished"]

    # Writing ---------------------------------------------------------------------------------------------------------

    def append(
        self,
        activations: Mapping[str, np.ndarray],
        covariates: Mapping[str, np.ndarray],
        *,
        seed: int = -1,
        complete: bool = True,
    ) -> None:
        """Add one episode: every array (T, ...), T >= 1, the same names, row shapes and dtypes each time.

        A bfloat16 site takes floats (rounded here) or uint16 (its bits). The arrays may be views; they are not kept
        beyond the next flush. Raises RecordingError naming the array that does not fit.
        """
        given = dict(zip(GROUPS, (activations, covariates), strict=True))
        episode = {}
        for group, arrays in given.items():
            for name, values in arrays.items():
                dtype = self._header["sites"].get(name, {}).get("dtype") if group == "activations" else None
                episode[f"{group}/{name}"] = _stored(name, np.asarray(values), dtype)
        lengths = {len(values) for values in episode.values()}
        if len(lengths) != 1 or 0 in lengths:
            told = {name: len(values) for name, values in episode.items()}
            raise RecordingError(f"an episode needs arrays of one length, at least 1; got {told or 'no array'}")
        shapes = {name: [list(values.shape[1:]), values.dtype.name] for name, values in episode.items()}
        known = self._header["arrays"]
        if not known:
            self._header["arrays"] = shapes
        elif shapes != known:
            wrong = [n for n in sorted(shapes.keys() | known.keys()) if shapes.get(n) != known.get(n)]
            raise RecordingError(f"{wrong[0]} is {shapes.get(wrong[0])}, earlier episodes had {known.get(wrong[0])}")
        self._waiting.append((episode, seed, complete))
        self._bytes += sum(values.nbytes for values in episode.values())
        if self._bytes >= self._flush_bytes or time.monotonic() - self._since >= self._flush_s:
            self.flush()

    def flush(self) -> None:
        """Put all appended episodes on disk: data first, then the count that makes them part of the recording."""
        if not self._waiting:
            return
        if not self._arrays:
            self._create()
        start = self._header["steps"]
        stop = start + sum(_length(episode) for episode, _, _ in self._waiting)
        for name, array in self._arrays.items():
            if array.shape[0] < stop:
                array.resize((stop, *array.shape[1:]))
            array[start:stop] = np.concatenate([episode[name] for episode, _, _ in self._waiting])
        table = {name: list(values) for name, values in self._header["episodes"].items()}
        for episode, seed, complete in self._waiting:
            length = _length(episode)
            row = (start, start + length, int(seed), length, bool(complete))
            for name, value in zip(EPISODE.names or (), row, strict=True):
                table[name].append(value)
            start += length
        self._commit({"steps": stop, "episodes": table})
        self._waiting, self._bytes, self._since = [], 0, time.monotonic()

    def finish(self) -> None:
        """Flush, and mark the plan as done."""
        self.flush()
        self._commit({"finished": True})

    def close(self) -> None:
        """Flush and let others write. Safe to repeat. A recording that holds nothing and is not finished goes."""
        if not self._lock.closed:
            try:
                self.flush()
                if not self._header["steps"] and not self.finished:
                    (self.path / HEADER).unlink(missing_ok=True)
                    (self.path / LOCK).unlink(missing_ok=True)
                    if not any(self.path.iterdir()):
                        self.path.rmdir()
            finally:
                self._lock.close()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()  # also after an error: what was appended are whole episodes

    def _create(self) -> None:
        data = zarr.open_group(self.path / DATA, mode="w")
        # Bits of one rank side by side compress what float data has in common; lz4 keeps up with the disk.
        codec = BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle")
        for name, (shape, dtype) in self._header["arrays"].items():
            row = math.prod(shape) * np.dtype(dtype).itemsize
            rows = 2 ** int(math.log2(min(max(CHUNK_BYTES // max(row, 1), 16), 2**16)))
            self._arrays[name] = data.create_array(
                name, shape=(0, *shape), chunks=(rows, *(max(s, 1) for s in shape)), dtype=dtype, compressors=codec
            )

    def _commit(self, news: Mapping[str, Any]) -> None:
        header = {**self._header, **news}
        atomic_write(self.path / HEADER, json.dumps(header) + "\n")
        self._header = header  # only now: after a full disk the next flush tries the same again


def _length(episode: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(episode.values())))


def _array(data: zarr.Group, name: str) -> zarr.Array:
    array = data[name]
    if not isinstance(array, zarr.Array):
        raise RecordingError(f"{name} in {data.store_path} is not an array: the recording is damaged")
    return array


def _stored(name: str, values: np.ndarray, dtype: str | None) -> np.ndarray:
    if not name or "/" in name or name.startswith("."):
        raise RecordingError(f"{name!r} cannot name an array: no '/', no '.' in front, not empty")
    if values.dtype.kind not in "biuf":
        raise RecordingError(f"{name} has dtype {values.dtype}: a recording holds numbers")
    if dtype == BFLOAT16:
        return values if values.dtype == np.uint16 else to_bfloat16(values)
    return values
