"""One recorded array, read from disk only where it is indexed."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchmem.recording.store import BFLOAT16, from_bfloat16


class Column:
    """(steps, *shape) as numpy sees it: `column[3:9]`, `column[mask]`, `column[:, units]`, `np.asarray(column)`.

    Whole rows are read, then the other axes are cut. bfloat16 comes as float32, which holds it exactly.
    """

    def __init__(self, stored: Any, steps: int, dtype: str) -> None:
        self._stored, self._steps, self._bits = stored, steps, dtype == BFLOAT16
        self.used: object = None  # what must live as long as this does

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._steps, *self._stored.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32) if self._bits else self._stored.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self._steps

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        place = next((i for i, k in enumerate(keys) if k is Ellipsis), None)
        if place is not None:
            fill = (slice(None),) * (self.ndim - len(keys) + 1)
            keys = (*keys[:place], *fill, *keys[place + 1 :])
        first, rest = (keys[0], keys[1:]) if keys else (slice(None), ())
        whole = first if isinstance(first, slice) else np.asarray(first)
        if isinstance(whole, np.ndarray) and whole.ndim == 0 and whole.dtype.kind in "iu":
            return self._read_one(int(whole))[rest]
        return self._read(whole)[(slice(None), *rest)] if rest else self._read(whole)

    def _read_one(self, row: int) -> np.ndarray:
        at = row + self._steps if row < 0 else row
        if not 0 <= at < self._steps:
            raise IndexError(f"step {row} is outside the {self._steps} recorded steps")
        return self._read(slice(at, at + 1))[0]

    def _read(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self._steps)
            if step > 0:
                values = self._stored[start : max(stop, start) : step]
            else:  # zarr only goes forward
                chosen = range(start, stop, step)
                values = self._stored[chosen[-1] : chosen[0] + 1 : -step][::-1] if len(chosen) else self._stored[:0]
        else:
            values = self._stored.oindex[self._rows(rows)]
        return from_bfloat16(values) if self._bits else values

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        if rows.dtype == bool:
            if rows.shape != (self._steps,):
                raise IndexError(f"a mask of shape {rows.shape} for {self._steps} recorded steps")
            return np.flatnonzero(rows)
        if rows.ndim != 1 or (rows.size and rows.dtype.kind not in "iu"):
            raise IndexError("index the steps of a recording with a number, a slice, a mask or a list of numbers")
        rows = rows.astype(np.int64)
        rows = np.where(rows < 0, rows + self._steps, rows)
        if rows.size and not (0 <= rows.min() and rows.max() < self._steps):
            raise IndexError(f"steps {rows.min()} to {rows.max()} are not within the {self._steps} recorded steps")
        return rows

    def __repr__(self) -> str:
        return f"<{list(self.shape)} {self.dtype} on disk>"
