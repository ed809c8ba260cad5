"""What a recording is on disk.

    <folder>/recording.json   what is there: episodes, dtypes, units, provenance. Replaced atomically, after the data
    <folder>/data.zarr        activations/<site> and covariates/<name>, each (steps, ...), chunked along steps

recording.json counts the steps that are there. Rows beyond them are room, or come from a writer that was killed: nobody
reads them, and the next writer puts its own there. So a recording is whole at every instant. A finished one has no such
rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from torchmem.errors import TorchmemError

FORMAT = 1
HEADER, DATA, LOCK = "recording.json", "data.zarr", ".lock"
GROUPS = ("activations", "covariates")
# One row per episode: steps start to stop - 1; its reset seed (-1: unknown); complete: it was seen to its end.
EPISODE = np.dtype([("start", "i8"), ("stop", "i8"), ("seed", "i8"), ("length", "i8"), ("complete", "?")])
BFLOAT16 = "bfloat16"  # stored as its 16 bits, read as float32


class RecordingError(TorchmemError):
    """A recording cannot be read or written; the message names the folder or array and the way out."""


def read_header(folder: Path) -> dict[str, Any]:
    """The content of recording.json. Raises RecordingError."""
    file = folder / HEADER
    try:
        header = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise RecordingError(f"{folder} is not a recording: it holds no {HEADER}") from error
    except (ValueError, OSError) as error:
        raise RecordingError(f"{file} cannot be read: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise RecordingError(f"{file} is not a recording of format {FORMAT}: use the torchmem that wrote it")
    return header


def episode_table(columns: Mapping[str, list]) -> np.ndarray:
    """(episodes,) of EPISODE from the columns in recording.json."""
    table = np.zeros(len(columns["start"]), EPISODE)
    for name in EPISODE.names or ():
        table[name] = columns[name]
    return table


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper 16 bits of float32, rounded to nearest even, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # rounding would turn some NaNs into infinities
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """float32 from the 16 bits of bfloat16; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
