"""PPO on worlds in memory: no folders, no logs, no resuming. For tests, demos and studies within one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from torchmem.models.ppo.agent import PPOAgent
from torchmem.training.processes import Processes
from torchmem.training.rollout import Rollout, Worlds, permutations
from torchmem.training.rollout_learner import RolloutLearner


class Progress(NamedTuple):
    """Where training stands after a rollout and its updates."""

    agent_steps: int
    episodes: list[tuple[int, float, int]]  # (world, return, agent steps) of those that ended in this rollout
    metrics: dict[str, float]  # means over its updates


def learn(
    agent: PPOAgent,
    worlds: Worlds,
    steps: int,
    *,
    length: int = 32,
    batch: int = 32,
    passes: int = 4,
    seed: int = 0,
    stop: Callable[[Progress], bool] = lambda progress: False,
) -> int:
    """Train `agent` in place for `steps` agent steps, or until `stop` says so. Returns the agent steps made.

    A rollout is `length` steps of all worlds; each update takes `batch` columns of it; it is gone through `passes`
    times. Raises ValueError where the columns cannot be shared evenly, NaNLoss.
    """
    if worlds.n % batch:
        raise ValueError(f"{worlds.n} worlds cannot be cut into minibatches of {batch} columns")
    acting = torch.Generator(agent.device).manual_seed(seed * 1000 + 500)
    sampling = torch.Generator(agent.device).manual_seed(seed * 1000 + 1)
    alone = Processes()
    rollout, learner, done = Rollout(agent, worlds, length, acting), RolloutLearner(agent, alone), 0
    while done < steps:
        episodes = rollout.collect()
        rollout.finish(alone)
        began, done = done, done + worlds.n * length
        sums: dict[str, torch.Tensor] = {}
        count = 0
        for order in permutations(worlds.n, batch, passes, sampling):
            metrics = learner.update(rollout.columns(order), began / steps)
            sums = {name: sums.get(name, 0) + value for name, value in metrics.items()}
            count += 1
            if learner.moved_far(metrics):
                break
        rollout.absorb(alone)
        if stop(Progress(done, episodes, {name: float(value) / count for name, value in sums.items()})):
            break
    learner.check()
    return done
