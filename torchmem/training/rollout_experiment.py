"""Everything a run of PPO consists of: worlds, agent, rollout, learner, clock, with its state in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmem.models.ppo.agent import PPOAgent
from torchmem.training.clock import Clock
from torchmem.training.experiment import Experiment, as_config_error, worker_count
from torchmem.training.processes import Processes
from torchmem.training.replay_size import readable
from torchmem.training.rollout import Rollout, Worlds, permutations
from torchmem.training.rollout_learner import RolloutLearner
from torchmem.training.run_config import ReplayConfig, RunConfig
from torchmem.training.snapshot import Snapshots
from torchmem.training.typed import ConfigError
from torchmem.training.world_views import TensorView, batched, stepped_worlds


class RolloutExperiment:
    """The rollout in place of replay, otherwise what `Experiment` is to the loop.

    One `collect` fills a whole rollout, `updates_due` then grants `ratio` passes over it. Several processes: each owns
    envs / N worlds with seeds of their own and batch / N columns of every update.
    """

    LOOK = Experiment.LOOK

    def __init__(self, config: RunConfig, processes: Processes, device: torch.device) -> None:
        self.config, self.processes = config, processes
        check(config, processes.size)
        size, rank = processes.size, processes.rank
        self.logdir = Path(str(config.logdir))
        torch.manual_seed(config.seed)
        with as_config_error():
            self.envs = make_worlds(config, processes, device)
        self.spec = self.envs.spec
        with as_config_error():
            self.agent = PPOAgent(self.spec, config.agent).to(device)
        self.learner = RolloutLearner(self.agent, processes)
        self.acting = torch.Generator(device).manual_seed(config.seed * 1000 + 500 + rank)
        self.sampling = torch.Generator(device).manual_seed(config.seed * 1000 + rank + 1)
        self.rollout = Rollout(self.agent, self.envs, config.length, self.acting)
        self.clock = Clock(self.spec.action_repeat)
        self.snapshots = Snapshots(self.logdir, processes, config.save.keep)
        self.passes = int(config.ratio)
        self.batch = config.batch // size
        self._orders: list[Tensor] = []  # columns of the updates that this rollout still has to give
        self._left = 0

    @property
    def device(self) -> torch.device:
        return self.agent.device

    @property
    def stride(self) -> int:
        """Agent steps that one `collect` adds, over all processes."""
        return self.config.envs * self.config.length

    def describe(self) -> list[str]:
        """The lines shown before the first step."""
        c, t = self.config, self.config.trainer
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"CPU, {t.threads} threads"
        rows = sum(value.numel() * value.element_size() for value in self.rollout.rows.values())
        return [
            f"agent ppo, core {c.agent.core}: {sum(p.numel() for _, p in self.agent.trained()):,} trained parameters; "
            f"env {c.env_name}",
            f"device {name}; compute float32; {self.processes.size} process(es); eager",
            f"{c.steps:,} agent steps = {c.steps * self.spec.action_repeat:,} env steps over {c.envs} envs; a rollout "
            f"is {c.envs} x {c.length} steps ({readable(rows)}), gone through {self.passes} times in updates on "
            f"{c.batch} columns",
            f"run folder {self.logdir}",
        ]

    # The two halves of the loop ------------------------------------------------------------------------------------

    def open_replay(self, owner: str) -> None:
        """Nothing: PPO learns from what it has just done, and a snapshot holds all of that."""

    def collect(self) -> list[tuple[int, float, int]]:
        """One rollout. Returns (env, return, length) of the episodes that ended in it."""
        episodes = self.rollout.collect()
        self.rollout.finish(self.processes)
        self._orders = list(permutations(self.envs.n, self.batch, self.passes, self.sampling))
        self._left = len(self._orders)
        self.clock.collected(self.stride, len(episodes))
        return episodes

    def updates_due(self) -> int:
        """Minibatches of the rollout just collected."""
        return self._left

    def learn(self) -> dict[str, Tensor]:
        """One update. Returns its metrics; none once the policy has moved too far from this rollout (`target_kl`)."""
        if not self._orders:
            return {}
        batch = self.rollout.columns(self._orders.pop(0))
        began = self.clock.agent_steps - self.stride  # so the first rollout learns at the full rate, the last at some
        metrics = self.learner.update(batch, began / self.config.steps)
        self.clock.updated(self.config.batch * self.config.length)
        if self.learner.moved_far(metrics):
            self._orders.clear()
        if not self._orders:
            self.rollout.absorb(self.processes)
            self._left = 0
        return metrics

    # State ---------------------------------------------------------------------------------------------------------

    def save(self, extra: dict[str, Any]) -> str:
        """Write a snapshot of everything, between two rollouts; returns its id."""
        self.learner.check()
        own = {**self.rollout.state_dict(), "sampling": self.sampling.get_state()}
        shared = {"learner": self.learner.state_dict(), "clock": self.clock.state_dict(), **extra}
        name = self.snapshots.write(self.agent, self.clock.updates, self.clock.agent_steps, shared, own)
        self.snapshots.prune()
        return name

    def restore(self, name: str) -> dict[str, Any]:
        """Continue from a snapshot; returns the shared state, `extra` of `save` included."""
        shared, own = self.snapshots.read(name, self.agent)
        self.learner.load_state_dict(shared["learner"])
        self.clock.load_state_dict(shared["clock"])
        self.rollout.load_state_dict(own)
        self.sampling.set_state(own["sampling"])
        return shared

    def close(self) -> None:
        self.envs.close()


def check(config: RunConfig, processes: int) -> None:
    """Refuse what PPO cannot do, before anything starts. Raises ConfigError."""
    for name in ("envs", "batch"):
        if getattr(config, name) % processes:
            raise ConfigError(f"{name}={getattr(config, name)} cannot be shared by {processes} processes")
    if config.envs % config.batch:
        raise ConfigError(f"envs={config.envs} columns cannot be cut into minibatches of batch={config.batch}")
    if config.batch // processes % config.agent.parts:
        raise ConfigError(f"batch={config.batch} columns cannot be cut into agent.parts={config.agent.parts} passes")
    if config.ratio < 1 or config.ratio != int(config.ratio):
        raise ConfigError(f"ratio={config.ratio:g}: agent=ppo goes through each rollout a whole number of times")
    if config.replay != ReplayConfig():
        raise ConfigError("replay: agent=ppo keeps none, so nothing of it can be set")
    if config.trainer.precision == "bfloat16":
        raise ConfigError("trainer.precision: agent=ppo computes in float32, set trainer.precision=float32")
    if config.trainer.policy_device is not None:
        raise ConfigError("trainer.policy_device: agent=ppo acts with the very weights it trains, leave it out")
    if config.compile == "full":
        raise ConfigError("compile=full: agent=ppo runs eagerly, set compile=off")


def make_worlds(config: RunConfig, processes: Processes, device: torch.device) -> Worlds:
    """This process's worlds: tensors on the device where `env.backend=batched`, else those of a simulator."""
    n, seed = config.envs // processes.size, config.seed * 1009 + processes.rank
    if batched(config.env_kwargs):
        from torchmem.envs.tensor_world import TensorWorld  # here: other worlds do not need minigrid

        return TensorWorld(config.env_name, config.env_kwargs, n, split="train", seed=seed, device=device)
    worlds = stepped_worlds(
        config.env_name, config.env_kwargs, n, split="train", seed=seed,
        workers=worker_count(config, processes.size), on_error=config.on_env_error,
    )  # fmt: skip
    return TensorView(worlds, device)
