"""Commit records of a long-term copy: two files written in turn, so that one of them is always whole.

A record holds the state of the replay's snapshot, the list of chunks that belong to it, and the rows that follow the
last chunk (they do not fill one yet). It is written when the chunks are on the disk, over the record that is not in
force, and counts once its sums are right. File: head (magic, version, sequence, bytes of text and rows, crc32 of both,
crc32 of the head), JSON text, rows.
"""

from __future__ import annotations

import json
import os
import struct
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchmem.files import sync_folder
from torchmem.training import long_term_file
from torchmem.training.long_term_ring import Entry

MAGIC, VERSION = b"tmcommit", 1
FIELDS = struct.Struct("<8sIQQQI")
HEAD_BYTES = FIELDS.size + 4
NAMES = ("commit.a", "commit.b")


@dataclass
class Table:
    """The chunks of a copy: numbers `first`, `first` + 1, ... in a row, and the uuid promised to the next one."""

    first: int
    promised: str
    chunks: list[Entry] = field(default_factory=list)

    @property
    def next(self) -> int:
        """Number of the chunk to be written next."""
        return self.first + len(self.chunks)

    def successor(self, number: int) -> str:
        """The uuid that the header of chunk `number` names as its successor."""
        behind = number + 1 - self.first
        return self.chunks[behind].uuid if behind < len(self.chunks) else self.promised

    def copy(self) -> Table:
        return Table(self.first, self.promised, list(self.chunks))


@dataclass
class Record:
    """One commit: snapshot state, chunks, and `rows` bytes of the `tail` (first row, count) behind them."""

    sequence: int
    name: str
    state: dict[str, Any]
    table: Table
    tail: tuple[int, int]
    rows: bytes


class Commits:
    """The two record files of one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = {name: long_term_file.open_file(folder / name) for name in NAMES}
        self.close = weakref.finalize(self, _close, list(self._files.values()))
        sync_folder(folder)
        found = self.records()
        self._sequence = found[0].sequence if found else 0
        self._in_force = found[0].name if found else NAMES[1]

    def records(self) -> list[Record]:
        """The whole records, newest first; a torn one is left out."""
        found = [record for name in NAMES if (record := self._read(name)) is not None]
        return sorted(found, key=lambda record: -record.sequence)

    def keep(self, record: Record) -> None:
        """Go on from this record, even if it is the older one: the next one is written over the other."""
        self._in_force = record.name

    def void(self) -> None:
        """Make the record that is not in force unreadable, before chunks that it names are overwritten. Raises OSError.

        A write that was reported as failed may have reached the disk all the same.
        """
        file = self._files[NAMES[1 - NAMES.index(self._in_force)]]
        long_term_file.write_at(file, 0, [bytes(HEAD_BYTES)])
        long_term_file.sync(file)

    def write(self, state: Mapping[str, Any], table: Table, tail: tuple[int, int], rows: Sequence[Any]) -> None:
        """Put a record on the disk. Raises OSError; the one in force is then as it was."""
        name = NAMES[1 - NAMES.index(self._in_force)]
        body = {"state": dict(state), "first": table.first, "promised": table.promised, "tail": list(tail)}
        text = json.dumps({**body, "chunks": table.chunks}).encode()
        crc, size = zlib.crc32(text), 0
        for block in rows:
            view = memoryview(block).cast("B")
            crc, size = zlib.crc32(view, crc), size + len(view)
        self._sequence += 1  # even for a record that fails: no two of them share a number
        fields = FIELDS.pack(MAGIC, VERSION, self._sequence, len(text), size, crc)
        head = fields + struct.pack("<I", zlib.crc32(fields))
        long_term_file.write_at(self._files[name], 0, [head, text, *rows])
        long_term_file.sync(self._files[name])
        self._in_force = name

    def _read(self, name: str) -> Record | None:
        file = self._files[name]
        head = long_term_file.read_at(file, 0, HEAD_BYTES)
        if len(head) < HEAD_BYTES or zlib.crc32(head[: FIELDS.size]) != int.from_bytes(head[FIELDS.size :], "little"):
            return None
        magic, version, sequence, length, size, crc = FIELDS.unpack(head[: FIELDS.size])
        if magic != MAGIC:
            return None
        if version != VERSION:
            raise ValueError(f"{self.folder / name} has version {version}; this torchmem reads version {VERSION}")
        body = long_term_file.read_at(file, HEAD_BYTES, length + size)
        if len(body) < length + size or zlib.crc32(body) != crc:
            return None
        told = json.loads(body[:length])
        table = Table(told["first"], told["promised"], [Entry(*entry) for entry in told["chunks"]])
        return Record(sequence, name, told["state"], table, tuple(told["tail"]), body[length:])


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)
