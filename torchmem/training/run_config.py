"""Every number of a training run that is not the agent's or the world's. The only argument list of the loop."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal

from torchmem.options import option


@dataclasses.dataclass
class TrainerConfig:
    """Where and how numbers are computed (group `trainer`)."""

    accelerator: Literal["auto", "cpu", "cuda"] = option("auto", "Kind of device; auto takes CUDA where it works.")
    devices: int | Literal["auto"] = option(1, "Devices per node; auto takes all of them.")
    nodes: int = option(1, "Machines, each started by Fabric's launcher or by SLURM.")
    strategy: Literal["auto", "ddp"] = option("auto", "How processes share an update; auto: ddp if more than one.")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "Compute type (weights stay float32); auto: bfloat16 on CUDA, float32 on CPU."
    )
    policy_device: str | None = option(
        None, "Device that acts, from a copy of the weights: cpu or cuda:N; training takes others. null: no copy."
    )
    policy_every: int = option(10, "Updates after which policy_device gets the weights anew.")
    threads: int | Literal["auto"] = option("auto", "CPU threads of one process; auto: all cores it may use.")
    matmul: Literal["fast", "default"] = option(
        "fast", "CPU float32 products: fast uses oneDNN where one product, checked against float64 at start, is right."
    )

    def __post_init__(self) -> None:
        _at_least(1, self, "devices", "nodes", "threads", "policy_every")
        if self.policy_device is not None and not re.fullmatch(r"cpu|cuda:\d+", self.policy_device):
            raise ValueError(f"trainer.policy_device={self.policy_device}: say cpu or cuda:N, such as cuda:1")


@dataclasses.dataclass
class ReplayConfig:
    """The stored experience."""

    capacity: int | Literal["auto"] = option(
        "auto", "Agent steps kept, over all envs; auto: the most that fits half the free disk, up to 5 million."
    )
    online: bool = option(True, "Serve every fresh piece of experience exactly once before sampling uniformly.")
    directory: str | None = option(
        None, "Folder of the memory-mapped arrays, on the fastest disk; null: <logdir>/replay."
    )
    long_term: str | None = option(
        None, "Folder of a second copy on slow, persistent storage, for a directory that may vanish; null: none."
    )

    def __post_init__(self) -> None:
        _at_least(1, self, "capacity")
        if self.long_term is not None and self.long_term == self.directory:
            raise ValueError(f"replay.long_term={self.long_term} is replay.directory itself: name two folders")


@dataclasses.dataclass
class EvalConfig:
    """Evaluation on seeds that training never sees."""

    every_steps: int = option(250_000, "Agent steps between evaluations (one more at the end); 0: only at the end.")
    episodes: int = option(32, "Episodes per evaluation.")
    no_memory: bool = option(True, "Also evaluate with the carry reset every step: what the agent does without memory.")

    def __post_init__(self) -> None:
        _at_least(0, self, "every_steps")
        _at_least(1, self, "episodes")


@dataclasses.dataclass
class LogConfig:
    """What is written for people; it changes no number of the run."""

    every_s: float = option(30.0, "Seconds between rows of metrics.jsonl.")
    video_every_s: float = option(1800.0, "Seconds between open-loop videos (one more at the end); 0: only at the end.")
    sinks: list[str] = option(["tensorboard"], "Copies of metrics.jsonl beside it: tensorboard, wandb.")
    collect: list[str] = option([], "Sites whose activations updates leave in <logdir>/taps, such as [dynamics.*].")
    collect_every: int = option(100, "Updates between two files of them.")

    def __post_init__(self) -> None:
        _at_least(0, self, "every_s", "video_every_s")
        _at_least(1, self, "collect_every")
        unknown = set(self.sinks) - {"tensorboard", "wandb"}
        if unknown:
            raise ValueError(f"unknown sinks {sorted(unknown)}; valid: tensorboard, wandb")


@dataclasses.dataclass
class SaveConfig:
    """Snapshots for resuming and for surgery."""

    every_s: float = option(900.0, "Seconds between snapshots (one more at the end and at ctrl-C).")
    keep: int = option(1, "Newest snapshots kept for resuming.")
    ladder: bool = option(False, "Also keep agents (not training states) at 1, 2, 4, 8, ... thousand agent steps.")
    agents_every: int = option(0, "Also keep the agent every so many agent steps, beside those of the ladder; 0: no.")

    def __post_init__(self) -> None:
        _at_least(0, self, "every_s", "agents_every")
        _at_least(1, self, "keep")


@dataclasses.dataclass
class GoalConfig:
    """What ends a run before its `steps`. Training episodes say so, not evaluations: those stay untouched."""

    score: float | None = option(None, "End once training episodes score this on average; null: only at `steps`.")
    episodes: int = option(2000, "Over how many of the last training episodes.")

    def __post_init__(self) -> None:
        _at_least(1, self, "episodes")


@dataclasses.dataclass
class RunConfig:
    """One run. `agent` and `env` hold the dataclass of the chosen agent and world; `groups` the names chosen."""

    agent: Any = None
    env: Any = None
    trainer: TrainerConfig = option(TrainerConfig, "Device, precision, threads.")
    groups: dict[str, str] = dataclasses.field(default_factory=dict)  # {"agent": "dreamer", "env": ..., "size": ...}
    seed: int = option(0, "Seed of weights, sampling and training episodes.")
    logdir: str | None = option(None, "Folder of the run; null: runs/<agent>-<env>-<size>-<seed>.")
    steps: int = option(100_000_000, "Agent steps to collect in total, over all envs.")
    goal: GoalConfig = option(GoalConfig, "What ends the run sooner.")
    envs: int = option(16, "Copies of the world stepped in lock-step.")
    workers: int | Literal["auto"] = option("auto", "Processes that step them; 0: this one; auto: from the cores.")
    on_env_error: Literal["restart", "raise"] = option("restart", "What a world that raises or dies does to the run.")
    batch: int = option(16, "Sequences per update.")
    length: int = option(64, "Steps per sequence.")
    ratio: float = option(32.0, "Replayed steps per collected agent step; updates per step = ratio / (batch * length).")
    warmup_items: int = option(1024, "Sequences that replay must be able to serve before the first update.")
    replay: ReplayConfig = option(ReplayConfig, "The stored experience.")
    eval: EvalConfig = option(EvalConfig, "Evaluation.")
    log: LogConfig = option(LogConfig, "Logs.")
    save: SaveConfig = option(SaveConfig, "Snapshots.")
    compile: Literal["auto", "off", "full"] = option("auto", "torch.compile of loss and policy; auto: off on CPU.")
    resume: Literal["auto", "never", "must"] = option(
        "auto", "auto: go on if logdir holds this run; never: refuse a used logdir; must: refuse an unused one."
    )
    allow_config_change: list[str] = option([], "Dotted names that may change on resume; [all] for any.")
    on_nan: Literal["raise"] = option("raise", "A loss that is not finite stops the run with a message.")

    def __post_init__(self) -> None:
        _at_least(1, self, "steps", "envs", "batch", "length", "warmup_items")
        _at_least(0, self, "seed", "workers", "ratio")
        if self.log.collect and getattr(self.agent, "name", None) == "ppo":
            raise ValueError(
                "log.collect is not offered for agent=ppo, whose loss runs the core in one fused kernel: leave it out "
                "and record the trained agent (torchmem record)"
            )
        if self.logdir is None and self.groups:
            self.logdir = "runs/" + "-".join([*(self.groups[g] for g in ("agent", "env", "size")), str(self.seed)])

    @property
    def env_name(self) -> str:
        return self.groups["env"]

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """The world's dataclass as keyword arguments."""
        return {f.name: getattr(self.env, f.name) for f in dataclasses.fields(self.env) if f.init}


def _at_least(low: float, config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, (int, float)) and not value >= low:
            raise ValueError(f"{name} must be at least {low:g}, got {value}")


def without_free_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what may change between two sittings of one run without changing what is learnt."""
    free = (
        "logdir",
        "resume",
        "allow_config_change",
        "steps",
        "goal.",
        "workers",
        "on_env_error",
        "replay.directory",
        "replay.long_term",
        "log.",
        "save.",
        "groups.size",
        "groups.preset",
        "groups.trainer",
    )
    return {k: v for k, v in flat.items() if not any(k == f or (f.endswith(".") and k.startswith(f)) for f in free)}
