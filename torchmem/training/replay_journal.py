"""The undo journal: what replay cells held at a snapshot, written down before they are overwritten.

Epoch k is the time after snapshot k, and file `<k>.undo` holds what the cells overwritten in it held at snapshot k,
each cell once. Undoing files k, newest first, gives snapshot k back. A record goes to the kernel before the
cells change, so a process killed at any instant leaves either a whole record, or a torn one and unchanged cells.
(That is a promise about processes. After a power cut the kernel may have lost a record and kept the change.)

File: header (magic, token), then records: head, cell numbers int64, cell contents. Head: group of keys, number of
cells, bytes of contents, crc32 of numbers and contents, crc32 of the head itself.
"""

from __future__ import annotations

import os
import secrets
import struct
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from torchmem.files import atomic_write

MAGIC = b"tmundo1\n"
TOKEN_BYTES = 16
HEADER_BYTES = len(MAGIC) + TOKEN_BYTES
FIELDS = struct.Struct("<BIQI")  # group, cells, content bytes, crc32 of the body
HEAD_BYTES = FIELDS.size + 4


class Journal:
    """One file being appended to."""

    def __init__(self, path: Path) -> None:
        """Open `path`, which `create` or `reopen` has put in order."""
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self.close = weakref.finalize(self, os.close, self._file)  # once, by hand or when nobody holds the journal
        self.size = os.fstat(self._file).st_size

    @classmethod
    def create(cls, path: Path, token: str = "") -> tuple[Journal, str]:
        """A new, empty journal and its token (default: a new one), by which a snapshot knows its own journal."""
        content = bytes.fromhex(token) or secrets.token_bytes(TOKEN_BYTES)
        atomic_write(path, MAGIC + content)
        return cls(path), content.hex()

    @classmethod
    def emptied(cls, path: Path) -> Journal:
        """The journal at `path` with its records dropped, once they have been undone."""
        os.truncate(path, HEADER_BYTES)
        return cls(path)

    def append(self, group: int, cells: np.ndarray, contents: list[np.ndarray]) -> None:
        """Write one record: cells int64 (C,), contents a list of uint8 (C, width).

        Raises OSError where the disk is full, with the journal as it was before; the caller must then not overwrite.
        """
        cells = np.ascontiguousarray(cells, dtype="<i8")
        blocks = [np.ascontiguousarray(block).data.cast("B") for block in (cells, *contents)]
        crc = 0
        for block in blocks:
            crc = zlib.crc32(block, crc)
        fields = FIELDS.pack(group, cells.size, sum(map(len, blocks[1:])), crc)
        head = memoryview(fields + struct.pack("<I", zlib.crc32(fields)))
        try:
            for block in (head, *blocks):
                while len(block):
                    block = block[os.write(self._file, block) :]
        except OSError as error:
            os.ftruncate(self._file, self.size)
            raise OSError(
                error.errno,
                f"could not write the undo journal {self.path}: {error.strerror}. Nothing was overwritten: the replay "
                "is whole and the last snapshot can be resumed; free disk space, or snapshot more often",
            ) from error
        self.size += sum(map(len, (head, *blocks)))

    def sync(self) -> None:
        os.fsync(self._file)


def token_of(path: Path) -> str:
    """The token of the journal at `path`. Raises ValueError where it is no journal."""
    with open(path, "rb") as file:
        header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES or not header.startswith(MAGIC):
        raise ValueError(f"{path} is no replay journal")
    return header[len(MAGIC) :].hex()


def records(path: Path) -> Iterator[tuple[int, np.ndarray, bytes]]:
    """Group, cell numbers and contents of each whole record of the journal at `path`.

    A torn record at the end is left out: the process died while writing it, before it touched the cells. Raises
    ValueError for a whole record with a wrong sum, which no killed process leaves.
    """
    total = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(HEADER_BYTES)
        while len(head := file.read(HEAD_BYTES)) == HEAD_BYTES:
            group, count, size, crc = FIELDS.unpack(head[: FIELDS.size])
            if zlib.crc32(head[: FIELDS.size]) != int.from_bytes(head[FIELDS.size :], "little"):
                raise ValueError(_damage(path, file.tell()))
            if file.tell() + 8 * count + size > total:
                return
            body = file.read(8 * count + size)
            if zlib.crc32(body) != crc:
                raise ValueError(_damage(path, file.tell()))
            yield group, np.frombuffer(body, "<i8", count), body[8 * count :]


def _damage(path: Path, place: int) -> str:
    return (
        f"replay journal {path} is damaged before byte {place} (a power cut, or the disk): this replay can not be "
        "brought back to its snapshot exactly; start a new run from its agent, with an empty replay"
    )
