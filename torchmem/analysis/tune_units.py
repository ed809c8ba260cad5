"""What each unit is tuned to: rate maps over tiles and headings, information, shape and kind, with chance levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from torchmem.analysis._tuning_data import TuningData, read_tuning_data
from torchmem.analysis._tuning_fields import border_score, fields, neighbours
from torchmem.analysis._tuning_groups import THRESHOLDS, group_units
from torchmem.analysis._tuning_maps import Information, explained, information, mean_maps
from torchmem.analysis._tuning_result import TuningResult
from torchmem.analysis.nulls import deal_folds
from torchmem.result import Provenance

__all__ = ["TuningResult", "tune_units"]

UNITS_AT_ONCE = 2048


def tune_units(
    recording: Any,
    sites: str | Sequence[str] = "*",
    target: str = "pos",
    *,
    heading: str | None = None,
    where: str | Sequence[str] | np.ndarray | None = None,
    epochs: Any = None,
    cell: float = 1.0,
    area: tuple[int, int] | None = None,
    walls: np.ndarray | None = None,
    rectify: Literal["auto", "relu", "shift", "none"] = "auto",
    shifts: int = 100,
    folds: int = 5,
    alpha: float = 0.05,
    active_steps: int = 0,
    corrected: bool = True,
    thresholds: Mapping[str, float] | None = None,
    seed: int = 0,
) -> TuningResult:
    """Rate map of every unit of every site over tiles of `target` (steps, 2) and over headings, and what they show.

    recording: a Recording; its columns and episodes are taken as pynapple's time series and intervals. heading: a
    covariate, a few categories (facing) or an angle in rad; None: "heading", "facing" or "facing_from_actions",
    whichever was recorded. epochs: pynapple IntervalSet to keep. where, cell, area: as in `probe_position`.
    walls: (W, H) bool of the tiles, from the grid's origin; None: a box around what was visited (noted).
    rectify: information needs rates that are nowhere negative: "relu" cuts, "shift" subtracts each unit's minimum,
    "auto" is relu for a site with negative values; maps and explained variance use the same rates.
    shifts: turns of the bins within episodes (0: none): chance level of both informations, subtracted from them, and
    their p. folds: of episodes, for the explained variance. alpha: rate at which units without any tuning pass for
    tuned: position and heading are tested at alpha / 2 each, and what fails counts as 0. active_steps: units above 0 in
    fewer steps have no information (pRNN: 200 to 250). corrected=False groups by the original's measures: raw
    information, variance explained in sample, no test. thresholds: changes to THRESHOLDS.

    Raises ValueError for unknown names, too few episodes, walls of another shape, too few shifts for alpha.
    """
    if rectify not in ("auto", "relu", "shift", "none"):
        raise ValueError(f"rectify={rectify!r}: auto, relu, shift or none")
    if unknown := set(thresholds or {}) - set(THRESHOLDS):
        raise ValueError(f"no threshold {sorted(unknown)[0]!r}; there are {', '.join(THRESHOLDS)}")
    if corrected and not 1 / (1 + shifts) <= alpha / 2:
        enough = int(np.ceil(2 / alpha)) - 1
        raise ValueError(f"{shifts} shifts cannot show p below {alpha / 2:g}: use {enough} or more")
    data = read_tuning_data(recording, sites, target, heading, where, epochs, cell, area)
    rng = np.random.default_rng(seed)
    episodes = int(data.episode.max()) + 1
    notes: list[str] = []
    folds = min(folds, episodes)
    if folds < 2:
        notes.append("one episode: no variance explained on held-out episodes, in sample only")
    fold = deal_folds(data.episode, folds, rng) if folds > 1 else None
    shape = data.grid.shape
    if walls is None:
        walls = np.zeros(shape, bool)
        notes.append("walls: the box around the visited tiles; give walls= for the map of the world")
    walls = np.asarray(walls, bool)
    if walls.shape != shape:
        raise ValueError(f"walls has shape {walls.shape}, the grid {shape} from tile {data.grid.origin}")
    if data.heading is None:
        notes.append("no heading was recorded: no tuning to it")
    limits = {**THRESHOLDS, **(thresholds or {})}
    size = int(np.prod(shape))
    tile = data.grid.tile[:, 0] * shape[1] + data.grid.tile[:, 1]
    maps, curves, scores, groups = {}, {}, {}, {}
    for site in data.sites:
        activity = np.asarray(data.activity(site).values)
        if rectify == "relu" or (rectify == "auto" and activity.min() < 0):
            activity = np.maximum(activity, 0)
            if rectify == "auto":
                notes.append(f"{site} has negative values: cut at 0")
        elif rectify == "shift":
            activity = activity - activity.min(0)
        parts = []
        for at in range(0, activity.shape[1], UNITS_AT_ONCE):
            part = activity[:, at : at + UNITS_AT_ONCE]
            parts.append(_score(part, data, tile, size, walls, fold, shifts, rng, active_steps))
        maps[site] = np.concatenate([part[0] for part in parts])
        curves[site] = np.concatenate([part[1] for part in parts])
        scores[site] = {name: np.concatenate([part[2][name] for part in parts]) for name in parts[0][2]}
        groups[site] = group_units(_judged(scores[site], corrected, alpha), limits).astype(np.int8)
    own = getattr(recording, "provenance", None) or Provenance.here()
    return TuningResult(
        target=target, sites=data.sites, origin=data.grid.origin, shape=shape, cell=cell, steps=len(tile),
        episodes=episodes, occupancy=np.bincount(tile, minlength=size).reshape(shape), walls=walls,
        headings=data.headings, heading_occupancy=np.bincount(
            data.heading if data.heading is not None else np.zeros(0, np.int64), minlength=len(data.headings)),
        maps=maps, curves=curves, scores=scores, groups=groups, thresholds=limits, alpha=alpha, corrected=corrected,
        hz=float(getattr(recording, "control_hz", 1.0)),
        settings={"rectify": rectify, "shifts": shifts, "folds": folds, "active_steps": active_steps, "seed": seed},
        notes=tuple(notes), provenance=own.again(seeds={**own.seeds, "tune_units": seed}),
    )  # fmt: skip


def _score(
    activity: np.ndarray, data: TuningData, tile: np.ndarray, size: int, walls: np.ndarray, fold: np.ndarray | None,
    shifts: int, rng: np.random.Generator, active_steps: int,
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:  # fmt: skip
    """(maps (U, W, H), heading curves (U, headings), scores) of (T, U) activity."""
    units = activity.shape[1]
    flat = mean_maps(activity, tile, size)
    maps = np.ascontiguousarray(flat.T).reshape(units, *walls.shape).astype(np.float32)
    negative = activity.min() < 0
    few = (activity > 0).sum(0) < active_steps
    nothing = np.full(units, np.nan)

    def told(bins: np.ndarray, count: int) -> Information:
        found = information(activity, bins, count, data.episode, shifts, rng)
        return Information(*(np.where(few, np.nan, each) for each in (found.raw, found.bias, found.p)))

    blank = Information(nothing, nothing, nothing)
    place = blank if negative else told(tile, size)
    curves, turn = np.zeros((units, 0), np.float32), blank
    if data.heading is not None:
        curves = mean_maps(activity, data.heading, len(data.headings)).T.astype(np.float32)
        turn = blank if negative else told(data.heading, len(data.headings))
    in_sample, held_out = explained(activity, tile, size, fold)
    found = {
        "rate": activity.mean(0), "si": place.corrected, "si_raw": place.raw, "si_p": place.p,
        "ev": held_out, "ev_in_sample": in_sample,
        "hd": turn.corrected, "hd_raw": turn.raw, "hd_p": turn.p,
        "border": nothing if negative else border_score(maps, walls), **fields(maps), **neighbours(maps),
    }  # fmt: skip
    return maps, curves, {name: values.astype(np.float32) for name, values in found.items()}


def _judged(scores: Mapping[str, np.ndarray], corrected: bool, alpha: float) -> dict[str, np.ndarray]:
    """The measures that decide the groups."""
    judged = dict(scores)
    if not corrected:
        return judged | {"si": scores["si_raw"], "hd": scores["hd_raw"], "ev": scores["ev_in_sample"]}
    place, turn = (np.nan_to_num(scores[name], nan=1.0) <= alpha / 2 for name in ("si_p", "hd_p"))
    for name, passed in (("si", place), ("ev", place), ("border", place), ("hd", turn)):
        judged[name] = np.where(passed, scores[name], 0.0)
    return judged
