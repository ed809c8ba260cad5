"""Branches: training that goes on from given weights and optimiser state, in worlds and with seeds of its own.

A change is words of the configuration (`env.reward_fuel=5`, `agent.gamma=0.9`, `env.mode=anti`), so that whatever a run
can be configured to do can be changed: reward terms, discount, entropy, the world itself. Two branches of one seed see
the same episodes and draw the same random numbers until what they learnt makes them differ.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from torchmem.envs.make import env_spec
from torchmem.models.checkpoint import load_agent, new_agent, save_agent
from torchmem.training.config import RunConfig, compose, from_json
from torchmem.training.device import launch
from torchmem.training.experiment import Experiment
from torchmem.training.goal import Goal
from torchmem.training.rollout_experiment import RolloutExperiment
from torchmem.training.sitting import EXPERIMENTS
from torchmem.training.tree import read_tree, write_tree
from torchmem.training.typed import ConfigError, plain

log = logging.getLogger("torchmem")
Words = Sequence[str]


@dataclasses.dataclass(frozen=True)
class State:
    """An agent between two branches. learner: the optimiser's moments and counters; None where there are none yet.

    curve: (episodes, 2) agent step and return of the training episodes that led here.
    """

    agent: Any
    learner: Mapping[str, Any] | None = None
    curve: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2)))

    def edited(self, delta: Any, fresh: bool = False) -> State:
        """The same with a WeightDelta added to its parameters; running scales stay. fresh: no optimiser state."""
        agent = copy.deepcopy(self.agent)
        agent.load_state_dict(delta.apply(agent))
        return State(agent, None if fresh else self.learner)

    def save(self, folder: Path) -> None:
        """Write `folder`: the agent last, so that an agent there means that all is there."""
        folder.mkdir(parents=True, exist_ok=True)
        write_tree(folder, "training", {"learner": self.learner, "curve": self.curve})
        save_agent(self.agent, folder / "agent")

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> State:
        """What `save` wrote. Raises CheckpointError or TornFile."""
        tree = read_tree(folder, "training")
        return cls(load_agent(folder / "agent", device), tree["learner"], tree["curve"])

    @classmethod
    def of_run(cls, folder: str | Path) -> tuple[State, list[str]]:
        """The newest snapshot of a run folder, and the words that configure a run as it was configured."""
        folder = Path(folder)
        pointer = folder / "ckpt" / "latest"
        if not pointer.is_file() or not (folder / "config.json").is_file():
            raise ConfigError(f"{folder} is no run folder with a snapshot (config.json, ckpt/latest): train it first")
        place = folder / "ckpt" / pointer.read_text().strip()
        return cls(load_agent(place / "agent"), read_tree(place, "shared")["learner"]), words_of(folder / "config.json")


def words_of(file: Path) -> list[str]:
    """The words that compose the configuration of a run's config.json, without where and how long it ran."""
    config = from_json(file.read_text())
    groups = [f"{g}={config.groups[g]}" for g in ("agent", "env", "size", "trainer")]
    base = plain(compose(groups))
    found: list[str] = []

    def walk(tree: Mapping[str, Any], old: Mapping[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if name in ("groups", "logdir", "seed", "steps", "resume", "allow_config_change"):
                continue
            if isinstance(value, Mapping) and isinstance(old.get(key), Mapping):
                walk(value, old[key], f"{name}.")
            elif value != old.get(key):
                found.append(f"{name}={_word(value)}")

    walk(plain(config), base, "")
    return groups + found


def _word(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(_word(v) for v in value) + "]"
    return f"'{value}'" if isinstance(value, str) else repr(value)


def merged(*groups: Words) -> list[str]:
    """Words of several lists as one list; a later one takes the place of an earlier one for the same key."""
    return [f"{key}={value}" for key, value in dict(w.split("=", 1) for g in groups for w in g).items()]


def configured(words: Words, steps: int, seed: int, logdir: str | Path = "unused") -> RunConfig:
    """The configuration of one branch. Raises ConfigError."""
    return compose(merged(words, [f"steps={steps}", f"seed={seed}", f"logdir='{logdir}'", "log.sinks=[]"]))


def begin(words: Words, seed: int) -> State:
    """An untrained agent. Raises ConfigError."""
    config = configured(words, 1, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        agent = new_agent(env_spec(config.env_name, **config.env_kwargs), config.agent)
    _, device = launch(config.trainer)
    return State(agent.to(device))


def train(words: Words, start: State, steps: int, seed: int) -> State:
    """Train a copy of `start` for at least `steps` agent steps (whole rollouts), or to the goal that `words` name.

    Worlds, exploration, sampling and, for agents that replay, the replay itself begin anew from `seed`; weights,
    running scales and optimiser state go on. Raises ConfigError, NaNLoss, and ValueError where the world's spaces are
    not those that the agent was made for.
    """
    with TemporaryDirectory(prefix="torchmem-branch-") as scratch:
        config = configured(words, steps, seed, scratch)
        x = _experiment(config)
        try:
            _adopt(x, start)
            goal, curve = Goal(config.goal, x.spec.score), []
            while x.clock.agent_steps < steps and not goal.reached:
                for _, total, _ in x.collect():
                    goal.add(total)
                    curve.append((x.clock.agent_steps, total))
                for _ in range(x.updates_due()):
                    x.learn()
            x.learner.check()
            learner = copy.deepcopy(x.learner.state_dict())
            return State(copy.deepcopy(x.agent), learner, np.array(curve, np.float64).reshape(-1, 2))
        finally:
            x.close()


def open_experiment(words: Words, start: State, seed: int, scratch: str | Path) -> Experiment | RolloutExperiment:
    """The parts of a branch, ready to go on from `start`: for looking at single updates. Close it."""
    x = _experiment(configured(words, 1 << 40, seed, scratch))
    _adopt(x, start)
    return x


def _experiment(config: RunConfig) -> Experiment | RolloutExperiment:
    processes, device = launch(config.trainer)
    x = EXPERIMENTS[config.agent.name](config, processes, device)
    x.open_replay("branch")
    return x


def _adopt(x: Experiment | RolloutExperiment, start: State) -> None:
    ours, theirs = x.agent.spec, start.agent.spec
    if (ours.obs, ours.action) != (theirs.obs, theirs.action):
        raise ValueError(f"the agent was made for {theirs.name} with {theirs.obs} and {theirs.action}; this branch's "
                         f"world {ours.name} shows {ours.obs} and takes {ours.action}")  # fmt: skip
    x.agent.load_state_dict(start.agent.state_dict())
    if start.learner is not None:
        x.learner.load_state_dict(start.learner)
