"""How many bytes a replay takes, and how many steps a disk holds: known, and printed, before the first step."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

Schema = Mapping[str, tuple[tuple[int, ...], str]]  # key -> (shape without batch or time, dtype name)

PAPER_CAPACITY = 5_000_000  # DreamerV3's default number of replay items: "auto" never takes more


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype called `name`. Raises ValueError for a word that is not one."""
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no torch dtype; a replay schema holds names such as 'uint8' or 'float32'")
    return dtype


def bytes_per_step(schema: Schema) -> int:
    """Bytes one step of one env takes on disk."""
    return sum(math.prod(shape) * torch_dtype(dtype).itemsize for shape, dtype in schema.values())


def estimate(schema: Schema, capacity: int) -> int:
    """Bytes that `capacity` steps take on disk, taken at the start.

    The undo journal comes on top: between two snapshots it holds each overwritten step at most once, so never more
    than this number again per snapshot that is not committed yet; usually far less.
    """
    return bytes_per_step(schema) * capacity


def free_bytes(directory: str | Path) -> int:
    """Bytes free on the disk that holds `directory`, which need not exist yet."""
    place = Path(directory).resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def auto_capacity(
    schema: Schema, directory: str | Path, long_term: str | Path | None = None, limit: int = PAPER_CAPACITY
) -> int:
    """The largest number of steps that fits half the free disk, at most `limit`; the other half is for the journal.

    long_term: folder of the second copy, if there is one. It has no journal, but an eighth of spare chunks.
    """
    steps = min(limit, free_bytes(directory) // 2 // bytes_per_step(schema))
    return steps if long_term is None else min(steps, free_bytes(long_term) * 2 // 3 // bytes_per_step(schema))


def readable(count: float) -> str:
    """Bytes for people: 12345678 -> '12.3 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
