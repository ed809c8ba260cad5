"""metrics.jsonl is the truth; TensorBoard and W&B are copies that may fail without harm.

One row per `log` call: all clocks, `time` (UNIX seconds), then the metrics. Rows are valid JSON: a number that is not
finite is written as the string "nan", "inf" or "-inf", which float() reads back. A row is written by one append, so a
crash leaves at most one torn line at the end, which the next start cuts off.

Where the disk is full, jsonl stops the run with one clear error (a run whose record has holes is worth less than a run
that waits; snapshots are atomic, so the last one stands), and a sink is given up with one warning.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from torchmem.files import atomic_write
from torchmem.training.clock import Clock
from torchmem.training.sinks import Sink, open_sinks
from torchmem.video import gif_bytes, png_bytes

log = logging.getLogger("torchmem")
METRICS, DROPPED = "metrics.jsonl", "metrics.dropped.jsonl"


class Logger:
    """Writes rows, images and videos of one run into its folder. Only rank 0 makes one.

    watermark: byte offset in metrics.jsonl that belongs to the snapshot being resumed; later rows are moved to
    metrics.dropped.jsonl, because the steps they tell of will be done again. None keeps every whole row.
    Raises OSError naming the file where the disk is full, ValueError for a watermark that does not fit the file.
    """

    def __init__(
        self,
        logdir: str | Path,
        clock: Clock,
        sinks: Sequence[str] = ("tensorboard",),
        *,
        config: Mapping[str, Any] | None = None,
        watermark: int | None = None,
    ) -> None:
        self.logdir, self.clock = Path(logdir), clock
        self.logdir.mkdir(parents=True, exist_ok=True)
        self.path = self.logdir / METRICS
        _rewind(self.path, watermark)
        self._file: IO[bytes] = open(self.path, "ab", buffering=0)
        self._sinks: list[Sink] = open_sinks(sinks, self.logdir, clock.env_steps, config or {})

    def log(self, metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Append one row. metrics: name -> number, 0-d array or tensor, or text. Returns the row as written."""
        values = {prefix + k: _scalar(prefix + k, v) for k, v in metrics.items()}
        clocks = self.clock.row()
        clash = set(values) & ({*clocks, "time"})
        if clash:
            raise ValueError(f"metrics {sorted(clash)} would hide the clocks of the same name")
        row = {**clocks, "time": round(time.time(), 3), **values}
        self._append(json.dumps({k: _finite(v) for k, v in row.items()}, allow_nan=False).encode() + b"\n")
        numbers = {k: v for k, v in values.items() if isinstance(v, float)}
        self._each("scalars", {**numbers, **{f"clock/{k}": float(v) for k, v in clocks.items()}})
        return row

    def video(self, name: str, frames: np.ndarray, fps: float = 10.0) -> Path:
        """frames: (T, H, W, 3) uint8. Writes videos/<name>-<env steps>.gif and shows it in the sinks."""
        content = gif_bytes(frames, fps)
        path = self._picture(name, "gif", content)
        self._each("picture", name, content, frames.shape[1], frames.shape[2], path)
        return path

    def image(self, name: str, image: np.ndarray) -> Path:
        """image: (H, W, 3) uint8. Writes videos/<name>-<env steps>.png and shows it in the sinks."""
        content = png_bytes(image)
        path = self._picture(name, "png", content)
        self._each("picture", name, content, image.shape[0], image.shape[1], path)
        return path

    def watermark(self) -> int:
        """Byte offset after the last row, once that row is on the disk: goes into the snapshot."""
        os.fsync(self._file.fileno())
        return self.path.stat().st_size

    def close(self) -> None:
        if not self._file.closed:
            self._each("close")
            self._file.close()

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file.fileno()).st_size
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            os.ftruncate(self._file.fileno(), size)  # no half row
            raise OSError(
                error.errno,
                f"could not write {self.path}: {error.strerror}. Earlier rows and the last snapshot are whole; "
                f"free some space, then start the same command again to resume",
            ) from error

    def _picture(self, name: str, suffix: str, content: bytes) -> Path:
        stem = name.replace("/", "_")
        return atomic_write(self.logdir / "videos" / f"{stem}-{self.clock.env_steps:010d}.{suffix}", content)

    def _each(self, method: str, *arguments: Any) -> None:
        for sink in list(self._sinks):
            try:
                getattr(sink, method)(*arguments, **({} if method == "close" else {"step": self.clock.env_steps}))
            except Exception as error:  # whatever a third-party writer raises, the run does not depend on it
                self._sinks.remove(sink)
                log.warning("%s gives up (%s: %s); %s goes on", sink.name, type(error).__name__, error, METRICS)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl (or of the run folder that holds one); a torn last line is left out.

    Raises FileNotFoundError naming the file, ValueError naming the line that is not JSON.
    """
    path = Path(path)
    path = path / METRICS if path.is_dir() else path
    rows = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # the last piece is empty, or a line still being written
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
        rows.append({k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in row.items()})
    return rows


def _rewind(path: Path, watermark: int | None) -> None:
    """Cut metrics.jsonl back to `watermark` bytes, or to its last whole row; what is cut is kept beside it."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    keep = whole if watermark is None else watermark
    if keep > whole or (keep and content[keep - 1 : keep] != b"\n"):
        raise ValueError(
            f"{path} has {whole} bytes of whole rows, which does not fit the snapshot's {keep}: it was edited or "
            f"replaced; put the old file back"
        )
    if keep == len(content):
        return
    # Keep first, cut second: a crash in between repeats rows in the dropped file and loses none.
    with open(path.with_name(DROPPED), "ab") as dropped:
        dropped.write(content[keep:whole])
        dropped.flush()
        os.fsync(dropped.fileno())
    os.truncate(path, keep)


def _scalar(name: str, value: Any) -> float | str:
    if isinstance(value, str):
        return value
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        kind = f"{type(value).__name__} {tuple(getattr(value, 'shape', ()))}"
        raise ValueError(f"metric '{name}' is not one number: {kind}") from error


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
