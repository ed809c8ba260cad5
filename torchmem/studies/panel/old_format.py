"""The panel_data.json of interpreting-rl-behavior, out and in (spec simulator.md section 7).

    FILE.json          base_hx_loadings (rows, K); samples: name -> saliency_step, actions (S), hx_loadings (S, K),
                       grad_hx_<scalar>_loadings (S, K); clusters: number -> names
    extrema.json       any | saliency_step -> high | middle | low -> direction -> names: tails and middle of 1 %
    <name>/obs.png     the frames side by side, and sal_<scalar>.png, where pictures were shown

Scalars there are value, action (ours: chosen) and hx_direction_<k> (direction:<k>); others keep their names.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from torchmem.files import atomic_write
from torchmem.provenance import Provenance
from torchmem.studies.looks import PROCGEN
from torchmem.studies.panel.content import SCHEMA, Content
from torchmem.studies.panel.packing import pack
from torchmem.studies.panel.samples import SIMULATED
from torchmem.video import png_bytes

BASE_ROWS, TAIL = 3000, 0.01


def export_old(made: Content, file: str | Path) -> Path:
    """Write the simulated samples. Raises ValueError where directions of memory or actions by class are missing."""
    directions = made.directions
    samples = [one for one in made.samples if one.source == SIMULATED]
    if directions is None or directions.site != "memory" or not samples or "actions" not in made.meta:
        raise ValueError("the old panel shows simulated samples of discrete actions along directions of memory: give a "
                         "simulator and --directions")  # fmt: skip
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [f"sample_{i:05d}" for i in range(len(samples))]
    scores = [directions.scores(one.states["memory"]) for one in samples]
    slopes = {} if made.saliency is None or "total.directions" not in made.saliency.slopes else {
        _old_name(scalar): made.saliency.slopes["total.directions"][k]
        for k, scalar in enumerate(made.saliency.scalars)
    }  # fmt: skip
    at = None if made.saliency is None else made.saliency.at
    told = {}
    for row, (name, one) in enumerate(zip(names, samples)):
        assert one.action is not None
        told[name] = {"saliency_step": at, "actions": one.action.tolist(), "hx_loadings": _short(scores[row])}
        for scalar, grad in slopes.items():
            if row < len(grad):
                told[name][f"grad_hx_{scalar}_loadings"] = _short(grad[row])
    clusters: dict[str, list[str]] = {}
    for name, one in zip(names, samples):
        if one.cluster is not None and (one.cluster >= 0).any():
            clusters.setdefault(str(np.bincount(one.cluster[one.cluster >= 0]).argmax()), []).append(name)
    base = np.concatenate(scores)[:BASE_ROWS]
    data = {"base_hx_loadings": _short(base), "samples": told, "clusters": clusters}
    atomic_write(path.with_name("extrema.json"), json.dumps(extrema(scores, names, at)).encode())
    for row, (name, one) in enumerate(zip(names, samples)):
        if one.frames is not None:
            (path.parent / name).mkdir(exist_ok=True)
            atomic_write(path.parent / name / "obs.png", png_bytes(np.concatenate(list(one.frames), 1)))
            if made.saliency is not None and made.saliency.frames.size and row < len(made.saliency.frames):
                for k, scalar in enumerate(made.saliency.scalars):
                    strip = np.concatenate(list(made.saliency.pictures(k)[row]), 1)
                    atomic_write(path.parent / name / f"sal_{_old_name(scalar)}.png", png_bytes(strip))
    return atomic_write(path, json.dumps(data).encode())


def extrema(scores: list[np.ndarray], names: list[str], at: int | None) -> dict[str, Any]:
    """Names of samples in the tails and the middle of each direction, over any step and at the step of the scalars."""
    found: dict[str, Any] = {}
    for when in ("any", *(["saliency_step"] if at is not None else [])):
        here = slice(None) if when == "any" or at is None else slice(at, at + 1)
        parts = [one[here] for one in scores]
        whole = np.concatenate(parts)
        of = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
        ends = np.quantile(whole, [TAIL, 0.5 - TAIL / 2, 0.5 + TAIL / 2, 1 - TAIL], axis=0)
        masks = {"high": whole >= ends[3], "middle": (whole >= ends[1]) & (whole <= ends[2]), "low": whole <= ends[0]}
        found[when] = {
            kind: {str(k): [names[i] for i in np.unique(of[mask[:, k]])] for k in range(whole.shape[1])}
            for kind, mask in masks.items()
        }  # fmt: skip
    return found


def import_old(file: str | Path) -> Content:
    """The content of a page from an old panel_data.json and the pictures beside it, if any.

    Raises ValueError naming the key that is missing or does not fit.
    """
    path = Path(file)
    try:
        data = json.loads(path.read_text())
        samples, base = dict(data["samples"]), np.array(data["base_hx_loadings"], np.float32)
        first = next(iter(samples.values()))
        count, at = len(first["hx_loadings"][0]), first["saliency_step"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        raise ValueError(f"{path} is no panel_data.json of interpreting-rl-behavior: {error!r}") from error
    scalars = [k.removeprefix("grad_hx_").removesuffix("_loadings") for k in first if k.startswith("grad_hx_")]
    of = {str(name): str(k) for k, names in data.get("clusters", {}).items() for name in names}
    groups = sorted(set(of.values()), key=lambda k: (len(k), k))
    scores, grads, actions, clusters, blobs, listed = [], [[] for _ in scalars], [], [], [], []
    for name, one in samples.items():
        y = np.array(one["hx_loadings"], np.float32)
        if y.ndim != 2 or y.shape[1] != count or len(one["actions"]) != len(y):
            raise ValueError(f"{path}: {name} has hx_loadings {y.shape} and {len(one['actions'])} actions; expected "
                             f"(steps, {count}) and as many actions")  # fmt: skip
        scores.append(y)
        actions.append(np.array(one["actions"]))
        clusters.append(np.full(len(y), groups.index(of[name]) if name in of else -1))
        for k, scalar in enumerate(scalars):
            grad = np.array(one.get(f"grad_hx_{scalar}_loadings", []), np.float32).reshape(-1, count)
            grads[k].append(np.concatenate([grad[: len(y)], np.full((max(len(y) - len(grad), 0), count), np.nan)]))
        blob: dict[str, Any] = {"lines": pack(np.zeros((len(y), 0), np.float32))}
        frames = _strip(path.parent / name / "obs.png", steps=len(y))
        blob |= {"shown": pack(y)} if frames is None else {"frames": pack(frames)}
        for k, scalar in enumerate(scalars):
            wide = 0 if frames is None else frames.shape[2]  # they may end with the step of the scalar
            if wide and (picture := _strip(path.parent / name / f"sal_{scalar}.png", wide=wide)) is not None:
                blob[f"saliency.total.{k}"] = pack(picture)
        blobs.append(blob)
        listed.append({"name": name, "source": SIMULATED, "steps": len(y), "origin": [-1, -1], "seed": -1,
                       "edited": False})  # fmt: skip
    whole = np.concatenate(scores)
    top = max(int(np.concatenate(actions).max()) + 1, len(PROCGEN))
    low, high = (np.quantile(base if base.size else whole, q, axis=0) for q in (0.01, 0.99))
    provenance = Provenance.here(parents=(str(path.absolute()),))
    meta: dict[str, Any] = {
        "schema": SCHEMA, "title": f"{path.name} of interpreting-rl-behavior", "hz": 15.0, "lines": [],
        "has": {"value": False, "reward": False},
        "caveats": ["imported from an old panel: interpreting-rl-behavior wrote 1/9 of the true gradients"],
        "provenance": provenance.to_json(), "samples": listed,
        "actions": [*PROCGEN, *(str(i) for i in range(len(PROCGEN), top))],
        "directions": {"names": [f"ica {k}" for k in range(count)], "site": "memory", "share": [],
                       "low": low.tolist(), "high": high.tolist()},
    }  # fmt: skip
    table = {"action": pack(np.concatenate(actions)), "base": pack(base)}
    table |= {f"score.{k}": pack(whole[:, k]) for k in range(count)}
    if scalars:
        limits = [float(np.nanquantile(np.abs(np.concatenate(g)), 0.99)) or 1.0 for g in grads]
        meta["slopes"] = {"scalars": scalars, "ways": ["total"], "at": at, "limits": {"total": limits}}
        table |= {f"grad.total.{k}": pack(np.concatenate(g)) for k, g in enumerate(grads)}
        if any(key.startswith("saliency.") for blob in blobs for key in blob):
            scales = {"total": [1.0] * len(scalars)}
            meta["saliency"] = {"scalars": scalars, "ways": ["total"], "at": at, "scales": scales}
    if groups:
        where = {g: [[i, min(at or 0, len(s) - 1)] for i, (c, s) in enumerate(zip(clusters, scores)) if c[0] == k][:6]
                 for k, g in enumerate(groups)}  # fmt: skip
        meta["clusters"] = {"names": groups, "exemplars": list(where.values()), "summary": "as imported"}
        table["cluster"] = pack(np.concatenate(clusters))
    return Content(meta, table, blobs, [])


def _strip(file: Path, steps: int = 0, wide: int = 0) -> np.ndarray | None:
    """(S, H, W, 3) from frames side by side, `steps` of them or each `wide`; None where there is no such file.

    Raises ValueError for another width.
    """
    if not file.is_file():
        return None
    from PIL import Image

    picture = np.asarray(Image.open(io.BytesIO(file.read_bytes())).convert("RGB"))
    if picture.shape[1] % (steps or wide):
        told = f"{steps} frames" if steps else f"frames of {wide} pixels"
        raise ValueError(f"{file} is {picture.shape[1]} pixels wide, which are no {told} side by side")
    return np.stack(np.split(picture, steps or picture.shape[1] // wide, 1))


def _old_name(scalar: str) -> str:
    if scalar.startswith("direction:"):
        return scalar.replace("direction:", "hx_direction_")
    return {"chosen": "action"}.get(scalar, scalar).replace(":", "_")


def _short(values: np.ndarray) -> list[list[float]]:
    return [[float(f"{v:.5g}") for v in row] for row in values]
