"""Logs of vviggyy/dreamerv3f (and of danijar/dreamerv3): metrics.jsonl and scores.jsonl, as a run that can be drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmem.errors import TorchmemError
from torchmem.files import atomic_write

RENAMED = {"step": "env_steps", "episode/score": "episode/return"}
ACHIEVEMENTS = 22  # of Crafter


class LogsError(TorchmemError):
    """A log is missing or damaged; the message names file and line."""


def read_rows(path: str | Path) -> list[dict[str, Any]]:
    """One dict per line of a .jsonl, each with a `step`. Raises LogsError naming the line."""
    rows = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise LogsError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int | float):
            raise LogsError(f"{path}, line {number} has no step: it is no log of dreamerv3")
        rows.append(row)
    return rows


def import_logs(logdir: str | Path, out: str | Path) -> Path:
    """Write the run folder `out` (config.json, metrics.jsonl) for `torchmem plot` and read_metrics. Returns `out`.

    Steps become env_steps, episode/score becomes episode/return, other names stay. Where both logs hold an episode it
    is taken once. Raises LogsError, FileExistsError where `out` holds something.
    """
    logdir, out = Path(logdir), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} already exists: name a new folder for the imported logs")
    files = [path for name in ("metrics.jsonl", "scores.jsonl") if (path := logdir / name).is_file()]
    if not files:
        raise LogsError(f"{logdir} holds neither metrics.jsonl nor scores.jsonl")
    rows: dict[tuple[float, bool], dict[str, Any]] = {}
    for path in files:
        for row in read_rows(path):
            known = rows.setdefault((row["step"], "episode/score" in row), {})
            known.update({RENAMED.get(key, key): value for key, value in row.items() if value is not None})
    text = "".join(json.dumps(rows[key]) + "\n" for key in sorted(rows))
    atomic_write(out / "config.json", json.dumps({"imported": str(logdir)}) + "\n")
    atomic_write(out / "metrics.jsonl", text)
    return out


def crafter_score(success: Mapping[str, float] | Sequence[float]) -> float:
    """Crafter's score in percent, 0 to 100, from the success rates of its 22 achievements in percent.

    exp(mean(ln(1 + s))) - 1 (Hafner 2021, arXiv:2109.06780), a geometric mean that no single zero sends to zero. The
    rates are over all episodes of the training budget. Raises ValueError for other than 22 rates within 0 to 100.
    """
    rates = np.array(list(success.values() if isinstance(success, Mapping) else success), np.float64)
    if rates.shape != (ACHIEVEMENTS,) or not ((rates >= 0) & (rates <= 100)).all():
        raise ValueError(f"crafter_score needs {ACHIEVEMENTS} success rates in percent, got {rates.tolist()}")
    return float(np.exp(np.log1p(rates).mean()) - 1)
