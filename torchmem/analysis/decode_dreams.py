"""Where does an agent believe it is while it dreams: decoded by a saved probe, against what really came next."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable

import numpy as np

from torchmem.analysis._dream_batch import AWAKE, DreamBatch
from torchmem.analysis._dream_result import REAL, DreamResult
from torchmem.analysis._dream_scores import Paths, curves, measures, nearest
from torchmem.analysis._position_result import PositionResult
from torchmem.analysis.nulls import resample_groups

__all__ = ["AWAKE", "DreamBatch", "DreamResult", "decode_dreams"]

ROWS = 4096  # states decoded at once
BINS = 5  # of warm-up length


def decode_dreams(
    dreams: DreamBatch | Iterable[DreamBatch],
    probe: PositionResult,
    *,
    site: str | None = None,
    rotations: int = 100,
    resamples: int = 1000,
    shown: int = 12,
    seed: int = 0,
) -> DreamResult:
    """Decode every state of `dreams` (one batch, or the pieces of a large one) by the `probe` of one site.

    site: default, of those dreamed the one that the probe decodes best. Per condition and step: distance to the real
    step, beside rotated futures (see `_dream_scores.rotated_distance`), standing still, and the states that were
    observed ("awake", what the probe itself errs); continuity beside real steps and steps to another dream; spread
    between copies; distance to waking states. Intervals: bootstrap over episodes, 95 %. shown: dreams whose probability
    maps are kept. Steps after the end of the real episode count nowhere.

    Raises ValueError for a site that the probe or the dreams lack, a probe of another target, or a single episode.
    """
    if rotations < 1 or resamples < 1:
        raise ValueError(f"rotations={rotations}, resamples={resamples}: at least one of each")
    pieces: list[Paths] = []
    maps: list[np.ndarray] = []
    kept: list[int] = []
    first: DreamBatch | None = None
    for batch in [dreams] if isinstance(dreams, DreamBatch) else dreams:
        if first is None:
            first, site = batch, _site(batch, probe, site)
        elif (batch.conditions, batch.horizon) != (first.conditions, first.horizon):
            raise ValueError("these are pieces of different dreams: conditions or horizon differ")
        assert site is not None
        made, chosen, drawn = _decode(batch, probe, site, shown - len(maps))
        kept += [sum(map(len, pieces)) + int(row) for row in chosen]
        pieces.append(made)
        maps.extend(drawn)
    if first is None or site is None:
        raise ValueError("there are no dreams")
    paths = Paths(**{f.name: np.concatenate([getattr(p, f.name) for p in pieces]) for f in dataclasses.fields(Paths)})
    conditions = (*first.conditions, REAL)
    paths = _with_real(paths, len(first.conditions))
    rng = np.random.default_rng(seed)
    unit = np.unique(paths.episode, return_inverse=True)[1]
    weights = resample_groups(int(unit.max()) + 1, resamples, rng)
    values, rotated = measures(paths, rotations)
    means, intervals, medians, pooled, pooled_intervals = {}, {}, {}, {}, {}
    boots = {}
    for name, table in values.items():
        means[name], boots[name] = curves(table, paths.condition, unit, len(conditions), weights)
        intervals[name] = _interval(boots[name])
        medians[name] = _medians(table, paths.condition, len(conditions))
        steps = table.shape[1] - 1  # the start itself is no dream
        each = np.repeat(paths.condition, steps), np.repeat(unit, steps)
        total, boot = curves(table[:, 1:].reshape(-1, 1), *each, len(conditions), weights)
        pooled[name], pooled_intervals[name] = total[:, 0], _interval(boot)[:, 0]
    reached = boots["divergence"] >= boots["chance"]
    p = np.where(np.isfinite(means["divergence"]) & np.isfinite(means["chance"]),
                 (1 + reached.sum(0)) / (1 + resamples), np.nan)  # fmt: skip
    count = [np.isfinite(values["divergence"][paths.condition == c]).sum(0) for c in range(len(conditions))]
    edges, by_warmup = _by_warmup(paths, values["divergence"], unit, len(conditions), weights)
    awake = nearest(first.wake[site], first.wake_episode, first.wake[site], first.wake_episode)
    own = first.provenance
    caveats = dict.fromkeys([*own.caveats, *probe.provenance.caveats])
    return DreamResult(
        site=site, decoder=probe.decoder, target=first.target, actions=first.actions, cell=probe.cell,
        origin=probe.origin, shape=probe.shape, conditions=conditions, means=means, intervals=intervals,
        medians=medians, pooled=pooled, pooled_intervals=pooled_intervals, count=np.array(count), p=p,
        rotations=rotated, wake_near=float(np.nanmedian(awake)) if np.isfinite(awake).any() else float("nan"),
        warmup_edges=edges, by_warmup=by_warmup, condition=paths.condition, start=paths.start, copy=paths.copy,
        episode=paths.episode, warmup=paths.warmup, tile=paths.tile.astype(np.float32),
        real=paths.real.astype(np.float32), before=paths.before.astype(np.float32),
        shown=np.array(kept, np.int64), maps=np.array(maps, np.float16).reshape(-1, paths.tile.shape[1], *probe.shape),
        settings={**first.settings, "rotations": rotations, "resamples": resamples, "decode_seed": seed},
        notes=_notes(first, probe), provenance=own.again(caveats=tuple(caveats)),
    )  # fmt: skip


def _site(batch: DreamBatch, probe: PositionResult, site: str | None) -> str:
    if batch.target != probe.target:
        raise ValueError(f"these dreams know {batch.target!r} of the real steps, the probe decodes {probe.target!r}")
    both = [name for name in probe.sites if name in batch.states]
    if site is not None and site not in both:
        raise ValueError(f"site {site!r} is not in both: dreamed {', '.join(batch.states)}; "
                         f"decoded by the probe {', '.join(probe.sites)}")  # fmt: skip
    if not both:
        raise ValueError(f"the probe decodes {', '.join(probe.sites)}; dreamed were {', '.join(batch.states)}")
    return site or min(both, key=lambda name: probe.scores["manhattan"][probe.sites.index(name)])


def _decode(
    batch: DreamBatch, probe: PositionResult, site: str, shown: int
) -> tuple[Paths, np.ndarray, list[np.ndarray]]:
    """Tiles of every state; up to `shown` dreams of the first condition whose real future lasts, and their maps."""
    states = batch.states[site]
    flat = states.reshape(-1, states.shape[-1])
    known = np.flatnonzero(np.isfinite(flat).all(1))
    tile = np.full((len(flat), 2), np.nan)
    for rows in np.array_split(known, 1 + len(known) // ROWS):
        if len(rows):
            tile[rows] = probe.decode(site, flat[rows]).best
    lasting = batch.valid[:, (batch.horizon + 1) // 2]
    chosen = np.flatnonzero((batch.condition == 0) & (batch.copy == 0) & lasting)[: max(shown, 0)]
    maps = [probe.decode(site, np.nan_to_num(states[row])).maps(probe.origin, probe.shape) for row in chosen]
    near = nearest(flat, np.repeat(batch.episode, states.shape[1]), batch.wake[site], batch.wake_episode)
    return Paths(
        tile=tile.reshape(*states.shape[:2], 2), real=np.floor(batch.real / probe.cell),
        before=np.floor(batch.before / probe.cell), near=near.reshape(states.shape[:2]), condition=batch.condition,
        start=batch.start, copy=batch.copy, episode=batch.episode, warmup=batch.warmup,
    ), chosen, maps  # fmt: skip


def _with_real(paths: Paths, number: int) -> Paths:
    """The real futures as one more condition, so that all is measured on them too."""
    first = np.unique(paths.start, return_index=True)[1]
    more = {f.name: getattr(paths, f.name)[first] for f in dataclasses.fields(Paths)}
    more |= {"tile": paths.real[first], "condition": np.full(len(first), number), "copy": np.zeros(len(first), int),
             "near": np.full(paths.near[first].shape, np.nan)}  # fmt: skip
    return Paths(**{name: np.concatenate([getattr(paths, name), values]) for name, values in more.items()})


def _interval(boot: np.ndarray) -> np.ndarray:
    """(R, ...) -> (..., 2), 95 %."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a measure may not exist for a condition: NaN
        return np.moveaxis(np.nanpercentile(boot, [2.5, 97.5], axis=0), 0, -1)


def _medians(table: np.ndarray, condition: np.ndarray, count: int) -> np.ndarray:
    """(C, H + 1)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.array([np.nanmedian(table[condition == c], axis=0) for c in range(count)])


def _by_warmup(
    paths: Paths, divergence: np.ndarray, unit: np.ndarray, count: int, weights: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Edges (K + 1,) of up to 5 bins (the upper one is not in it) with about equally many starts; mean divergence of
    dreamed steps, (C, K), and its interval, (C, K, 2)."""
    edges = np.unique(np.quantile(paths.warmup, np.arange(BINS) / BINS).round())
    edges = np.append(edges, paths.warmup.max() + 1)
    which = np.searchsorted(edges, paths.warmup, side="right") - 1
    steps, bins = divergence.shape[1] - 1, len(edges) - 1
    table = np.full((len(paths), steps, bins), np.nan)
    table[np.arange(len(paths)), :, which] = divergence[:, 1:]
    each = np.repeat(paths.condition, steps), np.repeat(unit, steps)
    mean, boot = curves(table.reshape(-1, bins), *each, count, weights)
    return edges, {"mean": mean, "interval": _interval(boot)}


def _notes(batch: DreamBatch, probe: PositionResult) -> tuple[str, ...]:
    notes = []
    mine, theirs = batch.provenance, probe.provenance
    if mine.weights != theirs.weights:
        notes.append("the probe was fitted to a recording of other weights than those that dream")
    elif mine.seeds.get("record") == theirs.seeds.get("record"):
        notes.append("the probe was fitted to the very episodes that are dreamed from, so awake it errs less than on "
                     "new ones: record others with another --seed")  # fmt: skip
    if AWAKE not in batch.conditions:
        notes.append("no observed states beside the dreams: what the probe itself errs is not known here")
    return tuple(notes)
