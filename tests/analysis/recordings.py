"""Recordings in memory, with planted answers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from torchmem.result import Provenance


@dataclasses.dataclass
class Memory:
    """What analyses read of a Recording."""

    activations: dict[str, Any]
    covariates: dict[str, Any]
    episode: np.ndarray
    units: dict[str, str] = dataclasses.field(default_factory=dict)
    provenance: Provenance = dataclasses.field(default_factory=lambda: Provenance(torchmem="0", seeds={"record": 3}))


def clock(episodes: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """(episode, step) of episodes of nearly the same length."""
    lengths = length + np.arange(episodes) % 3
    return np.repeat(np.arange(episodes), lengths), np.concatenate([np.arange(n) for n in lengths])


def drift(rng: np.random.Generator, episode: np.ndarray, width: int, keep: float = 0.97) -> np.ndarray:
    """Slow noise that starts anew in each episode: x[t] = keep * x[t - 1] + noise, at its stationary variance."""
    noise = rng.normal(size=(len(episode), width))
    out = np.empty_like(noise)
    for t in range(len(episode)):
        opens = t == 0 or episode[t] != episode[t - 1]
        out[t] = noise[t] if opens else keep * out[t - 1] + np.sqrt(1 - keep**2) * noise[t]
    return out


def cue_world(seed: int = 0, episodes: int = 40, length: int = 24, strength: float = 1.5) -> Memory:
    """A cue (one of two per episode) is seen from step 3 to 5. Site "memory" keeps it in unit 2, "forgetful" only
    while it is seen, "wide" not at all."""
    rng = np.random.default_rng(seed)
    episode, step = clock(episodes, length)
    cue = rng.permutation(np.arange(episodes) % 2)[episode]
    sign, seen, kept = 2 * cue - 1, (step >= 3) & (step < 6), step >= 3
    memory, forgetful = drift(rng, episode, 6), drift(rng, episode, 9)
    memory[:, 2] += strength * 2 * sign * kept
    forgetful[:, 0] += strength * 2 * sign * seen
    return Memory(
        activations={"memory": memory, "forgetful": forgetful, "wide": drift(rng, episode, 20).reshape(-1, 4, 5)},
        covariates={
            "cue_type": cue, "steps_since_cue": np.where(kept, step - 3, -1), "obs.view": (sign * seen)[:, None],
            "pos": memory[:, :2] @ rng.normal(size=(2, 2)) + 3, "heading": np.arctan2(memory[:, 1], memory[:, 0]),
        },
        episode=episode,
        units={"cue_type": "0 key, 1 ball", "steps_since_cue": "steps", "pos": "cells", "heading": "rad"},
    )  # fmt: skip
