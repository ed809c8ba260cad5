"""Runs -> learning curves: which runs are seeds of one another, and how seeds become a line and a band."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from torchmem.training.logger import read_metrics
from torchmem.training.run_config import without_free_fields
from torchmem.training.typed import ConfigError, flatten, nearest
from torchmem.types import EnvSpec

Series = tuple[np.ndarray, np.ndarray]  # x (N,) ascending, y (N,), float64


@dataclasses.dataclass(frozen=True)
class Run:
    """One run folder, read."""

    folder: Path
    config: Mapping[str, Any]  # dotted name -> value
    rows: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    spec: EnvSpec | None  # None where the run saved no env_spec.json

    def series(self, x: str, y: str) -> Series:
        """The rows that have both. Raises ConfigError naming the nearest metric where none has."""
        rows = [r for r in self.rows if isinstance(r.get(x), (int, float)) and isinstance(r.get(y), (int, float))]
        if not rows:
            known = sorted({k for r in self.rows for k, v in r.items() if isinstance(v, (int, float))})
            missing = y if any(x in r for r in self.rows) else x
            text = f" (it has: {', '.join(known)})" if len(known) <= 24 else ""
            raise ConfigError(f"{self.folder} has no metric '{missing}'{nearest(missing, known)}{text}")
        order = np.argsort([r[x] for r in rows], kind="stable")
        return np.array([float(rows[i][x]) for i in order]), np.array([float(rows[i][y]) for i in order])


@dataclasses.dataclass(frozen=True)
class Curve:
    """Seeds of one configuration, summed up. Arrays are (N,)."""

    label: str
    x: np.ndarray
    low: np.ndarray  # 25th percentile over seeds
    middle: np.ndarray  # median
    high: np.ndarray  # 75th percentile
    seeds: Sequence[Series]


def read_run(folder: str | Path) -> Run:
    """Raises ConfigError naming the file that a run folder should hold and this one does not."""
    folder = Path(folder)
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise ConfigError(f"{folder} is not a run: it holds no {name}")
    config = json.loads((folder / "config.json").read_text())
    spec = folder / "env_spec.json"
    return Run(
        folder,
        flatten(config),
        read_metrics(folder),
        EnvSpec.from_json(json.loads(spec.read_text())) if spec.is_file() else None,
    )


def group_seeds(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    """(label, runs that differ only by seed), in the order given. Labels name what differs between the groups."""
    groups: dict[str, list[Run]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for run in runs:
        config = {k: v for k, v in without_free_fields(run.config).items() if k != "seed"}
        key = json.dumps(config, sort_keys=True)
        groups.setdefault(key, []).append(run)
        settings[key] = config
    names = sorted({n for s in settings.values() for n in s})
    differing = [n for n in names if len({json.dumps(s.get(n)) for s in settings.values()}) > 1]
    # A changed group explains all the fields that come with it.
    for group in ("agent", "env"):
        if f"groups.{group}" in differing:
            differing = [n for n in differing if not n.startswith(f"{group}.")]
    labelled = []
    for members in groups.values():
        config = members[0].config
        parts = [f"{n.removeprefix('groups.')}={config.get(n)}" for n in differing[:3]] + ["..."] * (len(differing) > 3)
        plain = "-".join(str(config.get(f"groups.{g}", "?")) for g in ("agent", "env", "size"))
        labelled.append((" ".join(parts) or plain, members))
    return labelled


def aggregate(label: str, seeds: Sequence[Series]) -> Curve:
    """Median and interquartile range over seeds.

    Rule: each seed is a step function (a value holds from its row until the seed's next row). They are read at every x
    at which any seed has a row, from the x where the last of them has begun to the x where the first of them ends, so
    that every point of the curve rests on all seeds. Percentiles interpolate linearly. A NaN of one seed leaves a gap.
    """
    start, stop = max(x[0] for x, _ in seeds), min(x[-1] for x, _ in seeds)
    if start > stop:
        raise ConfigError(
            f"the seeds of '{label}' have no x in common: the last begins at {start:g}, the first ends at {stop:g}"
        )
    grid = np.unique(np.concatenate([x for x, _ in seeds]))
    grid = grid[(grid >= start) & (grid <= stop)]
    values = np.stack([y[np.searchsorted(x, grid, side="right") - 1] for x, y in seeds])  # (seeds, N)
    low, middle, high = np.percentile(values, [25, 50, 75], axis=0)
    return Curve(label, grid, low, middle, high, list(seeds))
