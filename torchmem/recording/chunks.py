"""Chunks to disk, by the zarr 3 format but without zarr's machinery and past the page cache.

A recording is written beside an agent that needs all cores. For dense floats zarr's event loop, a compressor that gains
nothing, and above all filling fresh pages of the cache cost ten times the writing itself. The cache is no loss: the
values are written once, in big pieces, and would only push out what others use.
"""

from __future__ import annotations

import errno
import functools
import itertools
import mmap
import os
import threading
from pathlib import Path

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec, BloscShuffle

PAGE = 4096  # address, offset and length of a direct write are multiples of it
DIRECT: int | None = getattr(os, "O_DIRECT", None)  # Linux
TRIAL_BYTES, WORTH = 2**18, 1.5  # compress what the start of the first episode says shrinks by this factor

_numbers = itertools.count()
_scratch = threading.local()


def codec(sample: np.ndarray) -> BloscCodec:
    """lz4; equal bits go side by side first where that is worth its time: one-hot, flags, images, not dense floats.

    Chunks that are not full end in zeros, which lz4 alone takes out.
    """
    content = np.ascontiguousarray(sample).tobytes()[:TRIAL_BYTES]
    packed = Blosc(cname="lz4", clevel=1, shuffle=Blosc.BITSHUFFLE).encode(content)
    worth = len(packed) * WORTH <= len(content)
    return BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle" if worth else "noshuffle")


def write_rows(array: zarr.Array, folder: Path, start: int, rows: np.ndarray) -> None:
    """Put rows (n, ...) at `start` of an array that `codec` made. folder: where the array lies. Raises OSError.

    A chunk that was begun earlier is read, filled up and written again; rows after the last one stay zeros.
    """
    stop, length = start + len(rows), array.chunks[0]
    if not rows.size:
        return
    dense = any(getattr(c, "shuffle", None) == BloscShuffle.noshuffle for c in array.compressors)
    for number in range(start // length, -(-stop // length)):
        first = number * length
        file = folder / array.metadata.encode_chunk_key((number, *[0] * (array.ndim - 1)))
        inside = rows[max(first - start, 0) : first + length - start]
        if len(inside) == length:
            put(file, *_encoded(np.ascontiguousarray(inside), dense))
        else:
            put(file, _packed(_joined(file, max(start - first, 0), inside, length), dense))


def _joined(file: Path, held: int, rows: np.ndarray, length: int) -> np.ndarray:
    """One chunk: `held` rows that are in the file, then `rows`, then zeros."""
    chunk = np.zeros((length, *rows.shape[1:]), rows.dtype)
    if held:
        chunk[:held] = np.frombuffer(Blosc().decode(file.read_bytes()), rows.dtype).reshape(chunk.shape)[:held]
    chunk[held : held + len(rows)] = rows
    return chunk


def _packed(chunk: np.ndarray, dense: bool) -> bytes:
    return Blosc(cname="lz4", clevel=1, shuffle=Blosc.NOSHUFFLE if dense else Blosc.BITSHUFFLE).encode(chunk)


def _encoded(chunk: np.ndarray, dense: bool) -> tuple[bytes | memoryview, ...]:
    """What Blosc makes of a full chunk, in parts. Dense floats stay as they are behind the header of its level 0."""
    if dense:
        return _header(chunk.nbytes, chunk.itemsize), chunk.reshape(-1).view(np.uint8).data
    return (_packed(chunk, dense),)


@functools.cache
def _header(size: int, itemsize: int) -> bytes:
    """Of `size` bytes at level 0, which is a plain copy behind a header that depends on the sizes alone."""
    encoded = Blosc(cname="lz4", clevel=0, shuffle=Blosc.NOSHUFFLE).encode(np.zeros(size // itemsize, f"u{itemsize}"))
    return encoded[: len(encoded) - size]


def put(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file past the page cache where system and file system know how, else through it.

    A reader sees the old file or the whole new one. Raises OSError (a full disk), and the old file is untouched. Not
    synced, unlike `atomic_write`: rows count only once recording.json tells of them, and that is synced after them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{next(_numbers)}.part")
    try:
        if not put_direct(part, *parts):
            with open(part, "wb") as file:
                file.writelines(parts)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def put_direct(path: Path, *parts: bytes | memoryview) -> bool:
    """False, and nothing of worth at `path`, where it cannot be written past the page cache."""
    if DIRECT is None:
        return False
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | DIRECT, 0o666)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise
    try:
        length = sum(map(len, parts))
        size = -(-length // PAGE) * PAGE
        pages = _pages(size)
        at = 0
        for part in parts:
            pages[at : at + len(part)] = np.frombuffer(part, np.uint8)
            at += len(part)
        pages[at:size] = 0
        done = 0
        while done < size:
            try:
                count = os.write(handle, pages[done:size].data)
            except OSError as error:
                if error.errno == errno.EINVAL and done == 0:
                    return False
                raise
            if count % PAGE:  # a nearly full disk: what follows could not be aligned any more
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done += count
        os.ftruncate(handle, length)
        return True
    finally:
        os.close(handle)


def _pages(size: int) -> np.ndarray:
    """(>= size,) uint8 that starts at a page; used again by the next chunk of this thread."""
    held: np.ndarray | None = getattr(_scratch, "pages", None)
    if held is None or len(held) < size:
        held = _scratch.pages = np.frombuffer(memoryview(mmap.mmap(-1, size)), np.uint8)
    return held
