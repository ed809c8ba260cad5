"""Gradients by what was shown, in the shape in which it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchmem.studies.looks import cell_sums, image_key, view_side
from torchmem.types import EnvSpec


def ways_shown(spec: EnvSpec, slopes: Mapping[str, np.ndarray]) -> list[str]:
    """The ways along which there are gradients by all that a picture shows."""
    keys = _keys(spec)
    ways = dict.fromkeys(name.partition(".")[0] for name in slopes)
    return [way for way in ways if all(f"{way}.obs.{key}" in slopes for key in keys)]


def overlay(spec: EnvSpec, slopes: Mapping[str, np.ndarray], way: str, obs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(K, B, S, h, w) over a picture, else (K, B, S, N) beside the numbers shown. obs: of each of the B samples.

    Of a symbol in a MiniGrid cell only the slope of the one that is there counts: the others are not shown.
    """
    grads = {key: np.asarray(slopes[f"{way}.obs.{key}"], np.float32) for key in _keys(spec)}
    if image_key(spec) is not None:
        return next(iter(grads.values()))
    steps = next(iter(grads.values())).shape[2]
    if not view_side(spec):
        return np.concatenate([g.reshape(*g.shape[:3], -1) for g in grads.values()], -1)
    there = {key: np.stack([one[key][:steps] for one in obs]) for key in grads}
    if "view" in grads:
        return cell_sums(spec, grads["view"] * there["view"][None])
    cells = [
        np.take_along_axis(g, there[key][None, ..., None].astype(np.int64), -1)[..., 0] for key, g in grads.items()
    ]
    return np.swapaxes(np.sum(cells, 0), -1, -2)


def _keys(spec: EnvSpec) -> list[str]:
    if (image := image_key(spec)) is not None:
        return [image]
    if view_side(spec):
        return ["view"] if "view" in spec.obs else ["object", "colour", "state"]
    return list(spec.obs)
