"""The chunks of a long-term copy: one file of equal slots, written one after the other, round and round.

Chunk k holds rows [k C, (k + 1) C) of all n envs and lies in slot k % slots. A chunk is a header and its content: of
every key, in the order of the schema, (n, C, bytes of a step). The header says what the content must be, so that
nothing that was torn, damaged, overwritten or put elsewhere is ever taken for it:

    magic, version, rows C, id of the replay, uuid, uuid of the chunk that follows, first row, bytes and crc32 of the
    content, crc32 of the header

There are more slots than the replay needs: the chunks that a restart reads outlive an eighth of the replay of new ones.
"""

from __future__ import annotations

import math
import os
import struct
import weakref
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torchmem.training import long_term_file
from torchmem.training.replay_size import Schema, bytes_per_step, torch_dtype

MAGIC, VERSION = b"tmchunk\n", 1
FIELDS = struct.Struct("<8sII16s16s16sQQI")
HEADER_BYTES = 128  # the rest is zeros
CHUNK_BYTES = 16 << 20  # what a network disk writes at full speed, and little enough to hold up no training
PAGE = 4096


@dataclass(frozen=True)
class Layout:
    """Numbers of a ring: n envs, `rows` of the replay, rows of a chunk, slots, bytes of a step of each key."""

    n: int
    rows: int
    chunk: int
    slots: int
    widths: tuple[int, ...]

    @classmethod
    def plan(cls, schema: Schema, rows: int, n: int) -> Layout:
        """Chunks of about 16 MiB, at least eight to the replay."""
        chunk = max(1, min(CHUNK_BYTES // (bytes_per_step(schema) * n), rows // 8))
        needed = -(-rows // chunk) + 1  # the first one held is cut by the end of the replay
        return cls.of(schema, rows, n, chunk, needed + max(2, needed // 8))

    @classmethod
    def of(cls, schema: Schema, rows: int, n: int, chunk: int, slots: int) -> Layout:
        """The layout with these numbers."""
        widths = tuple(math.prod(shape) * torch_dtype(dtype).itemsize for shape, dtype in schema.values())
        return cls(n, rows, chunk, slots, widths)

    @property
    def content_bytes(self) -> int:
        return self.chunk * self.n * sum(self.widths)

    @property
    def slot_bytes(self) -> int:
        return -(-(HEADER_BYTES + self.content_bytes) // PAGE) * PAGE

    @property
    def bytes(self) -> int:
        """Disk that ring and commit records take once the ring is full."""
        return (self.slots + 2) * self.slot_bytes + 2 * 64 * self.slots


class Entry(NamedTuple):
    """What must be known of a chunk to find it again: uuid as hex, crc32 of its content."""

    uuid: str
    crc: int


class Ring:
    """The file of slots of the replay `token`."""

    def __init__(self, file: Path, layout: Layout, token: str) -> None:
        self.file, self.layout = file, layout
        self._token = token.encode()[:16]
        self._handle = long_term_file.open_file(file)
        self.close = weakref.finalize(self, os.close, self._handle)

    def write(self, number: int, uuid: str, successor: str, content: Sequence[Any]) -> Entry:
        """Put chunk `number` in its slot, over whatever is there. Raises OSError; the slot then holds nothing."""
        crc, size = 0, 0
        for block in content:
            view = memoryview(block).cast("B")
            crc, size = zlib.crc32(view, crc), size + len(view)
        if size != self.layout.content_bytes:
            raise ValueError(f"a chunk of {size} bytes, the ring of {self.file} has {self.layout.content_bytes}")
        header = self._header(number, uuid, successor, crc)
        long_term_file.write_at(self._handle, self._place(number), [header, *content])
        return Entry(uuid, crc)

    def holds(self, number: int, entry: Entry, successor: str) -> bool:
        """Whether the slot's header is that of this chunk. Says nothing of the content."""
        found = long_term_file.read_at(self._handle, self._place(number), HEADER_BYTES)
        return found == self._header(number, entry.uuid, successor, entry.crc)

    def content(self, number: int, entry: Entry) -> bytes | None:
        """The content of a chunk whose header is right; None where it is not what the sum says."""
        place, size = self._place(number) + HEADER_BYTES, self.layout.content_bytes
        found = long_term_file.read_at(self._handle, place, size)
        return found if len(found) == size and zlib.crc32(found) == entry.crc else None

    def sync(self) -> None:
        long_term_file.sync(self._handle)

    def _place(self, number: int) -> int:
        return number % self.layout.slots * self.layout.slot_bytes

    def _header(self, number: int, uuid: str, successor: str, crc: int) -> bytes:
        chunk = self.layout.chunk
        ids = (self._token, bytes.fromhex(uuid), bytes.fromhex(successor))
        fields = FIELDS.pack(MAGIC, VERSION, chunk, *ids, number * chunk, self.layout.content_bytes, crc)
        return (fields + struct.pack("<I", zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")
