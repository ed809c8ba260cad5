"""The rows of a recording that are not on disk yet, in buffers that are used again: fresh memory costs another copy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class Tail:
    """Rows `start` to `stop` - 1 of every array. start: rows that are on disk already. room: rows to expect."""

    def __init__(self, start: int = 0, room: int = 0) -> None:
        self.start = self.stop = start
        self._room = room
        self._buffers: dict[str, np.ndarray] = {}

    @property
    def nbytes(self) -> int:
        """Of the rows that are held."""
        rows = self.stop - self.start
        return sum(rows * (buffer.nbytes // len(buffer)) for buffer in self._buffers.values())

    def append(self, episode: Mapping[str, list[np.ndarray]], length: int) -> None:
        """Copy `length` rows of every array; each comes in pieces."""
        held = self.stop - self.start
        for name, pieces in episode.items():
            buffer = self._buffers.get(name)
            if buffer is None or len(buffer) < held + length:
                grown = np.empty((max(2 * held, held + length, self._room), *pieces[0].shape[1:]), pieces[0].dtype)
                if buffer is not None:
                    grown[:held] = buffer[:held]
                self._buffers[name] = buffer = grown
            np.concatenate(pieces, out=buffer[held : held + length])
        self.stop += length

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """A view of some of the rows."""
        return self._buffers[name][start - self.start : stop - self.start]

    def pass_on(self, stop: int, other: Tail) -> None:
        """Let `other` hold the rows from `stop` on, in place of what it held."""
        other.start, other.stop = stop, self.stop
        for name, buffer in self._buffers.items():
            rest = buffer[stop - self.start : self.stop - self.start]
            if name not in other._buffers or len(other._buffers[name]) < len(rest):
                other._buffers[name] = np.empty_like(buffer)
            other._buffers[name][: len(rest)] = rest
