"""Whole episodes of an agent in a test world, as numbers per episode that pair across agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from torchmem.envs.collector import Collector
from torchmem.models.noise import Noise
from torchmem.studies.updates.measures import Measure
from torchmem.training.world_views import array_worlds

Table = dict[str, np.ndarray]  # measure -> (episodes,); "length" in agent steps


def play_episodes(
    agent: Any,
    env: str,
    kwargs: Mapping[str, Any],
    measures: Sequence[Measure],
    episodes: int,
    seed: int = 0,
    *,
    greedy: bool = True,
    envs: int = 16,
    workers: int = 0,
) -> Table:
    """Play `episodes` whole episodes, an equal number in each of `envs` worlds, on seeds of the split "eval".

    Episode e of one agent starts as episode e of any other: rows pair. greedy: the likeliest action (latents at their
    mode too), else drawn from `seed`. Raises ValueError where `envs` does not divide `episodes`, and for a measure
    that the world's truth does not have.
    """
    n = min(envs, episodes)
    if episodes < 1 or episodes % n:
        raise ValueError(f"episodes={episodes} must be a multiple of {n} worlds, so that each plays as many")
    each = episodes // n
    generator = torch.Generator(agent.device).manual_seed(seed + 7919)
    found = {m.name: np.full((n, each), np.nan) for m in measures} | {"length": np.zeros((n, each))}
    sums = np.zeros((len(measures), n))
    played = np.zeros(n, int)

    def policy(obs: Any, carry: Any) -> Any:
        return agent.policy(obs, carry, Noise.mode() if greedy else agent.acting_noise(n, generator))

    with array_worlds(env, kwargs, n, split="eval", seed=seed, workers=workers) as worlds:
        collector = Collector(worlds, agent.initial(n), agent.device)
        while (played < each).any():
            data, truth = collector.step(policy), collector.truth
            first, last = np.asarray(data["is_first"]), np.asarray(data["is_last"])
            for m, measure in enumerate(measures):
                now = measure.read(data, truth)
                kept = now if measure.how == "last" else sums[m] + now
                sums[m] = np.where(first, 0.0 if measure.how == "sum" else now, kept)
            for i in np.flatnonzero(last & (played < each)):
                for m, measure in enumerate(measures):
                    which = measure.counts(truth)
                    found[measure.name][i, played[i]] = sums[m, i] if which is None or which[i] else np.nan
                found["length"][i, played[i]] = collector.lengths[i] - 1  # decisions: the first row was not acted into
                played[i] += 1
    return {name: values.T.reshape(-1) for name, values in found.items()}
