"""How good an agent is: fresh seeds, whole episodes, an interval, and what is left without memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from torchmem.envs.collector import Collector, leaking
from torchmem.envs.seeds import Split
from torchmem.errors import TorchmemError
from torchmem.intervals import wilson
from torchmem.training.crafter_report import crafter_metrics, crafter_text
from torchmem.training.world_views import array_worlds


class Stopped(TorchmemError):
    """An evaluation was asked to stop, so it has no score."""


@dataclasses.dataclass
class Evaluation:
    """Scores of whole episodes. `score` is the success rate or the mean return, as the world's spec says."""

    kind: str  # "success" or "return"
    returns: np.ndarray  # (episodes,)
    lengths: np.ndarray  # (episodes,) agent steps
    timeouts: np.ndarray  # (episodes,) bool: ended by a time limit, not by what the agent did
    unlocked: np.ndarray | None = None  # (episodes, 22) bool, in Crafter: achievements of the episode

    @property
    def values(self) -> np.ndarray:
        """(episodes,): 0 or 1 for success (a positive return), else the return."""
        return (self.returns > 0).astype(float) if self.kind == "success" else self.returns

    @property
    def score(self) -> float:
        return float(self.values.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 %: Wilson's for a rate, normal for a mean."""
        n = len(self.values)
        if self.kind == "success":
            return wilson(float(self.values.sum()), n)[1:]
        half = 1.96 * float(self.values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
        return self.score - half, self.score + half

    @property
    def score_in_time(self) -> float:
        """The score among episodes that no time limit ended (of a choice: how often it was right); NaN without any."""
        return float(self.values[~self.timeouts].mean()) if not self.timeouts.all() else math.nan

    def metrics(self, prefix: str) -> dict[str, float]:
        low, high = self.interval
        told = {} if self.timeouts.all() else {f"{prefix}/score_in_time": self.score_in_time}
        if self.unlocked is not None:
            told |= crafter_metrics(self.unlocked, prefix)
        return told | {
            f"{prefix}/score": self.score,
            f"{prefix}/score_low": low,
            f"{prefix}/score_high": high,
            f"{prefix}/return": float(self.returns.mean()),
            f"{prefix}/length": float(self.lengths.mean()),
            f"{prefix}/timeouts": float(self.timeouts.mean()),
            f"{prefix}/episodes": float(len(self.returns)),
        }

    def summary(self) -> str:
        low, high = self.interval
        told = f"{self.kind} {self.score:.3f} [{low:.3f}, {high:.3f}] over {len(self.values)} episodes"
        if self.kind == "success" and self.timeouts.any():
            told += f"; {self.timeouts.mean():.3f} ran out of time, {self.score_in_time:.3f} of the others succeeded"
        return told if self.unlocked is None else f"{told}; {crafter_text(self.unlocked)}"


def evaluate(
    agent: Any,
    env: str,
    kwargs: Mapping[str, Any],
    episodes: int,
    seed: int = 0,
    *,
    memory: bool = True,
    split: Split = "eval",
    envs: int = 16,
    workers: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Play `episodes` whole episodes, an equal number in every env, so that short ones are not over-counted.

    memory False: the carry is emptied before every step, as if each step opened an episode. Own worlds and own random
    numbers: training goes on afterwards as if this had not happened. stop: asked before each step. Raises Stopped
    where it says True, for the scores of the episodes that ended sooner would mislead; ValueError for episodes < 1.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    n = min(envs, episodes)
    quota = np.full(n, episodes // n) + (np.arange(n) < episodes % n)
    generator = torch.Generator(agent.device).manual_seed(seed + 7919)

    def policy(obs, carry):
        if not memory:
            obs = {**obs, "is_first": torch.ones_like(obs["is_first"])}
        return agent.policy(obs, carry, agent.acting_noise(n, generator))

    returns, lengths, timeouts, counts = [], [], [], []
    with array_worlds(env, kwargs, n, split=split, seed=seed, workers=workers) as worlds:
        collector = Collector(leaking(worlds, agent.spec), agent.initial(n), agent.device)
        while quota.any():
            if stop():
                raise Stopped(f"evaluation stopped with {quota.sum()} of {episodes} episodes to go")
            data = collector.step(policy)
            for i, total, length in collector.finished:
                if quota[i]:
                    quota[i] -= 1
                    returns.append(total)
                    lengths.append(length)
                    timeouts.append(not data["is_terminal"][i])
                    if worlds.spec.name == "crafter":
                        counts.append(collector.truth["achievements"][i])
    unlocked = np.array(counts) > 0 if counts else None
    return Evaluation(worlds.spec.score, np.array(returns), np.array(lengths), np.array(timeouts, bool), unlocked)
