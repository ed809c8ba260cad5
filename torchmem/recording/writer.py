"""Writes recordings: whole episodes, in big pieces, so that a kill at any instant costs only what was not flushed."""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from torchmem.files import atomic_write
from torchmem.recording.chunks import codec, write_rows
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
from torchmem.recording.tail import Tail
from torchmem.result import Provenance

Values = np.ndarray | list[np.ndarray]

CHUNK_BYTES, ALIGNED = 2**21, 4096
ROOM = 2**16  # steps that arrays are made for: to grow costs milliseconds for each; `finish` trims them
HANDS = 4  # threads that write arrays at once: files are many and small, and each waits for the disk
log = logging.getLogger("torchmem")


class RecordingWriter:
    """Appends episodes to a recording folder; a context manager.

    path: a new or empty folder. control_hz: steps per second. units: name -> unit of sites and covariates.
    sites: what is known of each site beyond its values, such as {"memory": {"dtype": "bfloat16", "pooling": "none"}};
    "dtype" bfloat16 is stored as rounded 16 bits, any other dtype is the array's own. plan: JSON values that say what
    this recording will be once finished. resume: go on with the folder if it holds a recording of the same plan.
    flush_bytes, flush_s: how much is held back at most before a thread begins to write it.

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
        self._waiting: list[tuple[int, int, bool]] = []  # (stop, seed, complete) of episodes not yet committed
        self._tail, self._spare = Tail(), Tail()
        self._thread = ThreadPoolExecutor(1, "torchmem-recording")
        self._hands = ThreadPoolExecutor(HANDS, "torchmem-recording-array")
        self._job: tuple[Tail, int, list[tuple[int, int, bool]]] | None = None  # what the thread is to write
        self._future: Future | None = None
        self._since = time.monotonic()
        self._arrays: dict[str, zarr.Array] = {}
        self._aligned = 1  # steps in the longest chunk of a large array
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
            self._dismiss()
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
            self._align()
            row_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in found["arrays"].values())
            self._tail = Tail(found["steps"], self._flush_bytes // max(row_bytes, 1))

    # State -----------------------------------------------------------------------------------------------------------

    @property
    def episodes(self) -> np.ndarray:
        """(episodes,) of EPISODE: those on disk."""
        return episode_table(self._header["episodes"])

    @property
    def finished(self) -> bool:
        """`finish` was called, in this or an earlier sitting."""
        return self._header["finished"]

    @property
    def busy(self) -> bool:
        """Rows are on their way to disk: the next ones that fill a buffer will have to wait."""
        return self._job is not None and not (self._future is not None and self._future.done())

    # Writing ---------------------------------------------------------------------------------------------------------

    def append(
        self,
        activations: Mapping[str, Values],
        covariates: Mapping[str, Values],
        *,
        seed: int = -1,
        complete: bool = True,
    ) -> None:
        """Add one episode: every array (T, ...), T >= 1, the same names, row shapes and dtypes each time.

        An array may come as a list of pieces. A bfloat16 site takes floats (rounded here) or uint16 (its bits). Nothing
        is kept of the arrays: they are copied. Raises RecordingError naming the array that does not fit.
        """
        given = dict(zip(GROUPS, (activations, covariates), strict=True))
        episode = {}
        for group, arrays in given.items():
            for name, values in arrays.items():
                dtype = self._header["sites"].get(name, {}).get("dtype") if group == "activations" else None
                pieces = values if isinstance(values, list) else [values]
                episode[f"{group}/{name}"] = [_stored(name, np.asarray(piece), dtype) for piece in pieces]
        lengths = {name: sum(len(piece) for piece in pieces) for name, pieces in episode.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise RecordingError(f"an episode needs arrays of one length, at least 1; got {lengths or 'no array'}")
        shapes = {name: [list(pieces[0].shape[1:]), _dtype_name(pieces[0].dtype)] for name, pieces in episode.items()}
        known = self._header["arrays"]
        if known and shapes != known:
            wrong = [n for n in sorted(shapes.keys() | known.keys()) if shapes.get(n) != known.get(n)]
            raise RecordingError(f"{wrong[0]} is {shapes.get(wrong[0])}, earlier episodes had {known.get(wrong[0])}")
        if not self._arrays:
            self._create(shapes, episode)
        self._tail.append(episode, next(iter(lengths.values())))
        self._waiting.append((self._tail.stop, seed, complete))
        if self._tail.nbytes >= self._flush_bytes or time.monotonic() - self._since >= self._flush_s:
            self._hand_off(self._tail.stop // self._aligned * self._aligned)

    def flush(self) -> None:
        """Put all appended episodes on disk."""
        if self._waiting:
            self._hand_off(self._tail.stop)
        self._settle()

    def _hand_off(self, stop: int) -> None:
        """Let the thread write the rows up to `stop`.

        While appending, `stop` is at the end of a chunk: a chunk that is begun on disk would be read and written again.
        """
        self._settle()
        self._since = time.monotonic()
        if stop > self._tail.start:
            self._job = self._tail, stop, [one for one in self._waiting if one[0] <= stop]
            self._tail.pass_on(stop, self._spare)
            self._tail, self._spare = self._spare, self._tail
            self._waiting = [one for one in self._waiting if one[0] > stop]
            self._future = self._thread.submit(self._write, *self._job)

    def _settle(self) -> None:
        """Wait until the thread has written. What went wrong there is raised here, and tried again by the next call."""
        if self._job is None:
            return
        future = self._future = self._future or self._thread.submit(self._write, *self._job)
        try:
            future.result()
        except BaseException:
            if future.done():
                self._future = None
            raise
        self._job = self._future = None

    def _write(self, tail: Tail, stop: int, episodes: list[tuple[int, int, bool]]) -> None:
        """Rows first, then the count that makes the episodes they hold part of the recording."""
        written = [self._hands.submit(self._write_array, name, tail, stop) for name in self._arrays]
        wait(written)  # all of them: none may still write when this is tried again
        for one in written:
            one.result()
        table = {name: list(values) for name, values in self._header["episodes"].items()}
        begin = self._header["steps"]
        for end, seed, complete in episodes:
            row = (begin, end, int(seed), end - begin, bool(complete))
            for name, value in zip(EPISODE.names or (), row, strict=True):
                table[name].append(value)
            begin = end
        if episodes:
            self._commit({"steps": begin, "episodes": table})

    def _write_array(self, name: str, tail: Tail, stop: int) -> None:
        array = self._arrays[name]
        if array.shape[0] < stop:
            array.resize((2 * stop, *array.shape[1:]))
        write_rows(array, self.path / DATA / name, tail.start, tail.rows(name, tail.start, stop))

    def finish(self) -> None:
        """Flush, and mark the plan as done."""
        self.flush()
        list(self._hands.map(lambda a: a.resize((self._header["steps"], *a.shape[1:])), self._arrays.values()))
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
                self._dismiss()
                self._lock.close()

    def _dismiss(self) -> None:
        self._thread.shutdown()
        self._hands.shutdown()

    def __enter__(self) -> RecordingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()  # also after an error: what was appended are whole episodes

    def _create(self, shapes: Mapping[str, list], episode: Mapping[str, list[np.ndarray]]) -> None:
        data = zarr.open_group(self.path / DATA, mode="w")
        arrays = {}
        for name, (shape, dtype) in shapes.items():
            row = math.prod(shape) * np.dtype(dtype).itemsize
            rows = 2 ** int(math.log2(min(max(CHUNK_BYTES // max(row, 1), 16), 2**16)))
            arrays[name] = data.create_array(
                name, shape=(ROOM, *shape), chunks=(rows, *(max(s, 1) for s in shape)), dtype=dtype,
                compressors=codec(episode[name][0]), config={"write_empty_chunks": True},
            )  # fmt: skip
        self._arrays, self._header["arrays"] = arrays, dict(shapes)
        row_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
        self._tail = Tail(0, self._flush_bytes // max(row_bytes, 1))
        self._align()

    def _align(self) -> None:
        # small arrays have long chunks, which are cheap to write again
        rows = [array.chunks[0] for array in self._arrays.values() if array.chunks[0] <= ALIGNED]
        self._aligned = max(rows, default=1)

    def _commit(self, news: Mapping[str, Any]) -> None:
        header = {**self._header, **news}
        atomic_write(self.path / HEADER, json.dumps(header) + "\n")
        self._header = header  # only now: after a full disk the next flush tries the same again


def _array(data: zarr.Group, name: str) -> zarr.Array:
    array = data[name]
    if not isinstance(array, zarr.Array):
        raise RecordingError(f"{name} in {data.store_path} is not an array: the recording is damaged")
    return array


@functools.cache
def _dtype_name(dtype: np.dtype) -> str:
    return dtype.name  # numpy puts the text together each time: a fifth of what short episodes cost


def _stored(name: str, values: np.ndarray, dtype: str | None) -> np.ndarray:
    if not name or "/" in name or name.startswith("."):
        raise RecordingError(f"{name!r} cannot name an array: no '/', no '.' in front, not empty")
    if values.dtype.kind not in "biuf":
        raise RecordingError(f"{name} has dtype {values.dtype}: a recording holds numbers")
    if dtype == BFLOAT16:
        return values if values.dtype == np.uint16 else to_bfloat16(values)
    return values
