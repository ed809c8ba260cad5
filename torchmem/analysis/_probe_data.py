"""What a probe needs of a recording: chosen steps, sites as matrices, labels, groups."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from torchmem.analysis.nulls import spans

Kind = Literal["auto", "ridge", "logistic", "circular"]
CLASSES = 20  # an integer target without a unit that has more values is regressed
COMPARE = {
    ">=": operator.ge, "<=": operator.le, "==": operator.eq, "!=": operator.ne, ">": operator.gt, "<": operator.lt
}  # fmt: skip


class Recorded(Protocol):
    """The part of a Recording that analyses read; whatever has it can be analysed, recordings of animals too."""

    @property
    def activations(self) -> Mapping[str, Any]: ...  # site -> (steps, ...)
    @property
    def covariates(self) -> Mapping[str, Any]: ...  # name -> (steps, ...)
    @property
    def episode(self) -> Any: ...  # (steps,) of ids
    @property
    def units(self) -> Mapping[str, str]: ...


@dataclasses.dataclass(frozen=True)
class ProbeData:
    """The chosen N steps. y: (N, O) float64, or (N, 1) int64 index into `values`. step: of the episode, from 0."""

    recording: Recorded
    rows: np.ndarray
    sites: tuple[str, ...]
    kind: Literal["ridge", "logistic", "circular"]
    y: np.ndarray
    values: np.ndarray | None
    episode: np.ndarray
    group: np.ndarray
    step: np.ndarray
    by: np.ndarray | None

    def matrix(self, name: str) -> np.ndarray:
        """(N, D) of a site or covariate. Raises ValueError where it holds NaN or infinity."""
        column = self.recording.activations.get(name)
        column = self.recording.covariates[name] if column is None else column
        every = len(self.rows) == len(column)
        chosen = np.asarray(column[:] if every else column[self.rows]).reshape(len(self.rows), -1)
        if chosen.dtype.kind in "fc" and not np.isfinite(chosen).all():
            raise ValueError(f"{name} holds NaN or infinity in the chosen steps: leave those out with where=")
        return chosen


def lookup(columns: Mapping[str, Any], name: str, what: str) -> np.ndarray:
    if name not in columns:
        near = difflib.get_close_matches(name, list(columns), 1)
        hint = f"did you mean {near[0]!r}? It" if near else "it"
        raise ValueError(f"no {what} {name!r} in this recording; {hint} has {', '.join(columns) or 'none'}")
    return np.asarray(columns[name][:])


def find_sites(recording: Recorded, patterns: str | Sequence[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        hits = fnmatch.filter(recording.activations, pattern)
        if not hits:
            lookup(recording.activations, pattern, "site")
        found.update(dict.fromkeys(hits))
    if not found:
        raise ValueError(f"sites is empty; there are {', '.join(recording.activations)}")
    return tuple(found)


def where_mask(recording: Recorded, where: str | Sequence[str] | np.ndarray | None) -> np.ndarray:
    """(steps,) bool of the conditions, all of which must hold."""
    steps = len(recording.episode)
    chosen = np.ones(steps, bool)
    if where is None:
        return chosen
    if isinstance(where, np.ndarray):
        if where.dtype != bool or where.shape != (steps,):
            raise ValueError(f"where: expected {steps} booleans, got {where.dtype} {where.shape}")
        return where.copy()
    for text in [where] if isinstance(where, str) else where:
        match = re.fullmatch(r"\s*([\w./-]+?)\s*(?:(>=|<=|==|!=|>|<)\s*(-?[\w.+-]+))?\s*", text)
        if match is None:
            raise ValueError(f"where: {text!r} is neither the name of a covariate nor like 'steps_since_cue >= 0'")
        name, sign, value = match.groups()
        column = lookup(recording.covariates, name, "covariate")
        if column.ndim != 1:
            raise ValueError(f"where: {name} has shape {column.shape[1:]} per step, which cannot be compared")
        try:
            chosen &= COMPARE[sign](column, float(value)) if sign else column.astype(bool)
        except ValueError:
            raise ValueError(f"where: {value!r} in {text!r} is not a number") from None
    return chosen


def _kind(y: np.ndarray, unit: str) -> Literal["ridge", "logistic", "circular"]:
    if unit == "rad":
        return "circular"
    named = y.dtype.kind in "biu" and re.match(r"-?\d+ \w", unit)  # "0 night to 1 day" is a number of daylight
    if y.shape[1] == 1 and (y.dtype == bool or unit in ("bool", "mask") or named):
        return "logistic"  # "0 key, 1 ball"
    if unit or y.dtype.kind not in "iu" or y.shape[1] > 1:
        return "ridge"
    return "logistic" if len(np.unique(y)) <= CLASSES else "ridge"


def read_probe_data(
    recording: Recorded,
    sites: str | Sequence[str],
    target: str | np.ndarray,
    *,
    kind: Kind = "auto",
    groups: str | np.ndarray = "episode",
    by: str | None = None,
    where: str | Sequence[str] | np.ndarray | None = None,
    values: np.ndarray | None = None,
) -> ProbeData:
    """See `fit_probe` for the arguments. values: the classes to use, where another recording has set them."""
    chosen = where_mask(recording, where)
    if not chosen.any():
        raise ValueError(f"where={where!r} leaves no step")
    rows, steps, episode = np.flatnonzero(chosen), len(chosen), np.asarray(recording.episode)
    name = target if isinstance(target, str) else "target"
    column = lookup(recording.covariates, target, "covariate") if isinstance(target, str) else np.asarray(target)
    if len(column) != steps:
        raise ValueError(f"target has {len(column)} steps, the recording {steps}")
    y = column.reshape(steps, -1)[rows]
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        bad = int((~np.isfinite(y)).any(1).sum())
        raise ValueError(f"{name} is NaN or infinite at {bad} of {len(y)} chosen steps: leave those out with where=")
    if (y == y[0]).all():
        at = "in all chosen steps" if where is not None else "in the whole recording"
        raise ValueError(f"{name} is {y[0].tolist()} {at}: there is nothing to decode")
    unit = recording.units.get(name, "") if isinstance(target, str) else ""
    if kind == "auto":
        kind = _kind(y, unit)
    if kind == "logistic":
        if y.shape[1] > 1:
            raise ValueError(f"{name} has {y.shape[1]} columns; kind='logistic' takes one: probe them one by one")
        values = np.unique(y) if values is None else values
        if not np.isin(y, values).all():
            raise ValueError(f"{name} has values {np.setdiff1d(y, values).tolist()} that the trained recording lacks")
        if len(values) * 2 > len(y):
            raise ValueError(f"{name} has {len(values)} different values in {len(y)} steps: use kind='ridge'")
        y = np.searchsorted(values, y)
    else:
        values = None
        y = y.astype(np.float64)
        y = np.concatenate([np.cos(y), np.sin(y)], 1) if kind == "circular" else y
    if isinstance(groups, str):
        group = episode if groups == "episode" else lookup(recording.covariates, groups, "covariate")
    else:
        group = np.asarray(groups)
    if group.shape != (steps,):
        raise ValueError(f"groups: expected one id for each of the {steps} steps, got shape {group.shape}")
    step = np.empty(steps, np.int64)
    for span in spans(episode):
        step[span] = np.arange(len(span))
        if (group[span] != group[span[0]]).any():
            raise ValueError("groups: an episode belongs to two groups, so one would be trained and tested on at once")
    over = None if by is None else (step if by == "step" else lookup(recording.covariates, by, "covariate"))
    if over is not None and over.ndim != 1:
        raise ValueError(f"by: {by} has shape {over.shape[1:]} per step; it must be one number")
    return ProbeData(
        recording=recording,
        rows=rows,
        sites=find_sites(recording, sites),
        kind=kind,
        y=y,
        values=values,
        episode=episode[rows],
        group=group[rows],
        step=step[rows],
        by=None if over is None else over[rows].astype(np.float64),
    )
