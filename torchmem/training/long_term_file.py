"""Bytes to and from an open file: whole, or an OSError. Tests put their faults here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any


def open_file(path: str | os.PathLike[str]) -> int:
    """A handle to read and write `path`, which is made where it is missing."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)


def write_at(file: int, place: int, blocks: Sequence[Any]) -> None:
    """Write the blocks (anything that has bytes) one behind the other from byte `place` on. Raises OSError.

    A disk that is nearly full takes a part of a write and says so only in the count it returns.
    """
    for block in blocks:
        left = memoryview(block).cast("B")
        while len(left):
            done = os.pwrite(file, left, place)
            place, left = place + done, left[done:]


def read_at(file: int, place: int, size: int) -> bytes:
    """`size` bytes from `place` on; fewer where the file ends before."""
    parts = []
    while size and (part := os.pread(file, size, place)):
        parts.append(part)
        place, size = place + len(part), size - len(part)
    return b"".join(parts)


def sync(file: int) -> None:
    """Come back when everything written is on the disk. Raises OSError; then nothing since the last sync is sure."""
    os.fsync(file)
