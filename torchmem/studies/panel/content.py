"""What a page holds: its schema, and how samples and results become it.

meta (read at once): schema {"name", "version"}, samples, has (value, reward), lines, actions, and one key per optional
view, absent where it was not given: directions, saliency, slopes, clusters, edit, dynamics, intervention.
table: packed columns over all steps of all samples, one sample after the other: reward, value, action, cluster,
score.<k>, grad.<way>.<scalar> (rows, K); base (M, K), states of the whole recording.
blobs, one per sample: frames (S, H, W, 3) or shown (S, N), lines (S, L), saliency.<way>.<scalar> (S, h, w) or (S, N),
and the same of its pair under an edit, edited.*.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchmem.provenance import Provenance
from torchmem.studies.looks import action_names
from torchmem.studies.panel.overlay import overlay, ways_shown
from torchmem.studies.panel.packing import pack, pack_picture
from torchmem.studies.panel.samples import SIMULATED, Sample, line_names
from torchmem.types import EnvSpec

SCHEMA = {"name": "torchmem.panel", "version": 1}
BASE = 3000


@dataclasses.dataclass
class Content:
    """See the head of this file; samples, directions and saliency are what it was made from."""

    meta: dict[str, Any]
    table: dict[str, Any]
    blobs: list[dict[str, Any]]
    samples: list[Sample]
    directions: Any = None
    saliency: Any = None


def content(
    spec: EnvSpec, samples: Sequence[Sample], *, title: str, provenance: Provenance, directions: Any = None,
    saliency: Any = None, dynamics: Any = None, effects: Any = None, clusters: Any = None, edit: str = "",
) -> Content:  # fmt: skip
    """clusters: (result, source -> number of its recording). Raises ValueError for results of other rollouts."""
    blobs = [_blob(one) for one in samples]
    whole = {name: np.concatenate([getattr(one, name) for one in samples]) for name in ("value", "reward")}
    has = {name: bool(np.isfinite(column).any()) for name, column in whole.items()}
    table = {name: pack(column) for name, column in whole.items() if has[name]}
    meta: dict[str, Any] = {
        "schema": SCHEMA, "title": title, "caveats": list(provenance.caveats), "provenance": provenance.to_json(),
        "hz": spec.control_hz, "has": has,
        "lines": line_names(spec) if any(np.isfinite(one.lines).any() for one in samples) else [],
        "samples": [{"name": s.name, "source": s.source, "steps": len(s), "origin": list(s.origin), "seed": s.seed,
                     "edited": s.edited is not None} for s in samples],
    }  # fmt: skip
    if names := action_names(spec):
        meta["actions"] = list(names)
        table["action"] = pack(np.concatenate([s.action for s in samples if s.action is not None]))
    if directions is not None:
        meta["directions"] = _directions(directions, samples, table)
        if directions.sample.size:
            table["base"] = pack(directions.sample[:: max(1, len(directions.sample) // BASE)][:BASE])
    if any(s.edited is not None for s in samples):
        meta["edit"] = edit
        for blob, one in zip(blobs, samples):
            if one.edited is not None:
                pair = _blob(one.edited) | {"reward": pack(one.edited.reward), "value": pack(one.edited.value)}
                if one.edited.action is not None:
                    pair["action"] = pack(one.edited.action)
                if directions is not None and directions.site in one.edited.states:
                    pair["score"] = pack(directions.scores(one.edited.states[directions.site]).astype(np.float32))
                blob |= {f"edited.{key}": value for key, value in pair.items()}
    if saliency is not None:
        _saliency(spec, saliency, samples, directions, meta, table, blobs)
    if clusters is not None:
        meta["clusters"] = _clusters(clusters, samples)
        none = [np.full(len(s), -1) if s.cluster is None else s.cluster for s in samples]
        table["cluster"] = pack(np.concatenate(none))
    if dynamics is not None:
        meta["dynamics"] = {
            "names": list(dynamics.names), "summary": dynamics.summary(),
            "edges": [list(edge) for edge in dynamics.edges[:200]],
            "matrices": {**{f"slope, {way}": _numbers(v) for way, v in dynamics.jacobian.items()},
                         "correlation": _numbers(dynamics.correlation), "regression": _numbers(dynamics.regression)},
        }  # fmt: skip
    if effects is not None:
        meta["intervention"] = {
            "summary": effects.summary(), "changes": effects.changes, "doses": list(effects.doses),
            "outcomes": list(effects.outcomes),
            "places": {place: {name: _numbers(getattr(effects, name)[place]) for name in
                               ("effect", "low", "high", "control", "p")} for place in effects.effect},
        }  # fmt: skip
    return Content(meta, table, blobs, list(samples), directions, saliency)


def _blob(one: Sample) -> dict[str, Any]:
    blob = {"lines": pack(one.lines)}
    if one.frames is not None:
        blob["frames"] = pack(one.frames)
    if one.shown is not None:
        blob["shown"] = pack(one.shown)
    return blob


def _directions(directions: Any, samples: Sequence[Sample], table: dict[str, Any]) -> dict[str, Any]:
    parts = [
        directions.scores(s.states[directions.site]) if directions.site in s.states
        else np.full((len(s), directions.count), np.nan) for s in samples
    ]  # fmt: skip
    scores = np.concatenate(parts).astype(np.float32)
    for k in range(directions.count):
        table[f"score.{k}"] = pack(scores[:, k])
    low, high = np.array(directions.low, float), np.array(directions.high, float)
    return {
        "names": [f"{directions.method} {k}" for k in range(directions.count)], "site": directions.site,
        "share": _numbers(directions.share), "low": _numbers(low), "high": _numbers(high),
    }  # fmt: skip


def _saliency(
    spec: EnvSpec, found: Any, samples: Sequence[Sample], directions: Any, meta: dict[str, Any], table: dict[str, Any],
    blobs: list[dict[str, Any]],
) -> None:  # fmt: skip
    of = [i for i, one in enumerate(samples) if one.source == SIMULATED]
    if len(of) < len(found.agent_value) or not all(_same(found, row, samples[i]) for row, i in enumerate(
            of[: len(found.agent_value)])):  # fmt: skip
        raise ValueError(
            f"the saliency was measured on {len(found.agent_value)} other rollouts than those shown here: give the "
            f"same simulator, recording and --guess, --batch as torchmem saliency was given"
        )
    ways = ways_shown(spec, found.slopes)
    scales: dict[str, list[float]] = {}
    for way in ways:
        grad = overlay(spec, found.slopes, way, [samples[i].obs for i in of[: len(found.agent_value)]])
        scales[way] = [float(np.quantile(np.abs(g), 0.995)) or 1.0 for g in grad]
        for row, i in enumerate(of[: grad.shape[1]]):
            blobs[i] |= {f"saliency.{way}.{k}": pack_picture(one[row]) for k, one in enumerate(grad)}
    if ways:
        meta["saliency"] = {"scalars": list(found.scalars), "ways": ways, "at": found.at, "scales": scales}
    slopes = [name.removesuffix(".directions") for name in found.slopes if name.endswith(".directions")]
    if directions is None or not slopes:
        return
    rows = np.concatenate([[0], np.cumsum([len(s) for s in samples])])
    limits = {}
    for way in slopes:
        grad = found.slopes[f"{way}.directions"]
        if grad.shape[-1] != directions.count:
            raise ValueError(f"the saliency was measured along {grad.shape[-1]} directions, these are "
                             f"{directions.count}: give those")  # fmt: skip
        limits[way] = [float(np.quantile(np.abs(g), 0.99)) or 1.0 for g in grad]
        for k, one in enumerate(grad):
            whole = np.full((rows[-1], directions.count), np.nan, np.float32)
            for row, i in enumerate(of[: len(one)]):
                whole[rows[i] : rows[i] + one.shape[1]] = one[row]
            table[f"grad.{way}.{k}"] = pack(whole)
    meta["slopes"] = {"scalars": list(found.scalars), "ways": slopes, "at": found.at, "limits": limits}


def _same(found: Any, row: int, one: Sample) -> bool:
    """Whether a sample is the rollout that the saliency was measured on, by all that both keep."""
    steps = min(found.steps, len(one))
    alike = [np.array_equal(found.origin[row], one.origin),
             np.allclose(found.agent_value[row, :steps], one.value[:steps], rtol=1e-3, atol=1e-4)]  # fmt: skip
    if one.action is not None and len(found.action) == 1:
        alike.append(np.array_equal(next(iter(found.action.values()))[row, :steps], one.action[:steps]))
    if found.frames.ndim == 5 and one.frames is not None and found.frames.shape[2:] == one.frames.shape[1:]:
        unlike = np.abs(found.frames[row, :steps].astype(int) - one.frames[:steps])
        alike.append(unlike.max() <= 1)  # grey levels, where rounding fell the other way
    return all(alike)


def _clusters(clusters: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    result, where = clusters
    place = {(s.source, s.number): (i, len(s)) for i, s in enumerate(samples)}
    number = {at: source for source, at in where.items()}
    count = int(max(result.label.max() + 1, 0))
    exemplars: list[list[list[int]]] = [[] for _ in range(count)]
    for k, some in enumerate(getattr(result, "exemplars", np.zeros((0, 0, 3), int))):
        for rec, episode, step in np.asarray(some).tolist():
            at = place.get((number.get(rec, ""), episode))
            if at is not None and step < at[1]:
                exemplars[k].append([at[0], step])
    for k in range(count):  # those of the whole recording may lie outside what is shown here
        for i, s in enumerate(samples):
            if len(exemplars[k]) >= 6:
                break
            if s.cluster is not None and (s.cluster == k).any() and i not in [e[0] for e in exemplars[k]]:
                at = np.flatnonzero(s.cluster == k)
                exemplars[k].append([i, int(at[len(at) // 2])])
    return {"names": [str(k) for k in range(count)], "exemplars": exemplars, "summary": result.summary()}


def _numbers(values: Any) -> Any:
    """Lists of numbers with four digits; null for none."""
    array = np.asarray(values, float)
    if array.ndim:
        return [_numbers(one) for one in array]
    return float(f"{float(array):.4g}") if np.isfinite(array) else None
