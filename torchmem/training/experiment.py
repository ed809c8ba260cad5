"""Everything a run consists of, built from its configuration, with its state in and out."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchmem.envs.collector import Collector
from torchmem.envs.vector import VectorEnv
from torchmem.models.checkpoint import new_agent
from torchmem.models.synthetic import random_batch
from torchmem.models.taps import collecting_loss
from torchmem.training.actor import Actor
from torchmem.training.clock import Clock, Ratio
from torchmem.training.compile import CompileReport, check_gradients, compile_agent, wanted
from torchmem.training.estimate import banner
from torchmem.training.learner import Learner
from torchmem.training.processes import Processes
from torchmem.training.replay import Replay, auto_capacity
from torchmem.training.run_config import RunConfig
from torchmem.training.snapshot import Snapshots
from torchmem.training.tap_writer import TapWriter
from torchmem.training.tree import TornFile
from torchmem.training.typed import ConfigError
from torchmem.training.writeback import WriteBack
from torchmem.types import FLAGS

log = logging.getLogger("torchmem")


class Experiment:
    """Worlds, agent, replay, learner and clocks of one process. `collect` and `learn` are the two halves of the loop.

    Several processes: each owns envs / N worlds with seeds of their own, a replay of capacity / N filled by them alone,
    and batch / N sequences of every update. Sampling is therefore uniform within a process, not over all of them.
    """

    LOOK = "torchmem eval {logdir}   |   torchmem video {logdir}"  # what to do with a run that has ended

    def __init__(self, config: RunConfig, processes: Processes, device: torch.device) -> None:
        self.config, self.processes = config, processes
        size, rank = processes.size, processes.rank
        for name in ("envs", "batch"):
            if getattr(config, name) % size:
                raise ConfigError(f"{name}={getattr(config, name)} cannot be shared by {size} processes")
        self.logdir = Path(str(config.logdir))
        self.batch = config.batch // size
        torch.manual_seed(config.seed)
        with as_config_error():
            self.envs = VectorEnv(
                config.env_name,
                config.env_kwargs,
                config.envs // size,
                split="train",
                seed=config.seed * 1009 + rank,
                workers=worker_count(config, size),
                on_error=config.on_env_error,
            )
        self.spec = self.envs.spec
        with as_config_error():
            self.agent = new_agent(self.spec, config.agent).to(device)
        self.agent.dtype = torch.bfloat16 if config.trainer.precision == "bfloat16" else torch.float32
        self.learner = Learner(self.agent, self.batch, config.length, config.seed, processes)
        self.actor = Actor(self.agent, config.trainer)
        self.collector = Collector(self.envs, self.actor.agent.initial(self.envs.n), self.actor.device)
        self.staleness = 0  # updates that the weights which acted last lacked
        self.acting = torch.Generator(self.actor.device).manual_seed(config.seed * 1000 + 500 + rank)
        self.clock = Clock(self.spec.action_repeat)
        self.ratio = Ratio(config.ratio, config.batch, config.length)
        self.snapshots = Snapshots(self.logdir, processes, config.save.keep)
        self.taps: TapWriter | None = None
        if config.log.collect:
            self.collect_taps(config.log.collect)
        self.replay: Replay
        self.write_back: WriteBack

    def collect_taps(self, sites: list[str]) -> None:
        """Have updates hand out these activations. Raises ConfigError for what the agent or its loss does not have."""
        with as_config_error(), torch.no_grad():
            loss = collecting_loss(self.agent, sites)
            loss(random_batch(self.agent, 1, 2), self.agent.training_noise(1, 2, torch.Generator(self.device)))
        self.learner.loss = loss
        if self.processes.main:
            keys = ("reward", *FLAGS, *self.spec.action)
            self.taps = TapWriter(self.logdir / "taps", self.config.log.collect_every, keys)

    def compile(self) -> CompileReport | None:
        """Compile loss and policy where the configuration and the device ask for it, and check the gradients.

        On made-up data with random numbers of its own: training is the same run with and without. Raises CompileError.
        """
        if not wanted(self.config.compile, self.device):
            return None
        loss, policy = compile_agent(self.agent, self.config.log.collect, self.actor.agent)
        generator = torch.Generator(self.device).manual_seed(0)
        noise = self.agent.training_noise(self.batch, self.config.length, generator)
        report = check_gradients(self.agent, loss, random_batch(self.agent, self.batch, self.config.length), noise)
        self.learner.loss, self.actor.policy = loss, policy
        return report

    @property
    def device(self) -> torch.device:
        return self.agent.device

    @property
    def stride(self) -> int:
        """Agent steps that one `collect` adds, over all processes."""
        return self.config.envs

    def describe(self) -> list[str]:
        """The lines shown before the first step."""
        return banner(self)

    # The data ----------------------------------------------------------------------------------------------------

    @property
    def schema(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of everything replay stores of one step of one world."""
        spaces = {**self.spec.obs, **self.spec.action}
        stored = {key: (space.shape, space.dtype) for key, space in spaces.items()}
        flags = dict.fromkeys(FLAGS, ((), "bool"))
        return {**stored, "reward": ((), "float32"), **flags, **self.agent.latent_schema()}

    @property
    def replay_folder(self) -> Path:
        place = self.config.replay.directory
        return (Path(place) if place else self.logdir / "replay") / f"rank{self.processes.rank}"

    @property
    def long_term_folder(self) -> Path | None:
        place = self.config.replay.long_term
        return Path(place) / f"rank{self.processes.rank}" if place else None

    def capacity(self) -> int:
        """Agent steps this process keeps."""
        wanted = self.config.replay.capacity
        total = auto_capacity(self.schema, self.replay_folder, self.long_term_folder) if wanted == "auto" else wanted
        return total // self.processes.size

    def open_replay(self, owner: str) -> None:
        """A new, empty replay.

        Raises OSError where the disk is too small, FileExistsError where another run's is, ConfigError where it could
        never hold what training waits for.
        """
        config = self.config
        with as_config_error():
            self.replay = Replay(
                self.schema,
                self.envs.n,
                self.capacity(),
                config.length + 1,
                self.replay_folder,
                seed=config.seed * 1009 + self.processes.rank,
                online=config.replay.online,
                latents=tuple(self.agent.latent_schema()),
                owner=owner,
                pin=self.device.type == "cuda",
                long_term=self.long_term_folder,
            )
            self.ready()  # what can never be is refused now, not after the warm-up
        self.write_back = WriteBack(self.replay)

    # The two halves of the loop ------------------------------------------------------------------------------------

    def collect(self) -> list[tuple[int, float, int]]:
        """One lock-step of all worlds into replay. Returns (env, return, length) of the episodes it ended."""
        self.staleness = self.actor.follow(self.clock.updates)
        step = self.collector.step(self._act)
        for env in np.flatnonzero(self.envs.restarted):
            self.replay.mark_truncated(int(env))
        self.replay.add(step)
        self.clock.collected(self.envs.n * self.processes.size, len(self.collector.finished))
        return self.collector.finished

    def _act(self, obs, carry):
        return self.actor.policy(obs, carry, self.actor.agent.acting_noise(self.envs.n, self.acting))

    def learn(self) -> dict[str, torch.Tensor]:
        """One update on a replayed batch. Returns its metrics, on the device."""
        batch = self.replay.sample(self.batch)
        index = batch.pop("index")[:, 1:]
        out = self.learner.update({k: v.to(self.device, non_blocking=True) for k, v in batch.items()})
        self.write_back.push(index, out.latents)
        self.clock.updated(self.config.batch * self.config.length)
        if self.taps is not None:
            self.taps.push(self.clock.updates, out.taps, batch)
        if self.actor.split:
            out.metrics["policy_staleness"] = torch.tensor(float(self.staleness))
        return out.metrics

    def ready(self) -> bool:
        """Whether replay can serve this process's part of `warmup_items` sequences."""
        return self.replay.ready(-(-self.config.warmup_items // self.processes.size))

    def updates_due(self) -> int:
        """Updates that the ratio grants now; 0 during the warm-up."""
        return self.ratio.due(self.clock.agent_steps) if self.ready() else 0

    # State ---------------------------------------------------------------------------------------------------------

    def save(self, extra: dict[str, Any]) -> str:
        """Write a snapshot of everything; returns its id."""
        self.learner.check()
        own = {
            "replay": self.replay.snapshot(),
            "write_back": self.write_back.state_dict(),
            "envs": self.envs.state_dict(),
            "carry": list(self.collector.carry),
            "actions": self.collector.actions,
            "returns": self.collector.returns,
            "lengths": self.collector.lengths,
            "acting": self.acting.get_state(),
            "actor": self.actor.state_dict(self.clock.updates),
            "staleness": self.staleness,
            "sampling": self.learner.generator.get_state(),
        }
        shared = {
            "learner": self.learner.state_dict(),
            "clock": self.clock.state_dict(),
            "ratio": self.ratio.state_dict(),
            **extra,
        }
        name = self.snapshots.write(self.agent, self.clock.updates, self.clock.agent_steps, shared, own)
        self.replay.commit(self.config.save.keep)
        self.snapshots.prune()
        return name

    def restore(self, name: str) -> dict[str, Any]:
        """Continue from a snapshot; returns the shared state, `extra` of `save` included."""
        shared, own = self.snapshots.read(name, self.agent)
        self.learner.load_state_dict(shared["learner"])
        self.learner.generator.set_state(own["sampling"])
        self.clock.load_state_dict(shared["clock"])
        self.ratio.load_state_dict(shared["ratio"], self.clock.agent_steps)
        try:
            self.replay = Replay.restore(
                self.replay_folder,
                own["replay"],
                pin=self.device.type == "cuda",
                long_term=self.long_term_folder,
            )
        except ValueError as error:  # another replay, or one that is damaged or has moved on
            place = f"the replay in {self.replay_folder}"
            raise TornFile(f"snapshot {name} cannot be resumed with {place}: {error}") from error
        self.write_back = WriteBack(self.replay)
        if not self.replay.lost:  # otherwise its ids are those of other steps
            self.write_back.load_state_dict(own["write_back"])
        carry = self.collector.carry
        self.collector.carry = type(carry)(*(c.to(self.actor.device) for c in own["carry"]))
        self.collector.actions = own["actions"]
        self.collector.returns, self.collector.lengths = own["returns"], own["lengths"]
        self.acting.set_state(own["acting"])
        self.actor.load_state_dict(own.get("actor", {}))  # snapshots from before there were copies
        self.staleness = own.get("staleness", 0)
        for env, whole in enumerate(self.envs.load_state_dict(own["envs"])):
            if not whole:
                self.replay.mark_truncated(env)
        return shared

    def close(self) -> None:
        self.envs.close()
        if hasattr(self, "replay"):
            self.replay.close()


@contextlib.contextmanager
def as_config_error() -> Iterator[None]:
    """What a component refuses of its arguments came from the configuration."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def worker_count(config: RunConfig, processes: int) -> int:
    """Processes that step one process's worlds: auto is one for each core left, but none for the quick worlds."""
    if config.workers != "auto":
        return config.workers
    if config.env_name != "memory_maze":
        return 0
    return min(config.envs // processes, max(len(os.sched_getaffinity(0)) // processes, 1))
